"""Requests that come at the same time, gathered into batches for one scorer. B images, H, W their sides."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewards.base import Reward, RewardOutput, check


@dataclass(eq=False)
class Job:
    """One request's images, and what became of them."""

    images: Tensor
    """[B, 3, H, W] uint8."""
    prompts: list[str]
    metadata: list[dict[str, Any]]
    done: threading.Event = field(default_factory=threading.Event)
    output: RewardOutput | None = None
    error: Exception | None = None
    abandoned: bool = False
    """Nobody waits for it any more: it is not scored."""

    def finish(self, output: RewardOutput | None = None, error: Exception | None = None) -> None:
        self.output, self.error = output, error
        self.done.set()


class Stopped(RuntimeError):
    """The gatherer was closed before the job was scored."""


class Gatherer:
    """A thread that scores: all jobs of one image size that wait while it is busy are scored together, `batch` images at most.

    Nothing waits for company: a job that comes alone is scored alone. Where the scorer raises, each job of the batch is scored by
    itself, so that an error reaches only the request that caused it.
    """

    def __init__(self, reward: Reward, *, name: str, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"the server's batch is {batch}; it must be at least 1")
        self.reward, self.name, self.batch = reward, name, batch
        # The parts of a weighted sum are asked for by whoever normalises them.
        self.weights: dict[str, float] = dict(reward.weights or {})
        self.counts = {"requests": 0, "images": 0, "batches": 0}
        """What was scored so far. A batch is one call of the scorer."""
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self.closed = False
        """Whether jobs are dropped and not scored."""
        self._thread = threading.Thread(target=self._work, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """The job's `done` is set when it is scored, has failed or is dropped."""
        with self._changed:
            if self.closed:
                job.finish(error=Stopped("the server is stopping"))
                return
            self._waiting.append(job)
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Take no more jobs, score those that wait for `seconds` at most, drop the rest."""
        with self._changed:
            self.closed = True
            self._changed.notify()
        self._thread.join(seconds)
        self._drop()

    def _work(self) -> None:
        jobs: list[Job] = []
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self.closed)
                    if not self._waiting:
                        return
                    jobs = self._take()
                self._score([job for job in jobs if not job.abandoned])
        finally:  # also where the scorer ended its thread: nobody may wait for ever
            with self._changed:
                self.closed = True
            self._drop(*jobs)

    def _take(self) -> list[Job]:
        """The job that waited longest, and those that fit in with it. Jobs of other sizes keep their places."""
        taken = [self._waiting.popleft()]
        count, left = len(taken[0].images), deque[Job]()
        for job in self._waiting:
            if job.images.shape[1:] == taken[0].images.shape[1:] and count + len(job.images) <= self.batch:
                taken.append(job)
                count += len(job.images)
            else:
                left.append(job)
        self._waiting = left
        return taken

    def _drop(self, *jobs: Job) -> None:
        """End the jobs that wait, and `jobs`, where they are not done."""
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
        for job in (*jobs, *waiting):
            if not job.done.is_set():
                job.finish(error=Stopped("the server is stopping"))

    def _score(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            output = self._call(jobs)
        except Exception as error:  # the scorer's, whatever it is: the request gets it, and the server goes on
            if len(jobs) == 1:
                jobs[0].finish(error=error)
                return
            for job in jobs:
                self._score([job])
            return
        start = 0
        for job in jobs:
            rows = slice(start, start + len(job.images))
            job.finish(self._rows(output, rows))
            start = rows.stop
        self.counts["requests"] += len(jobs)
        self.counts["images"] += start

    def _call(self, jobs: list[Job]) -> RewardOutput:
        images = torch.cat([job.images for job in jobs])
        prompts = [prompt for job in jobs for prompt in job.prompts]
        metadata = [row for job in jobs for row in job.metadata]
        self.counts["batches"] += 1
        with torch.no_grad():
            output = self.reward(images, prompts, metadata)
        if not isinstance(output, RewardOutput):
            raise ValueError(f"reward {self.name!r} returned {type(output).__name__}; it must return a RewardOutput")
        # What a failed image means is for the client to say.
        return check(output, len(images), self.name, prompts, failure="mark")

    def _rows(self, output: RewardOutput, rows: slice) -> RewardOutput:
        """A job's rows. A part that says nothing of them belongs to another job's images, and an answer does not depend on company; the
        parts of a weighted sum stay."""
        parts = {name: values[rows] for name, values in output.parts.items()}
        parts = {
            name: values for name, values in parts.items() if name in self.weights or not bool(values.isnan().all())
        }
        return RewardOutput(output.scores[rows], parts)
