"""Pure functions on logits: guidance, temperature, truncation, drawing a token; and the noise that rows are drawn with.

`*` any leading shape (usually B or B, T), V codebook, B rows, T tokens. Log-probs and divergences are in nats.
Everything that takes logits computes in fp32, holds no generator and no data-dependent branch, so it can sit inside
`torch.compile(fullgraph=True)`. The behaviour distribution is `softmax(truncate(mix(conditional, unconditional) /
temperature))`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from t2i_gcpo.records import SamplingOptions

LARGEST_UNIFORM = 1.0 - 2.0**-24
"""The largest fp32 number below 1. Times any normal fp32 total it rounds to less than that total."""
MAX_CONTRAST = 5.0
"""Bound of the contrast of a token, nats, in its variance over the codebook."""


def mix(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Apply classifier-free guidance `u + g (c - u)` to finite logits [*, V]; the result is fp32.

    2207.12598, in the form that Janus and LlamaGen use; g = 1 is the conditional.
    """
    conditional, unconditional = conditional.float(), unconditional.float()
    return unconditional + guidance * (conditional - unconditional)


def truncate(logits: Tensor, *, top_k: int = 0, top_p: float = 1.0, keep: Tensor | None = None) -> Tensor:
    """Set the logits [*, V] outside the kept set to -inf.

    Kept are the `top_k` most likely tokens (0: all), then of those, renormalised, the smallest set with probability of
    at least `top_p` (1: all; nucleus sampling, 1904.09751).

    `keep` [*] int64 is a token that stays whatever happens: re-scoring a token that was sampled under slightly other
    weights is then never -inf. Ties at the k-th place all stay. No gradient flows to what was cut.
    """
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"top_k={top_k}, top_p={top_p}; top_k must be at least 0 (0 keeps all), top_p in (0, 1] (1 keeps all)"
        )
    vocabulary = logits.shape[-1]
    if (top_k == 0 or top_k >= vocabulary) and top_p == 1:
        return logits
    kept = torch.ones_like(logits, dtype=torch.bool)
    detached = logits.detach().float()
    if 0 < top_k < vocabulary:
        kept = detached >= detached.topk(top_k, dim=-1).values[..., -1:]
        detached = detached.masked_fill(~kept, -torch.inf)
    if top_p < 1:
        ordered, order = detached.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(dim=-1)
        before = (
            probability.cumsum(dim=-1) - probability
        )  # what the more likely tokens hold already; 0 for the first, so one always stays
        nucleus = torch.zeros_like(kept).scatter(-1, order, before < top_p)
        kept = kept & nucleus
    return logits.masked_fill(~_with(kept, keep), -torch.inf)


