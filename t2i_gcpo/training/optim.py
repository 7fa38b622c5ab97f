"""Optimise: AdamW with decay where it belongs, learning rates as functions of the step, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from t2i_gcpo.training.options import OptimConfig
from t2i_gcpo.utils.finite import all_finite

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, floor: 1.0,
    "linear": lambda progress, floor: 1.0 - (1.0 - floor) * progress,
    "cosine": lambda progress, floor: floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def adamw(model: nn.Module, options: OptimConfig) -> torch.optim.AdamW:
    """Make AdamW (1711.05101) over the parameters that require gradients.

    Weight decay acts on matrices only: norms, biases and other parameters with fewer than two dimensions have none.
    ValueError where nothing is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("no parameter of the model requires a gradient; there is nothing to train")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        fused=fused(trainable[0].device),
    )


def fused(device: torch.device) -> bool | None:
    """Return whether AdamW updates everything in one kernel: on CUDA. Elsewhere None: torch's own choice."""
    return True if device.type == "cuda" else None


def lr_factor(step: int, options: OptimConfig, steps: int) -> float:
    """Return the learning rate of update `step` (0, 1, ...) of `steps` as a share of its peak.

    Update k of the warm-up has (k + 1) / warmup_steps, so that none is wasted on a rate of 0 and the last one of the
    warm-up has the peak. `linear` and `cosine` (1608.03983, one cycle) then go from the peak down to `min_ratio`, which
    the last of `steps` updates has.
    """
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    first = max(options.warmup_steps - 1, 0)  # the last update that has the peak
    progress = (step - first) / max(steps - 1 - first, 1)
    return SCHEDULES[options.schedule](min(progress, 1.0), options.min_ratio)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients down to a global L2 norm of `max_norm`, and return the norm before ([] fp32).

    Where that norm is not finite the gradients are left as they are: the caller skips the update.
    """
    parameters = [p for p in parameters if p.grad is not None]
    return clip_to(parameters, max_norm, nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def clip_to(parameters: Iterable[Tensor], max_norm: float, norm: Tensor) -> Tensor:
    """Scale gradients whose global L2 norm is `norm` ([] of any precision) down to `max_norm`; return it in fp32.

    The norm may be that of more gradients than these.
    """
    if torch.isfinite(norm):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.float()


class NonFiniteGuard:
    """Count updates in a row that were skipped for a non-finite loss or gradient, and give up after `limit` of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = 0
        self.total = 0

    def ok(self, *values: Tensor) -> bool:
        """Return whether to go on with the update. FloatingPointError at the `limit`-th non-finite one in a row."""
        return self.count(all_finite(*values))

    def count(self, finite: bool) -> bool:
        """Do the same for values that were looked at already."""
        if finite:
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        self.total += 1
        if self.in_a_row >= self.limit:
            raise FloatingPointError(
                f"the loss or gradient was not finite in {self.in_a_row} updates in a row; lower the learning rate "
                "(--optim.lr), lengthen the warm-up (--optim.warmup-steps), or train in float32 (--generator.dtype)"
            )
        return False
