"""Compute the probability of all tokens that the prompt favours as much as the sampled one, instead of its own.

Most of an image's tokens are one of many that would do as well: a grain of the sand, a shade of the sky. The prompt
tells some tokens apart and not others, and says which: a token's contrast is its log-prob under the prompt less that
under the negative prompt. Tokens whose contrast is in the same step of some width are one *event* here. Trained on
events, a policy gets no gradient from what of an event was drawn, which is noise where the reward does not depend on it
either: the gradient is the conditional expectation, given the events, of the one that tokens give (Rao and Blackwell).

`*` any leading shape (usually B, T), V codebook, D hidden width; nats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from t2i_gcpo.generators.tokens.logprobs import DEFAULT_CHUNK, Head, recomputed, score_in_chunks, selected_logprob
from t2i_gcpo.generators.tokens.sampling import behaviour_logits
from t2i_gcpo.records import Events

MOST_STEPS = 128
"""Steps of contrast, up and down, that the control "matched" tells apart."""


class EventScores(NamedTuple):
    """The log-probs that `event_scores` returns, both differentiable."""

    event: Tensor
    """[*] fp32, of all tokens that the prompt favours as much as the sampled one."""
    token: Tensor
    """[*] fp32, of the sampled token itself."""


def same_event(
    positive: Tensor, negative: Tensor, drawn_from: Tensor, tokens: Tensor, events: Events, *, seed: int = 0
) -> Tensor:
    """Say which tokens are one event with the sampled ones: logits [*, V] three times, [*] int64 -> [*, V] bool.

    The contrast `d = log p(v | prompt) - log p(v | negative prompt)` is rounded to multiples of the width; tokens with
    the same one are alike. So those within half a width of 0, which the prompt leaves about as likely as they were, are
    one event, which often has nearly all of the probability. drawn_from: the distribution whose probabilities the
    events of the control "matched" have. seed: of the codes' order in the controls.
    """
    contrast = positive.detach().float().log_softmax(dim=-1) - negative.detach().float().log_softmax(dim=-1)
    step = (contrast / events.width).round()
    if events.codes != "own":
        order = torch.randperm(step.shape[-1], generator=torch.Generator().manual_seed(seed)).to(step.device)
        if events.codes == "shuffled":
            step = step.index_select(-1, order)
        else:
            step = _at_random_places(step, drawn_from.detach().float().softmax(dim=-1), order)
    return step == step.gather(-1, tokens.unsqueeze(-1))


def _at_random_places(step: Tensor, probability: Tensor, order: Tensor) -> Tensor:
    """Give each code [*, V] the step of contrast of a random other, so that each stays about as probable as it was.

    The codes lie side by side, each as wide as it is probable: once by their steps, and once in the random `order` [V].
    Each takes the step that lies, in the first row, where its own middle lies in the second. A code that is nearly
    certain covers most middles, and then the others fall into its step. Beyond `MOST_STEPS` all are one.
    """
    mass = probability.new_zeros(*step.shape[:-1], 2 * MOST_STEPS + 1)
    bins = step.nan_to_num().clamp(-MOST_STEPS, MOST_STEPS) + MOST_STEPS  # weights that are of no use give NaN
    mass.scatter_add_(-1, bins.long(), probability)
    shuffled = probability.index_select(-1, order)
    place = torch.searchsorted(mass.cumsum(dim=-1), shuffled.cumsum(dim=-1) - shuffled / 2, out_int32=True)
    return place.clamp(max=2 * MOST_STEPS).index_select(-1, order.argsort())


def event_logprob(logits: Tensor, same: Tensor) -> Tensor:
    """Compute the log of the sum of `softmax(logits)` over an event: [*, V], [*, V] bool -> [*] fp32, at most 0.

    Its gradient with respect to the logits is `p(v | event) - p(v)`, where a token's own is `1 - p(v)` or `-p(v)`.
    """
    logits = logits.float()
    inside = logits.masked_fill(~same, -torch.inf).logsumexp(dim=-1)
    return inside - logits.logsumexp(dim=-1)


def event_scores(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    *,
    events: Events,
    unconditional: Tensor | None = None,
    negative: Tensor | None = None,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    chunk: int = DEFAULT_CHUNK,
    seed: int = 0,
) -> EventScores:
    """Compute the log-probs of the tokens' events and of the tokens [*], from hidden states [*, D] and the head.

    The distribution is that of `logprobs.token_scores`, with the same options. negative: [*, D], of the negative
    prompt, whose contrast makes the events, without gradient; None: `unconditional` is. At most `chunk` tokens have
    logits at a time; the backward pass computes them again. ValueError: no branch to contrast with, guidance without
    `unconditional`.
    """
    if negative is None and unconditional is None:
        raise ValueError("events are of tokens that the prompt favours alike; pass the negative prompt's hidden states")

    def score(
        conditional: Tensor, other: Tensor | None, against: Tensor | None, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = [None if branch is None else head(branch) for branch in (conditional, other, against)]
        positive, null, contrasted = logits
        drawn_from = behaviour_logits(
            positive, null, guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p, keep=chosen
        )
        same = same_event(positive, null if contrasted is None else contrasted, drawn_from, chosen, events, seed=seed)
        return event_logprob(drawn_from, same), selected_logprob(drawn_from, chosen)

    flat = [None if one is None else one.reshape(-1, hidden.shape[-1]) for one in (hidden, unconditional, negative)]
    run = recomputed(score) if torch.is_grad_enabled() else score
    event, token = score_in_chunks(run, chunk, *flat, tokens.reshape(-1))
    return EventScores(event.reshape(tokens.shape), token.reshape(tokens.shape))
