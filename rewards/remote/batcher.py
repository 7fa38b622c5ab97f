"""Batches requests that come at the same time for one scorer. B images, H, W their sides."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewards.base import Reward, RewardOutput, check, join


@dataclass(eq=False)
class Job:
    """Holds one request, and what became of it."""

    images: Tensor | None
    """[B, 3, H, W] uint8; None: only the prompts are checked."""
    prompts: list[str]
    metadata: list[dict[str, Any]]
    done: threading.Event = field(default_factory=threading.Event)
    output: RewardOutput | None = None
    """None where there is an error, and where only the prompts were checked."""
    error: Exception | None = None
    abandoned: bool = False
    """Nobody waits for it any more: it is not scored."""

    def finish(self, output: RewardOutput | None = None, error: Exception | None = None) -> None:
        """Note what became of it, and wake up whoever waits for it."""
        self.output, self.error = output, error
        self.done.set()


class Stopped(RuntimeError):
    """Says that the batcher was closed before the job was scored."""


class Batcher:
    """Scores in a thread of its own: all jobs of one image size that wait while it is busy are scored together.

    Nothing waits for company: a job that comes alone is scored alone. Where the scorer raises, each job of the batch is
    scored by itself, so that an error reaches only the request that caused it.
    """

    def __init__(self, reward: Reward, *, name: str, batch: int, pixels: int) -> None:
        """Begin to wait for jobs.

        `batch`: images of several jobs together at most; `pixels`: those of one call of the scorer at most, or else
        one image.
        """
        if batch < 1:
            raise ValueError(f"the server's batch is {batch}; it must be at least 1")
        self.reward, self.name, self.batch, self.pixels = reward, name, batch, pixels
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
        """Take a job. Its `done` is set when it is scored, has failed or is dropped."""
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
                self._score([job for job in jobs if not job.abandoned and self._accepts(job)])
        finally:  # also where the scorer ended its thread: nobody may wait for ever
            with self._changed:
                self.closed = True
            self._drop(*jobs)

    def _take(self) -> list[Job]:
        """Take the job that waited longest, and those that fit in with it. Jobs of other sizes keep their places."""
        first = self._waiting.popleft()
        if first.images is None:
            return [first]
        taken, left = [first], deque[Job]()
        size = first.images.shape[1:]
        most = min(self.batch, self._images_a_call(first.images))
        count = len(first.images)
        for job in self._waiting:
            if job.images is not None and job.images.shape[1:] == size and count + len(job.images) <= most:
                taken.append(job)
                count += len(job.images)
            else:
                left.append(job)
        self._waiting = left
        return taken

    def _images_a_call(self, images: Tensor) -> int:
        return max(1, self.pixels // (images.shape[-2] * images.shape[-1]))

    def _drop(self, *jobs: Job) -> None:
        """End the jobs that wait, and `jobs`, where they are not done."""
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
        for job in (*jobs, *waiting):
            if not job.done.is_set():
                job.finish(error=Stopped("the server is stopping"))

    def _accepts(self, job: Job) -> bool:
        """Check a job's prompts; one that cannot be scored, or has no images, is finished."""
        try:
            self.reward.check_prompts(job.prompts, job.metadata)
        except Exception as error:  # as in `_score`
            job.finish(error=error)
            return False
        if job.images is None:
            job.finish()
        return job.images is not None

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
            rows = slice(start, start + len(job.prompts))
            job.finish(self._rows(output, rows))
            start = rows.stop
        self.counts["requests"] += len(jobs)
        self.counts["images"] += start

    def _call(self, jobs: list[Job]) -> RewardOutput:
        images = torch.cat([job.images for job in jobs if job.images is not None])
        prompts = [prompt for job in jobs for prompt in job.prompts]
        metadata = [row for job in jobs for row in job.metadata]
        most = self._images_a_call(images)
        outputs = []
        for start in range(0, len(images), most):
            rows = slice(start, start + most)
            outputs.append(self._ask(images[rows], prompts[rows], metadata[rows]))
        return join(outputs)

    def _ask(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        self.counts["batches"] += 1
        with torch.no_grad():
            output = self.reward(images, prompts, metadata)
        if not isinstance(output, RewardOutput):
            raise ValueError(f"reward {self.name!r} returned {type(output).__name__}; it must return a RewardOutput")
        # What a failed image means is for the client to say.
        return check(output, len(images), self.name, prompts, failure="mark")

    def _rows(self, output: RewardOutput, rows: slice) -> RewardOutput:
        """Cut out a job's rows.

        A part that says nothing of them belongs to another job's images, and an answer does not depend on company; the
        parts of a weighted sum stay.
        """
        parts = {name: values[rows] for name, values in output.parts.items()}
        parts = {
            name: values for name, values in parts.items() if name in self.weights or not bool(values.isnan().all())
        }
        return RewardOutput(output.scores[rows], parts, output.reasons[rows])
