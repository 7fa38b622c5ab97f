"""Optimise the embedded models: Muon and AdamW under a cosine schedule, and an average of the weights.

Muon and AdamW under a cosine schedule, and an average of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class OptimisationSettings(Protocol):
    """The options that a trainer's settings have for it; rates start low for `warmup` steps and fall to a fiftieth."""

    @property
    def steps(self) -> int: ...

    @property
    def lr(self) -> float:
        """The learning rate of AdamW: embeddings, heads and all vectors."""
        ...

    @property
    def muon_lr(self) -> float:
        """The learning rate of Muon: the hidden matrices."""
        ...

    @property
    def warmup(self) -> int: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def ema(self) -> float:
        """The decay of the average of the weights."""
        ...


class Optimisation:
    """Make steps of some modules, and keep what a resumed run needs of them."""

    def __init__(
        self, modules: nn.Module, settings: OptimisationSettings, is_hidden: Callable[[str, nn.Parameter], bool]
    ) -> None:
        """Take the modules; `is_hidden(name, parameter)` says whether Muon takes a parameter, a matrix."""
        self.modules, self.settings = modules, settings
        self.average = {name: value.detach().clone() for name, value in modules.named_parameters()}
        matrices = [p for name, p in modules.named_parameters() if p.ndim == 2 and is_hidden(name, p)]
        chosen = {id(p) for p in matrices}
        others = [p for p in modules.parameters() if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0),
            torch.optim.Muon(
                matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
        ]
        self.step_number = 0

    def learning_rate_factor(self) -> float:
        progress = self.step_number / self.settings.steps
        warm = min(1.0, (self.step_number + 1) / self.settings.warmup)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))

    def step(self, loss: Tensor) -> Tensor:
        """Go backward, clip at 1, step both optimisers and the average.

        Returns the gradient's norm, which a GPU may still be computing.
        """
        self.modules.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        for optimizer, lr in zip(self.optimizers, (self.settings.lr, self.settings.muon_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * self.learning_rate_factor()
            optimizer.step()
        self.step_number += 1
        # A short warm-up of the average, so that early steps do not hold on to the random start.
        decay = min(self.settings.ema, self.step_number / (self.step_number + 20))
        with torch.no_grad():
            names, values = zip(*self.modules.named_parameters(), strict=True)
            torch._foreach_lerp_([self.average[name] for name in names], list(values), 1 - decay)
        return norm

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put values by name into the modules; returns copies of those that were there."""
        before = {name: value.detach().clone() for name, value in self.modules.named_parameters()}
        for name, parameter in self.modules.named_parameters():
            parameter.copy_(values[name])
        return before

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": self.modules.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step_number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.average = state["average"]
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.step_number = state["step"]
