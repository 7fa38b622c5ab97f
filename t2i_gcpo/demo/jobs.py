"""Says which job uses a model now, so that a click that has to wait is answered at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: What the answer to a click that has to wait begins with.
QUEUED = "Queued behind "


class Jobs:
    """Knows the job that uses a model; the queue of the page (`context.MODEL`) lets one run at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, str] = {}
        self._number = 0

    @contextmanager
    def doing(self, words: str) -> Iterator[Job]:
        """Count as the running job inside; words: what it is, e.g. "a live training"."""
        with self._lock:
            self._number += 1
            number = self._number
            self._running[number] = words
        try:
            yield Job(self, number, words)
        finally:
            with self._lock:
                del self._running[number]

    def running(self) -> str | None:
        """Return what the running job does and how far it is; None where no job runs."""
        with self._lock:
            return next(iter(self._running.values()), None)

    def answer(self) -> str | None:
        """Return the sentence for a click that has to wait; None where it does not."""
        running = self.running()
        if running is None:
            return None
        return f"{QUEUED}{running}. Jobs run one at a time, in the order of the clicks; this one starts by itself."

    def _report(self, number: int, words: str) -> None:
        with self._lock:
            self._running[number] = words


class Job:
    """Is one running job, which may say how far it is."""

    def __init__(self, jobs: Jobs, number: int, words: str) -> None:
        self._jobs, self._number, self._words = jobs, number, words

    def at(self, progress: str) -> None:
        """Say how far the job is, e.g. "step 3 of 6"."""
        self._jobs._report(self._number, f"{self._words}, {progress}")
