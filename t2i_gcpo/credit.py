"""Decides which tokens get the credit: GCPO's contrast between two prompts, its ablations and controls, as weights.

B rows (images), T tokens. Weights are fp32, constants of the loss (no gradient), 0 on masked tokens and of mean 1
over the valid tokens of each row; a row without a valid token is 0 throughout. Nothing loops over rows or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from t2i_gcpo.records import Rows

Divergence = Literal["kl", "abs", "js", "information_gain"]
Normalization = Literal["rank", "softmax", "minmax", "none"]

DEFAULT_TOP = 0.4
DEFAULT_MASS = 0.8
"""The top 40 % of an image's tokens carry 80 % of its credit (2605.29198's code)."""
DEFAULT_FLOOR = 1e-4
"""Mean |d| of an image in nats below which its weights are 1. The fp32 rounding of a log-prob over 16,384 logits is
about 1e-6 nats, a hundredth of this; a prompt that matters moves log-probs by 1e-2 to 1. (Chosen here, not in the
paper, which has no floor. Forward passes in bf16 round far more coarsely: raise it if both branches are not computed
alike.)"""
DIVERGENCE_FLOOR = DEFAULT_FLOOR**2 / 2
"""The same floor for a ready-made divergence: near 0, a KL is d^2 / 2."""
MAX_LOG_RATIO = 20.0
MAX_DIVERGENCE = 10.0
"""Bounds of d and of its divergence (2605.29198's code), so that one surprising token cannot overflow the
exponential."""


def divergence(logprob_positive: Tensor, logprob_negative: Tensor, kind: Divergence = "kl") -> Tensor:
    """Return how far the two prompts part at each sampled token, at least 0: [B, T], [B, T] -> [B, T] fp32, nats.

    With `d = clamp(logprob_negative - logprob_positive, ±20)`: `kl` is `min(expm1(d) - d, 10)`, the estimator k3 of
    KL(positive || negative) for tokens drawn from the positive distribution, without guidance; expm1, as
    `exp(d) - d - 1` in fp32 is rounding noise for |d| below about 3e-4. `js` is the two-term estimate of the
    Jensen-Shannon divergence from one token, `min((log(p/m) + q/p log(q/m)) / 2, 10)` with `q/p = exp(d)` and m the
    mean of p and q: unbiased for tokens drawn from p, and never negative. `abs` is
    |logprob_negative - logprob_positive|, `information_gain` is `clamp(logprob_positive - logprob_negative, min=0)`,
    0 for tokens that the prompt makes less likely (which under `rank` share the lowest ranks, and so get some credit).
    ValueError: an unknown kind, shapes that differ.
    """
    if logprob_positive.shape != logprob_negative.shape:
        shapes = tuple(logprob_positive.shape), tuple(logprob_negative.shape)
        raise ValueError(f"log-probs have shapes {shapes[0]} (positive) and {shapes[1]} (negative); they must be equal")
    difference = logprob_negative.detach().float() - logprob_positive.detach().float()
    if kind == "abs":
        return difference.abs()
    if kind == "information_gain":
        return (-difference).clamp(min=0)
    d = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "kl":
        return (torch.expm1(d) - d).clamp(0.0, MAX_DIVERGENCE)
    if kind == "js":
        # (1 + r) = 2 exp(h) cosh(h) for r = exp(d), h = d / 2: the logs of the mean become h + log cosh h, and
        # nothing cancels near 0 (where it is d^2 / 8).
        half = d / 2
        log_cosh = torch.log1p(2 * torch.sinh(half / 2).square())
        excess = torch.expm1(d)
        return (0.5 * (half * excess - (2 + excess) * log_cosh)).clamp(0.0, MAX_DIVERGENCE)
    raise ValueError(f"divergence is {kind!r}; allowed: {', '.join(get_args(Divergence))}")


def token_weights(
    logprob_positive: Tensor,
    logprob_negative: Tensor,
    *,
    divergence: Divergence = "kl",
    normalization: Normalization = "rank",
    top: float = DEFAULT_TOP,
    mass: float = DEFAULT_MASS,
    floor: float = DEFAULT_FLOOR,
    mask: Tensor | None = None,
) -> Tensor:
    """Return GCPO's weights (2605.29198): [B, T] fp32 of mean 1 over the valid tokens of each row.

    >>> positive = torch.tensor([[0.5, 0.6, 0.8, 0.2]]).log()
    >>> negative = torch.tensor([[0.5, 0.3, 0.1, 0.4]]).log()
    >>> token_weights(positive, negative)
    tensor([[0.1118, 0.4964, 2.2044, 1.1874]])

    The log-probs [B, T] are those of the sampled tokens under the prompt and under the negative prompt, raw
    (temperature 1, untruncated), nats. `floor`: an image whose mean |logprob_positive - logprob_negative| is below it
    has no contrast to speak of, and gets w = 1; without that a rank would spread rounding noise from nearly 0 to 3.
    `mask` [B, T] bool, true = valid. The other options as in `divergence` and `normalize`.
    """
    values = _divergence(logprob_positive, logprob_negative, divergence)
    weights = normalize(values, normalization=normalization, top=top, mass=mass, floor=0.0, mask=mask)
    valid = _valid(values, mask)
    flat = contrast(logprob_positive, logprob_negative, mask=mask) < floor
    return torch.where(flat.unsqueeze(-1), valid.float(), weights)


def normalize(
    divergence: Tensor,
    *,
    normalization: Normalization = "rank",
    top: float = DEFAULT_TOP,
    mass: float = DEFAULT_MASS,
    floor: float = DIVERGENCE_FLOOR,
    mask: Tensor | None = None,
) -> Tensor:
    """Return weights [B, T] fp32 from any divergence or score [B, T] that is at least 0.

    Such as `Rollout.stats["exact_kl"]`.

    `rank`: `u = rank / N` in (0, 1], 1 for the largest of the N valid tokens, ties share their average rank; `w =
    u^a` with `a = ln(1 - mass) / ln(1 - top) - 1`, so that the top share of tokens holds `mass` of the credit (in the
    limit of many tokens). `softmax`: softmax over the row's tokens. `minmax`: (x - min) / (max - min). `none`: x
    itself. All are then rescaled to mean 1 over the row's valid tokens.

    `floor`, in the unit of `divergence`: rows whose mean is below it get w = 1, and so do rows whose weights sum to
    0. NaN on a valid token makes its row NaN. ValueError: an unknown normalisation; top or mass outside (0, 1), mass
    below top.
    """
    if not (0 < top < 1 and top <= mass < 1):
        raise ValueError(f"top={top}, mass={mass}; both must be in (0, 1), and mass at least top (equal: w = 1)")
    valid = _valid(divergence, mask)
    values = torch.where(valid, divergence.detach().float(), 0.0)
    count = valid.sum(dim=-1, keepdim=True).clamp(min=1)
    if normalization == "rank":
        exponent = math.log(1 - mass) / math.log(1 - top) - 1
        weights = (_average_rank(values, valid) / count).pow(exponent)
        weights = torch.where(values.isnan(), values, weights)  # a rank would hide it
    elif normalization == "softmax":
        weights = values.masked_fill(~valid, torch.finfo(torch.float32).min).softmax(dim=-1)
    elif normalization == "minmax":
        lowest = values.masked_fill(~valid, torch.inf).amin(dim=-1, keepdim=True)
        highest = values.masked_fill(~valid, -torch.inf).amax(dim=-1, keepdim=True)
        weights = torch.where(highest > lowest, (values - lowest) / (highest - lowest), 0.0 * values)
    elif normalization == "none":
        weights = values
    else:
        raise ValueError(f"normalization is {normalization!r}; allowed: {', '.join(get_args(Normalization))}")
    weights = torch.where(valid, weights, 0.0)
    total = weights.sum(dim=-1, keepdim=True)
    flat = (total == 0) | (values.sum(dim=-1, keepdim=True) / count < floor)
    return torch.where(flat, valid.float(), weights * (count / torch.where(flat, 1.0, total)))


def by_size(
    divergence: Tensor,
    *,
    cap: float = 0.0,
    over: Literal["image", "batch"] = "image",
    mask: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
    divisor: float | None = None,
) -> Tensor:
    """Return weights [B, T] fp32 that keep the size of a divergence or score [B, T] that is at least 0.

    >>> by_size(torch.tensor([[0.0, 1.0, 2.0, 9.0]]), cap=2.0)
    tensor([[0.0000, 0.5714, 1.1429, 2.2857]])

    `x / mean(x)`, the mean over the valid tokens of each image, or with `over="batch"` of all images: then a token's
    weight does not depend on what else was drawn in its image, but for its share in the batch's mean, and an image
    has a mean of its own. `cap` (0 is off): values are first cut to `cap` times that mean, so that a few tokens do not
    take it all. Where all values are 0 the weights are 1. total: the sum over the processes that share the batch, of a
    scalar (None: there is one). divisor: divide by this number instead of a mean; the weights are then of mean 1 only
    if it is the values' own. ValueError: a negative cap, or one below 1.
    """
    if cap and cap < 1:
        raise ValueError(f"cap is {cap}; it must be at least 1 (times the mean), or 0 for none")
    valid = _valid(divergence, mask)
    values = torch.where(valid, divergence.detach().float(), 0.0)
    if divisor is not None:
        values = values.clamp(max=cap * divisor) if cap else values
        return values / divisor if divisor > 0 else valid.float()

    def mean(of: Tensor) -> Tensor:
        if over == "batch":
            return batch_mean(of, mask, total)
        return of.sum(dim=-1, keepdim=True) / valid.sum(dim=-1, keepdim=True).clamp(min=1)

    if cap:
        values = torch.minimum(values, cap * mean(values))
    center = mean(values)
    return torch.where(center == 0, valid.float(), values / torch.where(center == 0, 1.0, center))


def batch_mean(values: Tensor, mask: Tensor | None = None, total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return the mean of [B, T] over the valid tokens of all rows, a scalar; total: as for `by_size`."""
    valid = _valid(values, mask)
    amount, count = torch.where(valid, values, 0.0).sum(), valid.sum()
    return amount / count.clamp(min=1) if total is None else total(amount) / total(count).clamp(min=1)


def of_siblings(weights: Tensor, group_size: int, *, mask: Tensor | None = None) -> Tensor:
    """Return the weights [B, T] of another image of the same prompt, a control: each row has the next one's.

    Rows are in groups of `group_size`; the last of a group has the first one's. They keep what the prompt says of
    places, and know nothing of the image that they weigh. ValueError: a group of one image has no sibling.
    """
    if group_size < 2 or len(weights) % group_size:
        raise ValueError(
            f"{len(weights)} images in groups of {group_size} have no siblings to take weights from; draw whole groups "
            "of at least 2 images a prompt"
        )
    others = rearrange(weights, "(p g) t -> p g t", g=group_size).roll(-1, dims=1)
    return normalize(rearrange(others, "p g t -> (p g) t"), normalization="none", floor=0.0, mask=mask)


def contrast(logprob_positive: Tensor, logprob_negative: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the mean |d| over the valid tokens of each image, nats: [B] fp32. The noise floor is compared with it."""
    magnitude = (logprob_negative.detach().float() - logprob_positive.detach().float()).abs()
    valid = _valid(magnitude, mask)
    return torch.where(valid, magnitude, 0.0).sum(dim=-1) / valid.sum(dim=-1).clamp(min=1)


def random_weights(
    shape: tuple[int, int],
    *,
    top: float = DEFAULT_TOP,
    mass: float = DEFAULT_MASS,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    rows: Rows | None = None,
) -> Tensor:
    """Return GCPO's weights with ranks drawn at random, a control: [B, T].

    The noise is drawn on the generator's device, for the whole batch: `rows` says which of its rows these are (None:
    all).
    """
    return normalize(_noise(shape, generator, rows).to(device), top=top, mass=mass, floor=0.0, mask=mask)


def shuffled(
    weights: Tensor,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Return the same weights [B, T] at other places, a control.

    Each row's valid tokens are permuted by a permutation of its own. The noise is drawn for the whole batch: `rows`
    says which of its rows these are (None: all)."""
    valid = _valid(weights, mask)
    noise = _noise(tuple(weights.shape), generator, rows).to(weights.device)
    source = noise.masked_fill(~valid, 2.0).argsort(
        dim=-1, stable=True
    )  # the valid tokens in random order, then the rest
    target = (~valid).to(torch.int8).argsort(dim=-1, stable=True)  # the valid tokens in their own order, then the rest
    return torch.zeros_like(weights).scatter(-1, target, torch.where(valid, weights, 0.0).gather(-1, source))


def statistics(weights: Tensor, *, top: float = DEFAULT_TOP, mask: Tensor | None = None) -> dict[str, float]:
    """Return how concentrated weights [B, T] are, averaged over the rows that have valid tokens, for logging.

    `effective_tokens`: (sum w)^2 / sum w^2 as a share of the row's valid tokens (1 = uniform). `top_share`: the share
    of the row's credit on the `top` share of its tokens with the largest weights (uniform: `top`).
    """
    valid = _valid(weights, mask)
    count = valid.sum(dim=-1).float()
    counted = count > 0
    weights = torch.where(valid, weights.detach().float(), 0.0)
    total = weights.sum(dim=-1)
    effective = total.square() / weights.square().sum(dim=-1) / count
    ordered = weights.sort(dim=-1, descending=True).values
    position = torch.arange(weights.shape[-1], device=weights.device)
    inside = (top * count.unsqueeze(-1) - position).clamp(0.0, 1.0)  # the token on the border counts in part
    top_share = (ordered * inside).sum(dim=-1) / total
    return {"effective_tokens": _mean(effective[counted]), "top_share": _mean(top_share[counted])}


_divergence = divergence  # `token_weights` and `normalize` have arguments of that name


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _noise(shape: tuple[int, ...], generator: torch.Generator | None, rows: Rows | None) -> Tensor:
    whole = shape if rows is None else (rows.total, *shape[1:])
    noise = torch.rand(whole, generator=generator, device="cpu" if generator is None else generator.device)
    return noise if rows is None else noise[rows.index.to(noise.device)]


def _valid(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones_like(values, dtype=torch.bool)
    if mask.shape != values.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected {tuple(values.shape)}, true = valid")
    return mask.bool()


def _average_rank(values: Tensor, valid: Tensor) -> Tensor:
    """Return the 1-based rank of each valid value [B, T] among the valid of its row.

    Equal values share the mean of their ranks."""
    ordered, order = values.masked_fill(~valid, torch.inf).sort(dim=-1)  # masked tokens come last
    count = ordered.shape[-1]
    place = torch.arange(count, device=ordered.device, dtype=torch.float32)
    border = ordered.new_ones(len(ordered), 1, dtype=torch.bool)
    change = ordered[:, 1:] != ordered[:, :-1]
    # A run of equal values reaches from the last place where one began to the next place where one ends.
    first = torch.where(torch.cat([border, change], dim=-1), place, 0.0).cummax(dim=-1).values
    last = torch.where(torch.cat([change, border], dim=-1), place, float(count)).flip(-1).cummin(dim=-1).values.flip(-1)
    return torch.empty_like(first).scatter_(-1, order, (first + last) / 2 + 1)
