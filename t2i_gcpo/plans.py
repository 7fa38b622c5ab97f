"""The trainer's groups of options: plain values, for which `optim.py` and `checkpoint.py` say what they do."""

from __future__ import annotations

from dataclasses import dataclass


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
