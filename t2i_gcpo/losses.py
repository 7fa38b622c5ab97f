"""The clipped policy loss and the KL to a reference, with every mean's denominator by name.

B rows, T tokens; log-probs in nats. A loss over a batch is a sum over its tokens divided by a denominator. Pass the
whole batch's `denominator` with each micro-batch, and the micro-batches' gradients add up to the batch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["token", "sequence", "constant"]
KLEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class LossOutput:
    """A loss to differentiate and what to log beside it."""

    loss: Tensor
    """Scalar fp32."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Name -> scalar without gradient, on the loss's device; means are over the valid tokens that were passed."""


def reduction_denominator(
    mask: Tensor, reduction: Reduction, total: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return what `reduce` divides by, scalar fp32. mask [B, T] bool, true = valid.

    `token`: the number of valid tokens (DAPO, 2503.14476). `sequence`: the number of rows with a valid token;
    `reduce` takes each row's own mean first (GRPO, 2402.03300). `constant`: B * T, whatever the mask (Dr. GRPO,
    2503.20783). With nothing valid it is 1, and the loss 0. total: the sum over the processes that share the batch, of
    a scalar (None: there is one).
    """
    if reduction == "token":
        amount = mask.sum()
    elif reduction == "sequence":
        amount = mask.any(dim=-1).sum()
    elif reduction == "constant":
        amount = torch.tensor(mask.numel(), device=mask.device)
    else:
        raise ValueError(f"reduction is {reduction!r}; allowed: {', '.join(get_args(Reduction))}")
    return (amount if total is None else total(amount)).clamp(min=1).float()


def reduce(values: Tensor, mask: Tensor, reduction: Reduction, denominator: Tensor | float | None = None) -> Tensor:
    """Return the sum of values [B, T] over valid tokens (of `sequence`: the sum of the rows' means) / `denominator`.

    None takes `reduction_denominator(mask, reduction)`. Values of masked tokens may be anything, their gradient is 0.
    """
    if denominator is None:
        denominator = reduction_denominator(mask, reduction)
    kept = torch.where(mask, values, 0.0)
    if reduction == "sequence":
        return (kept.sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)).sum() / denominator
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; allowed: {', '.join(get_args(Reduction))}")
    return kept.sum() / denominator


def policy_loss(
    logprob: Tensor,
    logprob_old: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    scale: Tensor | None = None,
    importance: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    reduction: Reduction = "token",
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """Return the mean of PPO's clipped surrogate (1707.06347).

    For each token it is `-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)`.

    >>> logprob = torch.tensor([[0.5, 0.2]]).log().requires_grad_()
    >>> output = policy_loss(logprob, logprob.detach(), torch.tensor([[1.5, 0.5]]))
    >>> output.loss.backward()
    >>> output.loss.item(), logprob.grad
    (-1.0, tensor([[-0.7500, -0.2500]]))

    logprob [B, T] with gradient, logprob_old [B, T]; ratio = exp(logprob - logprob_old). advantages [B, T], or [B]
    for one a row. mask [B, T] bool (None: all valid). scale [B, T]: factors of the tokens' losses (None: 1); a token of
    scale 0 is in no metric. importance [B, T]: further factors, of tokens drawn from other log-probs than `logprob_old`
    (`truncated_importance`). `reduction` and `denominator` as in `reduce`; different bounds are DAPO's "clip higher".
    Metrics: `clip_fraction_low` / `_high` (share of tokens whose gradient the lower / upper
    bound took away), `ratio_mean`, `ratio_max`, and KL(old || new) by `kl_old_k1`, `kl_old_k3`. ValueError: shapes or
    bounds that do not fit.
    """
    if not 0 <= clip_low <= 1 or clip_high < 0:
        raise ValueError(
            f"clip_low={clip_low}, clip_high={clip_high}; clip_low must be in [0, 1], clip_high at least 0"
        )
    if advantages.ndim == 1:
        advantages = advantages.unsqueeze(-1).expand_as(logprob)
    mask = torch.ones_like(logprob, dtype=torch.bool) if mask is None else mask.bool()
    given = {"logprob": logprob, "logprob_old": logprob_old, "advantages": advantages, "mask": mask}
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if logprob.ndim != 2 or len(set(shapes.values())) > 1:
        raise ValueError(f"shapes are {shapes}; expected [B, T] for all (advantages may be [B])")
    advantages = advantages.detach().float()
    # Masked before exp: a token that does not count must not overflow, as 0 * inf in the backward pass is NaN.
    log_ratio = torch.where(mask, logprob.float() - logprob_old.detach().float(), 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = -torch.minimum(ratio * advantages, clipped * advantages)
    for factor in (scale, importance):
        surrogate = surrogate if factor is None else surrogate * factor
    loss = reduce(surrogate, mask, reduction, denominator)
    counted = mask if scale is None else mask & (scale > 0)
    with torch.no_grad():
        tokens = counted.sum().clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            return torch.where(counted, values, 0.0).sum() / tokens

        metrics = {
            "clip_fraction_low": mean(((ratio < 1 - clip_low) & (advantages < 0)).float()),
            "clip_fraction_high": mean(((ratio > 1 + clip_high) & (advantages > 0)).float()),
            "ratio_mean": mean(ratio),
            "ratio_max": torch.where(counted, ratio, 0.0).amax(),
            "kl_old_k1": mean(-log_ratio),
            "kl_old_k3": mean(torch.expm1(log_ratio) - log_ratio),
        }
    return LossOutput(loss, metrics)


def truncated_importance(logprob: Tensor, logprob_sampled: Tensor, cap: float) -> Tensor:
    """Return `min(exp(logprob - logprob_sampled), cap)`: [B, T], [B, T] -> [B, T] fp32 without gradient.

    It corrects a loss for tokens that were drawn from slightly other log-probs than training computes for the same
    weights (another kernel, another order of sums, bf16). The cap bounds the variance, at the price of a bias where it
    acts (Ionides 2008, "Truncated Importance Sampling"; for rollouts: Yao et al. 2025, "Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training", https://fengyao.notion.site/off-policy-rl). ValueError: a cap not above
    0.
    """
    if not cap > 0:
        raise ValueError(f"cap is {cap}; it must be above 0")
    # Capped before exp: a large difference must not overflow.
    difference = logprob.detach().float() - logprob_sampled.detach().float()
    return difference.clamp(max=math.log(cap)).exp()


def kl(logprob: Tensor, logprob_reference: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """Estimate KL(policy || reference) at each sampled token, nats: [B, T], [B, T] -> [B, T] fp32.

    The gradient goes through logprob.

    With `d = logprob_reference - logprob` (Schulman, "Approximating KL divergence"): `k1 = -d`, unbiased but noisy,
    and of expected on-policy gradient 0, so a metric only; `k2 = d^2 / 2`, whose on-policy gradient is that of the
    KL; `k3 = expm1(d) - d`, at least 0 and of low variance, whose on-policy gradient is that of
    KL(reference || policy). All assume tokens drawn from the policy whose log-probs these are; on guided rollouts
    with conditional log-probs they are biased.
    """
    d = logprob_reference.detach().float() - logprob.float()
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return 0.5 * d.square()
    if estimator == "k3":
        return torch.expm1(d) - d
    raise ValueError(f"KL estimator is {estimator!r}; allowed: {', '.join(get_args(KLEstimator))}")


def kl_weights(weights: Tensor) -> Tensor:
    """Return `0.5 + 0.5 clamp(2 - 2 w, 0, 1)` in [0.5, 1] (2605.29198's code).

    Credit weights [B, T] -> KL weights [B, T]. Tokens that the prompt drives (w >= 1) are held half as firmly as those
    it hardly touches (w <= 0.5).
    """
    return 0.5 + 0.5 * (2 - 2 * weights.detach()).clamp(0.0, 1.0)
