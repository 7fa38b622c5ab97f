"""The trainer's groups of options: plain values, for which `optim.py` and `checkpoint.py` say what they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from t2i_gcpo.utils.checks import above_zero, at_least, share


@dataclass
class Schedule:
    """The learning rate's course and AdamW's options, as in `optim.py`."""

    lr: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    schedule: str = "constant"
    warmup_steps: int = 10
    min_ratio: float = 0.05
    max_grad_norm: float = 1.0


@dataclass
class CheckpointPlan:
    """When checkpoints are written: every `every` steps (0: at the end only), `keep` newest (0: all) and the best kept."""

    every: int = 50
    keep: int = 2
    keep_best: bool = True


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay; norms, biases and other one-dimensional parameters have none."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up, over `steps`."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    min_ratio: float = 0.05
    """Share of the peak learning rate that linear and cosine end at."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    def __post_init__(self) -> None:
        above_zero("optim.", lr=self.lr, eps=self.eps, max_grad_norm=self.max_grad_norm)
        at_least(0, "optim.", weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)
        share("optim.", min_ratio=self.min_ratio)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas are {self.betas}; each must be in [0, 1)")


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: int = 50
    """Steps between checkpoints; 0 writes one at the end only."""
    keep: int = 2
    """Newest checkpoints kept; 0 keeps all."""
    keep_best: bool = True
    """Keep the checkpoint with the best validation score as well."""

    def __post_init__(self) -> None:
        at_least(0, "checkpoint.", every=self.every, keep=self.keep)