def behaviour_logits(
    conditional: Tensor,
    unconditional: Tensor | None = None,
    *,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    keep: Tensor | None = None,
) -> Tensor:
    """Compute the logits [*, V] fp32 of the distribution that tokens are drawn from, from both branches' raw logits.

    `unconditional` may be None only where guidance is 1 (it is then not read). Temperature 0 is greedy: probability 1
    on the most likely token (the first of a tie). `keep` as in `truncate`. ValueError: guidance without a second
    branch, negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must be at least 0 (0 is greedy)")
    if guidance == 1:
        logits = conditional.float()
    elif unconditional is None:
        raise ValueError(
            f"guidance is {guidance}, but there are no unconditional logits; pass them, or set guidance to 1"
        )
    else:
        logits = mix(conditional, unconditional, guidance)
    if temperature == 0:
        best = logits.detach().argmax(dim=-1, keepdim=True)
        return logits.masked_fill(~_with(_one_hot(best, logits.shape[-1]), keep), -torch.inf)
    logits = logits if temperature == 1 else logits / temperature
    return truncate(logits, top_k=top_k, top_p=top_p, keep=keep)


def sampled_logits(
    conditional: Tensor, unconditional: Tensor | None, sampling: SamplingOptions, *, keep: Tensor | None = None
) -> Tensor:
    """Compute the `behaviour_logits` [*, V] of a user's options."""
    return behaviour_logits(
        conditional,
        unconditional,
        guidance=sampling.guidance,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        keep=keep,
    )


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token [*] int64 from `softmax(logits)` [*, V].

    The cumulative distribution is inverted at `uniform` [*] in [0, 1): deterministic in the two arguments. A token of
    probability 0 is never drawn, not even at uniform = 1. Differences of probability below 2^-24 are out of reach of a
    fp32 uniform.
    """
    probability = logits.float().softmax(dim=-1)
    possible = probability > 0
    # A parallel prefix sum need not be monotone in its last bit: look only at possible tokens, and take the total
    # from among them.
    cumulative = probability.cumsum(dim=-1).masked_fill(~possible, 0.0)
    threshold = uniform.float().clamp(0.0, LARGEST_UNIFORM) * cumulative.amax(dim=-1)
    return (cumulative > threshold.unsqueeze(-1)).int().argmax(dim=-1)  # argmax gives the first of equals


def draw_coupled(logits: Tensor, gumbel: Tensor) -> Tensor:
    """Draw one token [*] int64 from `softmax(logits)` [*, V] with Gumbel noise [*, V]: the largest of their sums.

    Rows with the same noise draw the same token with a probability of at least `(1 - TV) / (1 + TV)`, where TV is the
    total variation between their distributions. There is no such bound for an inverted cumulative distribution: what
    one token gains moves all behind it. Where the noise is inf, that token is drawn whatever its probability.
    """
    return (logits.float() + gumbel).masked_fill(gumbel == torch.inf, torch.inf).argmax(dim=-1)


def gumbel_noise(keys: Sequence[int], step: int, vocabulary: int) -> Tensor:
    """Draw standard Gumbel noise [N, V] fp32 on the CPU for one step of N keys.

    It depends on (key, step) alone: neither on which keys share the call nor on the device.
    """
    uniform = torch.empty(len(keys), vocabulary, dtype=torch.float64)
    for row, key in enumerate(keys):
        torch.rand(vocabulary, generator=_generator(f"{key}/{step}"), out=uniform[row])
    return uniform.log().neg().log().neg().float()


def row_noise(seed: int, rows: Sequence[tuple[int, int]], length: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw uniform noise [B, length] fp32 in [0, 1), one row for each (prompt index, image index).

    Each row has a generator of its own, seeded by a hash of (seed, prompt index, image index), and is drawn on the
    CPU: it depends neither on which rows share the batch nor on the device. A longer row begins with the shorter one.
    """
    noise = torch.empty(len(rows), length)
    for row, (prompt_index, image_index) in enumerate(rows):
        torch.rand(length, generator=_generator(f"{seed}/{prompt_index}/{image_index}"), out=noise[row])
    return noise.to(device)


def exact_kl(positive: Tensor, negative: Tensor) -> Tensor:
    """Compute KL(softmax(positive) || softmax(negative)) over the vocabulary, nats: [*, V], [*, V] -> [*] fp32."""
    log_p, log_q = positive.float().log_softmax(dim=-1), negative.float().log_softmax(dim=-1)
    # Both sum to 1, so adding q - p changes nothing but the rounding: each term p (expm1(d) - d) is now at least 0.
    difference = log_q - log_p
    return (log_p.exp() * (torch.expm1(difference) - difference)).sum(dim=-1)


def js(positive: Tensor, negative: Tensor) -> Tensor:
    """Compute the Jensen-Shannon divergence over the vocabulary, nats, in [0, ln 2]: [*, V], [*, V] -> [*] fp32."""
    log_p, log_q = positive.float().log_softmax(dim=-1), negative.float().log_softmax(dim=-1)
    log_middle = torch.logaddexp(log_p, log_q) - math.log(2.0)
    both = log_p.exp() * (log_p - log_middle) + log_q.exp() * (log_q - log_middle)
    return (0.5 * both.sum(dim=-1)).clamp(min=0.0)


def contrast_variance(behaviour: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Compute the variance of the clipped contrast over the token to be drawn: three times [*, V] -> [*] fp32, nats^2.

    With `d = clamp(log p_negative - log p_positive, +-5)` of each token of the codebook, it is `E[d^2] - E[d]^2` under
    `softmax(behaviour)`, the distribution that is sampled. It is 0 where nothing is undecided, and where the prompts
    agree; it depends on the state alone, and not on the token that is then drawn. (Chosen here; the clip keeps tokens
    that one branch all but rules out from deciding everything.)
    """
    chance = behaviour.float().softmax(dim=-1)
    d = (negative.float().log_softmax(dim=-1) - positive.float().log_softmax(dim=-1)).clamp(-MAX_CONTRAST, MAX_CONTRAST)
    mean = (chance * d).sum(dim=-1, keepdim=True)
    return (chance * (d - mean).square()).sum(dim=-1)


def _generator(name: str) -> torch.Generator:
    """Make a generator that is seeded by the hash of a name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _one_hot(index: Tensor, vocabulary: int) -> Tensor:
    return torch.arange(vocabulary, device=index.device) == index


def _with(kept: Tensor, keep: Tensor | None) -> Tensor:
    return kept if keep is None else kept | _one_hot(keep.unsqueeze(-1), kept.shape[-1])
