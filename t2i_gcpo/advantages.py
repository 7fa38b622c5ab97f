"""Group-relative advantages: which images of a prompt did better than their siblings.

P prompts, G images a prompt, B = P * G rows with row = p * G + g. A reward that is not finite marks a failed image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from einops import rearrange, repeat
from torch import Tensor

Scale = Literal["std", "none"]

_LARGE = 2.0**40
"""Rewards above it are scaled before they are squared: 2^80 times the images of any group is far below float32's
2^128."""
DEFAULT_EPS = 1e-4
"""Added to a group's standard deviation (2402.03300's published code)."""


def valid_rows(rewards: Tensor) -> Tensor:
    """Tell which images have a finite reward: [B] bool.

    The others are left out of their group's statistics and of the loss.
    """
    return rewards.isfinite()


def informative_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Tell which groups have valid rewards [B] that differ: [P] bool.

    DAPO's dynamic sampling (2503.14476) keeps only these: the others have advantage 0 throughout.
    """
    grouped = _grouped(rewards, group_size)
    lowest = grouped.masked_fill(~grouped.isfinite(), torch.inf).amin(dim=1)
    highest = grouped.masked_fill(~grouped.isfinite(), -torch.inf).amax(dim=1)
    return highest > lowest  # false where no reward is valid (-inf > inf), and where only one is


def group_advantages(rewards: Tensor, group_size: int, *, scale: Scale = "std", eps: float = DEFAULT_EPS) -> Tensor:
    """Return `A = (r - mean) / (std + eps)` within each group of `group_size` rows: rewards [B] -> [B] fp32.

    >>> group_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), group_size=2)
    tensor([ 0.7070, -0.7070,  0.0000,  0.0000])

    GRPO (2402.03300), with ddof = 1; `scale="none"` leaves the division out (Dr. GRPO, 2503.20783). Mean and std are
    over the group's valid rewards. Failed images, groups of equal rewards and groups with fewer than two valid ones
    get 0. ValueError: a group size below 2, a batch that is no multiple of it, an unknown scale.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"advantage scale is {scale!r}; allowed: {', '.join(get_args(Scale))}")
    grouped = _grouped(rewards, group_size)
    valid = grouped.isfinite()
    count = valid.sum(dim=1, keepdim=True)
    unit = _unit(grouped, valid)
    centred = torch.where(valid, grouped / unit, 0.0)
    centred = torch.where(valid, centred - centred.sum(dim=1, keepdim=True) / count.clamp(min=1), 0.0)
    if scale == "std":
        variance = centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + eps / unit)
    else:
        centred = centred * unit
    # Equal rewards leave rounding noise about their mean: it is no signal.
    advantages = torch.where(informative_groups(rewards, group_size).unsqueeze(1), centred, 0.0)
    return rearrange(advantages, "p g -> (p g)")


def _unit(grouped: Tensor, valid: Tensor) -> Tensor:
    """Return [P, 1], what large rewards are divided by so that nothing overflows.

    Neither their sum nor their squares leave float32's range.

    A power of two, by which a division is exact, and 1 for rewards of a size that is usual: their advantages are the
    same bits.
    """
    largest = torch.where(valid, grouped, 0.0).abs().amax(dim=1, keepdim=True)
    return torch.where(largest > _LARGE, torch.exp2(torch.frexp(largest).exponent.to(largest.dtype) - 1), 1.0)


def part_advantages(
    parts: Mapping[str, Tensor],
    weights: Mapping[str, float],
    group_size: int,
    *,
    scale: Scale = "std",
    eps: float = DEFAULT_EPS,
) -> Tensor:
    """Return `sum_k weight_k * group_advantages(part_k)`: [B] fp32.

    Each part of a reward is normalised within its group before they are added, so that a part with little spread has as
    much say as its weight.

    parts: name -> [B]; weights: name -> factor, for every part that counts. A row with one failed part has failed: it
    is left out of all parts' statistics and gets 0. ValueError: weights for parts that are not there, or no weights.
    """
    unknown = sorted(set(weights) - set(parts))
    if unknown or not weights:
        raise ValueError(
            f"weights for {sorted(weights)}, parts {sorted(parts)}; give a weight for at least one of the parts"
        )
    rewards = torch.stack([parts[name].float() for name in weights])
    failed = ~valid_rows(rewards).all(dim=0)
    rewards = rewards.masked_fill(failed, torch.nan)
    total = torch.zeros_like(rewards[0])
    for reward, weight in zip(rewards, weights.values(), strict=True):
        total = total + weight * group_advantages(reward, group_size, scale=scale, eps=eps)
    return total


def batch_normalized(advantages: Tensor, valid: Tensor, *, eps: float = DEFAULT_EPS) -> Tensor:
    """`(A - mean) / (std + eps)` over the whole batch: [B] -> [B] fp32. GDPO's second normalisation (2601.05242, as its
    code for TRL has it), after the parts of the reward were normalised within their groups and added.

    The sum of several normalised parts spreads more the more parts there are, and less the more they disagree; this
    brings it back to a spread of 1, so that neither the number of parts nor their agreement changes the step size.
    Mean and std (ddof = 1) are over the valid rows of the batch. Failed rows get 0, and so do all rows where fewer than
    two are valid or all valid ones are equal. valid: [B] bool.
    """
    if advantages.shape != valid.shape or advantages.ndim != 1:
        raise ValueError(
            f"advantages have shape {tuple(advantages.shape)}, valid {tuple(valid.shape)}; expected [B] and [B]"
        )
    chosen = advantages.float()[valid]
    if len(chosen) < 2:
        return torch.zeros_like(advantages, dtype=torch.float32)
    centred = torch.where(valid, advantages.float() - chosen.mean(), 0.0)
    return torch.where(chosen.amax() > chosen.amin(), centred / (chosen.std() + eps), 0.0)


def closest_entropy_bonus(rewards: Tensor, entropy: Tensor, reference_entropy: Tensor, group_size: int) -> Tensor:
    """Return STAGE's entropy reward without its coefficient, to add to the rewards: [B] fp32.

    2509.25027, as its code has it.

    `b = 1 / (1 + (H_reference - H)^2)` for the images that share their group's highest reward, less the mean of b
    over these; 0 for all others. It ranks equally good images by how near their entropy stayed to the reference
    model's. entropy, reference_entropy: [B], mean entropy over an image's tokens, nats.
    """
    grouped = _grouped(rewards, group_size)
    valid = grouped.isfinite()
    best = valid & (grouped == grouped.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True))
    bonus = 1.0 / (1.0 + (reference_entropy.float() - entropy.float()).square())
    bonus = torch.where(best, rearrange(bonus, "(p g) -> p g", g=group_size), 0.0)
    mean = bonus.sum(dim=1, keepdim=True) / best.sum(dim=1, keepdim=True).clamp(min=1)
    return rearrange(torch.where(best, bonus - mean, 0.0), "p g -> (p g)")


def per_row(groups: Tensor, group_size: int) -> Tensor:
    """Repeat one value a group for each of its rows: [P] -> [B]."""
    return repeat(groups, "p -> (p g)", g=group_size)


def _grouped(rewards: Tensor, group_size: int) -> Tensor:
    if group_size < 2:
        raise ValueError(
            f"group size is {group_size}; it must be at least 2, as an image is compared with its siblings"
        )
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}; expected [B] with B a multiple of {group_size}")
    return rearrange(rewards.float(), "(p g) -> p g", g=group_size)
