"""Where a run is, but for the weights: its step, its counts, and where its random choices stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from t2i_gcpo.algorithms import RunningMean
from t2i_gcpo.data.sampler import PromptSampler


@dataclass
class Progress:
    """Holds what a step changes before it updates the weights."""

    rng: torch.Generator
    """Source of every random choice but the order of the prompts."""
    prompts: PromptSampler
    step: int = 0
    images_sampled: int = 0
    images_scored: int = 0
    """Sampled images that have a score."""
    credit_mean: RunningMean = field(default_factory=RunningMean)
    """What token weights are divided by under `normalize_over: running`."""

    def state(self) -> dict[str, Any]:
        """Return it as tensors and plain values."""
        return {
            "step": self.step,
            "images_sampled": self.images_sampled,
            "images_scored": self.images_scored,
            "credit_mean": self.credit_mean.value,
            "rng": self.rng.get_state(),
            "prompts": self.prompts.state_dict(),
        }

    def set(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken. ValueError where it belongs to other prompts."""
        self.step, self.images_sampled = state["step"], state["images_sampled"]
        self.images_scored = state["images_scored"]
        self.credit_mean.value = state.get("credit_mean")  # none of before it was saved
        self.rng.set_state(state["rng"])
        self.prompts.load_state_dict(state["prompts"])
