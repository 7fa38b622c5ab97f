"""Draw a run's prompts in an order that can be saved and restored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from t2i_gcpo.data.options import PromptsConfig
from t2i_gcpo.data.selection import by_task
from t2i_gcpo.records import Prompt


class PromptSampler:
    """Draws prompts without end, each once before any comes again.

    With `balanced`, the tasks take turns in a random order, so that any stretch of as many draws as there are tasks,
    counted from the start, holds each task once; within a task each prompt comes once before any comes again. The state
    restores the sequence exactly.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, balanced: bool = PromptsConfig.balanced) -> None:
        if not prompts:
            raise ValueError("there are no prompts to draw from")
        self.prompts = tuple(prompts)
        self._pools = by_task(prompts) if balanced else {"all": list(range(len(prompts)))}
        self._generator = torch.Generator().manual_seed(seed)
        self._tasks: list[str] = []
        self._queues: dict[str, list[int]] = {task: [] for task in self._pools}

    def draw(self, n: int) -> list[Prompt]:
        """Return the next `n` prompts."""
        return [self.prompts[self._next()] for _ in range(n)]

    def _next(self) -> int:
        if not self._tasks:
            self._tasks = self._shuffled(list(self._pools))
        task = self._tasks.pop()
        if not self._queues[task]:
            self._queues[task] = self._shuffled(self._pools[task])
        return self._queues[task].pop()

    def _shuffled(self, items: list[Any]) -> list[Any]:
        return [items[k] for k in torch.randperm(len(items), generator=self._generator).tolist()]

    def _fingerprint(self) -> str:
        """Return a hash that tells apart the prompts that a state belongs to."""
        lines = "\n".join(f"{task}: {self.prompts[k].text}" for task, indices in self._pools.items() for k in indices)
        return hashlib.sha256(lines.encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, which `torch.load(weights_only=True)` reads."""
        return {
            "prompts": self._fingerprint(),
            "generator": self._generator.get_state(),
            "tasks": list(self._tasks),
            "queues": {task: list(queue) for task, queue in self._queues.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. ValueError where it belongs to other prompts."""
        if state["prompts"] != self._fingerprint():
            raise ValueError(
                f"the training prompts are not those of the run that is resumed ({len(self.prompts)} prompts now); "
                "give it the same prompt file, or start a new run"
            )
        self._generator.set_state(state["generator"])
        self._tasks = list(state["tasks"])
        self._queues = {task: list(queue) for task, queue in state["queues"].items()}
