"""Weights of other methods that choose tokens: STAGE's similarity weights, and critical tokens.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, T = rows * columns tokens in raster order, D width of
a token's vector. Weights are fp32 without gradient. Nothing loops over rows or tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange, reduce
from torch import Tensor

CRITICAL_SHARE = 0.1
"""Share of an image's tokens that each of the three criteria of `critical_tokens` takes (2509.22485's code)."""


def opposite_similarity(vectors: Tensor, advantages: Tensor, group_size: int) -> Tensor:
    """Return how like each token is to those at its place in siblings of the other sign: [B, T] in [-1, 1].

    STAGE (2509.25027, its code): the mean, over the images j of the prompt with `A_i A_j <= 0`, of the cosine of
    `vectors` [B, T, D] of image i and j at the same place; an image is like itself by 0. advantages: [B]. An image
    without such siblings has 1, so `dissimilarity` gives it no weight.
    """
    unit = _unit(vectors, group_size)
    signed = rearrange(advantages.detach().float().sign(), "(p g) -> p g", g=group_size)
    opposite = (signed.unsqueeze(2) * signed.unsqueeze(1) <= 0).float()
    others = opposite * (1 - torch.eye(group_size, device=opposite.device))
    total = torch.einsum("pitd,pij,pjtd->pit", unit, others, unit)
    count = opposite.sum(dim=2, keepdim=True)
    return rearrange(torch.where(count > 0, total / count.clamp(min=1), 1.0), "p g t -> (p g) t")


def dissimilarity(
    similarity: Tensor, *, mask: Tensor | None = None, total: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return STAGE's token weights from `opposite_similarity`: [B, T], mean 1 over the valid tokens of the batch.

    `clamp((1 - s) / 2, 0, 1)`: a token that images of the other sign have too says little about the reward. Where all
    are 0 the weights are 1. mask [B, T] bool, true = valid. total: the sum over the processes that share the batch, of
    a scalar (None: there is one).
    """
    valid = torch.ones_like(similarity, dtype=torch.bool) if mask is None else mask.bool()
    weights = torch.where(valid, ((1 - similarity) / 2).clamp(0.0, 1.0), 0.0)
    amount, count = weights.sum(), valid.sum()
    mean = amount / count.clamp(min=1) if total is None else total(amount) / total(count).clamp(min=1)
    return torch.where(mean == 0, valid.float(), weights / torch.where(mean == 0, 1.0, mean))


def similarity_kl_weights(similarity: Tensor) -> Tensor:
    """Return STAGE's factor of each token's KL, `0.5 + 0.5 clamp(1 + s, 0, 1)` in [0.5, 1]: [B, T]."""
    return 0.5 + 0.5 * (1 + similarity).clamp(0.0, 1.0)


def critical_tokens(
    entropy: Tensor, vectors: Tensor, group_size: int, grid: tuple[int, int], *, share: float = CRITICAL_SHARE
) -> Tensor:
    """Choose the critical tokens of each image, [B, T] bool (Group Critical-token Policy Optimization, 2509.22485).

    As in its code, with k = int(share * T): the first k tokens; the k tokens, first and last tenth left out, where the
    entropy changes most over the image (`entropy_gradient`); and the k of the rest at whose places the siblings are
    least alike, by the mean cosine of their `vectors` [B, T, D]. entropy: [B, T] of the distribution that was sampled,
    nats; grid: (rows, columns).
    """
    length = entropy.shape[1]
    k, offset = int(share * length), int(0.1 * length)
    chosen = torch.zeros_like(entropy, dtype=torch.bool)
    chosen[:, :k] = True
    change = entropy_gradient(entropy, grid)
    place = torch.arange(length, device=entropy.device)
    inside = (place >= offset) & (place < offset + int(0.8 * length))
    chosen = chosen | _largest(change.masked_fill(~inside, -torch.inf), k)
    alike = sibling_similarity(vectors, group_size)
    return chosen | _largest((-alike).masked_fill(chosen, -torch.inf), k)


def entropy_gradient(entropy: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return how fast the entropy [B, T] changes over the grid, [B, T] (2509.22485's code).

    The entropy is first averaged over a token and its neighbours that are drawn before it (left, and the three above);
    then it is the length of the gradient by central differences, one-sided at the border.
    """
    rows, columns = grid
    image = rearrange(entropy.detach().float(), "b (r c) -> b r c", r=rows)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 0), value=torch.nan)
    above, same = padded[:, :-1], padded[:, 1:]
    neighbours = torch.stack([image, same[:, :, :columns], *(above[:, :, k : k + columns] for k in range(3))])
    mean = neighbours.nanmean(dim=0)
    # A grid of one row or column does not change that way.
    changes = [torch.gradient(mean, dim=axis)[0] for axis in (1, 2) if mean.shape[axis] > 1]
    squares = sum((change.square() for change in changes), torch.zeros_like(mean))
    return rearrange(squares.sqrt(), "b r c -> b (r c)")


def sibling_similarity(vectors: Tensor, group_size: int) -> Tensor:
    """Return the mean cosine of two siblings' vectors [B, T, D] at each place, [B, T]: the same for a whole group."""
    unit = _unit(vectors, group_size)
    # The square of the sum holds every pair twice, and each image with itself once.
    total = reduce(unit, "p g t d -> p t d", "sum").square().sum(dim=-1)
    itself = unit.square().sum(dim=-1).sum(dim=1)
    pairs = group_size * (group_size - 1)
    return ((total - itself) / pairs).repeat_interleave(group_size, dim=0)


def running_ratio(logprob: Tensor, logprob_reference: Tensor, bound: float) -> Tensor:
    """Return the mean of `exp(clamp(log-prob - reference's, ±bound))` over a token and all before it: [B, T].

    The dynamic weight of critical tokens (2509.22485's code, with bound 0.5): tokens after a stretch that the policy
    has come to prefer count more. Like there, the gradient flows through it.
    """
    ratio = (logprob - logprob_reference.detach()).clamp(-bound, bound).exp()
    return ratio.cumsum(dim=-1) / torch.arange(1, ratio.shape[-1] + 1, device=ratio.device, dtype=ratio.dtype)


def _unit(vectors: Tensor, group_size: int) -> Tensor:
    """Return the vectors [B, T, D] of length 1, by prompt and image: [P, G, T, D]."""
    unit = torch.nn.functional.normalize(vectors.detach().float(), dim=-1)
    return rearrange(unit, "(p g) t d -> p g t d", g=group_size)


def _largest(values: Tensor, k: int) -> Tensor:
    """Say which are the k largest values of each row, [B, T] bool."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    return chosen.scatter(-1, values.topk(k, dim=-1).indices, True) if k else chosen
