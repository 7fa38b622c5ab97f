"""The maps that can be drawn: what each shows, in words, and how its colours are to be read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Kind(NamedTuple):
    title: str
    """What the picture says it shows."""
    signed: bool = False
    """Red above 0 and blue below, opacity by size; else from dark to bright."""
    whole: bool = False
    """The colours span all values; else they end at a percentile of them."""
    least: float = 0.0
    """The colours end at this many times the mean of |value| at least."""
    credit: bool = False
    """Shows how much credit a token got; cells whose contrast is below the noise floor are hatched."""


CONTRAST = "log p(token | prompt) and log p(token | negative prompt)"

#: Name -> map, in the order in which they are offered. Those from "kl" to "js_full" are the divergences of the
#: algorithms.
KINDS: dict[str, Kind] = {
    "advantage": Kind("token advantage A[b,t] = A_b · w[b,t]", signed=True, least=1.0, credit=True),
    # At twice the mean, GRPO's w = 1 lies in the middle of the colours and never at their bright end.
    "weight": Kind("token weight w[b,t], mean 1 over an image", least=2.0, credit=True),
    "contrast": Kind("contrast log p(token | prompt) − log p(token | negative prompt), nats", signed=True),
    "kl": Kind(f"raw contrast, kl: estimate of the KL divergence from {CONTRAST}, nats"),
    "abs": Kind(f"raw contrast, abs: distance of {CONTRAST}, nats"),
    "js": Kind(f"raw contrast, js: estimate of the Jensen-Shannon divergence from {CONTRAST}, nats"),
    "information_gain": Kind("raw contrast, information_gain: log p(token | prompt) − log p(token | negative "
                             "prompt) where above 0, nats"),
    "exact_kl": Kind("raw contrast, exact_kl: KL divergence of prompt and negative prompt over the whole codebook, "
                     "nats"),
    "js_full": Kind("raw contrast, js_full: Jensen-Shannon divergence of the two prompts over the whole codebook, "
                    "nats"),
    "kl_reference": Kind("KL to the reference model at the token, conditional, estimator k3, nats"),
    "entropy": Kind("entropy of the token's distribution under the prompt, nats"),
    "event": Kind("decision −log P(event): surprisal of all tokens together that the prompt favours alike, nats"),
    "surprisal": Kind("surprisal −log p(token | prompt), nats"),
    "order": Kind("order: the sampling step that fixed the token", whole=True),
}  # fmt: skip


def find(name: str, there: Iterable[str] = KINDS) -> Kind:
    """Return a map's kind. ValueError for a map that is not among those that there are."""
    there = list(there)
    if name not in there:
        raise ValueError(f"there is no map {name!r} here; allowed: {', '.join(there)}")
    return KINDS[name]
