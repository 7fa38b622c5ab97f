"""What all parts of `bench gpu` work with: the model, the clock, and the rows that they add."""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

from rewards.models.device import short
from t2i_gcpo import generators
from t2i_gcpo.algorithms import Algorithm
from t2i_gcpo.bench import gpu_memory, plain_loop
from t2i_gcpo.bench.gpu_report import GIB, GpuReport, Row
from t2i_gcpo.bench.measure import seconds
from t2i_gcpo.data import prompts as prompt_files
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.generators.compilation import can_compile
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.planning.choices import with_options
from t2i_gcpo.planning.models import PlannedModel
from t2i_gcpo.planning.workload import Workload
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.training.options import LoopOptions
from t2i_gcpo.utils.device import is_out_of_memory, pick_device


class Bench:
    """Holds what all parts work with, and collects their rows."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console, self.device = options, console, pick_device(options.device)
        self.started = time.perf_counter()
        loaded = generators.load(
            options.checkpoint,
            device=self.device,
            dtype=options.dtype,
            layers=options.layers,
            width=options.width,
            compile=False,
        )
        if not isinstance(loaded, Janus):
            raise ValueError(f"{options.checkpoint} is a checkpoint of {loaded.kind}; this benchmark is of Janus")
        self.generator = loaded
        self.compile = can_compile(self.device) if options.compile is None else bool(options.compile)
        self.tokens = math.prod(loaded.grid)
        shown = ("checkpoint", "layers", "width", "dtype", "images", "group_size", "guidance", "micro_batch", "seed")
        settings = {name: vars(options)[name] for name in shown}
        self.report = GpuReport(self.device, {**settings, "compiled": self.compile, "tokens": self.tokens})

    @functools.cached_property
    def planned(self) -> PlannedModel:
        """The model as it is planned."""
        options = self.options
        return gpu_memory.planned_model(
            options.checkpoint, layers=options.layers, width=options.width, dtype=self.generator.dtype
        )

    def work(self, images: int, algorithm: Algorithm, *, checkpointing: bool = False) -> Workload:
        """Return what a step of so many images asks of the model."""
        columns = plain_loop.encoded(self.generator, self.prompts(images), 1).ids.shape[1]
        loop = LoopOptions(micro_batch=self.options.micro_batch)
        work = gpu_memory.workload(
            self.generator, algorithm, self.sampling(), loop, images=images, columns=columns, compile=self.compile
        )
        return with_options(work, gradient_checkpointing=checkpointing)

    def prompts(self, images: int) -> list[Prompt]:
        """Return the prompts of a rollout of so many images."""
        return limit(prompt_files.read(self.options.prompts), images // self.options.group_size, repeat=True)

    def sampling(self, seed: int = 0) -> Sampling:
        return Sampling(group_size=self.options.group_size, guidance=self.options.guidance, seed=seed)

    def add(self, part: str, what: str, images: int, value: float | None, unit: str, **more: Any) -> None:
        row = Row(part, what, images, value, unit, **more)
        self.report.rows.append(row)
        number = "-" if value is None else f"{value:.4g} {unit}"
        self.console.print(f"{part}, {what}, {images} images: {number} {row.note}", highlight=False, soft_wrap=True)

    def over(self, part: str, what: str, images: int, unit: str) -> bool:
        """Say whether the time is over, and add a row that says so."""
        over = time.perf_counter() - self.started > self.options.limit_s
        if over:
            self.add(part, what, images, None, unit, note=f"not begun: {self.options.limit_s} s were over")
        return over

    def time(
        self,
        part: str,
        what: str,
        images: int,
        side: Callable[[], Any],
        *,
        unit: str,
        scale: float,
        planned: int | None = None,
    ) -> None:
        """Call a side once to warm up and then `rounds` times; add the quickest, with its peak memory.

        planned: bytes that it holds at most by the plan.
        """
        if self.over(part, what, images, unit):
            return
        with self.failing(part, what, images, unit):
            side()
            with self.peak() as peak:
                spent = min(seconds(side, self.device) for _ in range(self.options.rounds))
            measured, gib = peak[0] if peak else None, None if planned is None else planned / GIB
            ratio = None if gib is None or measured is None else gib / measured
            self.add(part, what, images, scale * spent, unit, peak_gib=measured, planned_gib=gib, ratio=ratio)

    @contextmanager
    def failing(self, part: str, what: str, images: int, unit: str) -> Iterator[None]:
        """Make a row of whatever goes wrong inside: what was measured by then is worth more than a traceback."""
        try:
            yield
        except Exception as error:  # a kernel that does not compile on this card, say
            note = "out of memory" if is_out_of_memory(error) else f"failed: {short(error)}"
            self.add(part, what, images, None, unit, note=note)

    @contextmanager
    def peak(self) -> Iterator[list[float]]:
        """Give a list that holds the GPU's peak memory in GiB afterwards; on a CPU nothing."""
        found: list[float] = []
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        yield found
        if self.device.type == "cuda":
            found.append(torch.cuda.max_memory_allocated(self.device) / GIB)
