"""A clock of phases: it says where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Counts seconds by phase. On a GPU each phase waits for its kernels, so that the time lands where it was spent."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._started = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - started

    def report(self) -> dict[str, float]:
        """Return `time/<phase>` of each phase, `time/other` and `time/step`, in seconds since the clock was made."""
        total = self._now() - self._started
        times = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        return {**times, "time/other": total - sum(self.seconds.values()), "time/step": total}
