"""Waits for a judge's answers and makes the scores of a batch of them. B images, K questions of one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch

from rewards.base import FailurePolicy, RewardOutput, check
from rewards.vlm.judge import Answer


class PendingAnswers:
    """Holds B lists of answers on their way, and the function that makes a score and parts of each list."""

    def __init__(
        self,
        futures: Sequence[Sequence[Future[Answer]]],
        combine: Callable[[int, list[Answer]], Answer],
        stop: threading.Event,
        *,
        name: str,
        prompts: Sequence[str],
        failure: FailurePolicy,
    ) -> None:
        self._futures, self._combine, self._stop = futures, combine, stop
        self._name, self._prompts, self._failure = name, list(prompts), failure

    def result(self) -> RewardOutput:
        """Wait for the scores [B] float32 on the CPU.

        The first error ends the other requests' waiting, and is raised.
        """
        try:
            answered = [[future.result() for future in row] for row in self._futures]
        except BaseException:
            self._stop.set()
            raise
        rows = [self._combine(index, row) for index, row in enumerate(answered)]
        names = dict.fromkeys(name for row in rows for name in row.parts)
        parts = {name: torch.tensor([row.parts.get(name, torch.nan) for row in rows]) for name in names}
        output = RewardOutput(torch.tensor([row.score for row in rows], dtype=torch.float32), parts)
        return check(output, len(rows), self._name, self._prompts, failure=self._failure)
