"""Measure Janus-Pro on this machine in one go: rollout, update, drift and a whole step, beside what the card allows.

The rollout: the paper's loop written plainly, our compiled loop with the cache in the layout of a CPU and with a kernel
that this layout forces (what ours was before), and ours. The floor is the bytes that each token must read, by the
bandwidth that a copy reaches here. Weights are random, so that no hub is needed. B rows, T tokens.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from rewards.models.device import short
from t2i_gcpo import generators
from t2i_gcpo.algorithms import Algorithm, resolve, token_advantages
from t2i_gcpo.bench import gpu_memory, plain_loop, positive
from t2i_gcpo.bench.gpu_report import GIB, GpuReport, Row
from t2i_gcpo.bench.measure import seconds
from t2i_gcpo.commands.options.number_types import count, finite
from t2i_gcpo.data import prompts as prompt_files
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.generators.compilation import can_compile
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.planning.choices import choose, with_options
from t2i_gcpo.planning.models import PlannedModel
from t2i_gcpo.planning.workload import Workload
from t2i_gcpo.records import Prompt, Rollout, Sampling
from t2i_gcpo.training.options import LoopOptions, OptimConfig
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils.clock import Clock
from t2i_gcpo.utils.device import free_memory, is_out_of_memory, pick_device

#: Bytes that are copied to measure the bandwidth, on a GPU and on a CPU.
COPIED = {"cuda": GIB, "cpu": 64 * 2**20}
DRIFT_SEEDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="random:janus-pro-1b", help="a Janus checkpoint, or a random one")
    parser.add_argument("--layers", type=count, default=0, help="layers of a random model; 0: as published")
    parser.add_argument("--width", type=count, default=0, help="hidden width of a random model; 0: as published")
    parser.add_argument("--dtype", default="bfloat16", help="float32 or bfloat16")
    parser.add_argument("--prompts", default="shapes:val", help="prompt file, or shapes:train|val|test")
    parser.add_argument("--images", type=positive, nargs="+", default=[16, 64], help="images of the rollouts")
    parser.add_argument("--group-size", type=positive, default=8, help="images of a prompt, at least 2")
    parser.add_argument("--guidance", type=finite, default=5.0, help="guidance scale, above 1")
    parser.add_argument("--micro-batch", type=positive, default=8, help="images of a forward and backward pass")
    parser.add_argument("--rounds", type=positive, default=2, help="calls of each side that are timed, after one more")
    parser.add_argument("--limit-s", type=positive, default=480, help="begin no further part after so many seconds")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None,
                        help="compile our sampler; None: where torch can")  # fmt: skip


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


def run(options: argparse.Namespace, console: Console) -> GpuReport:
    """Measure all parts. ValueError: no Janus checkpoint, or images that are no whole groups."""
    if options.group_size < 2 or any(images % options.group_size for images in options.images):
        raise ValueError(f"--images {options.images}: each must be a multiple of --group-size, which is at least 2")
    if options.guidance <= 1:
        raise ValueError(f"--guidance is {options.guidance}; it must be above 1, as both branches are measured")
    bench, few = Bench(options, console), min(options.images)
    bench.generator.check_prompts(bench.prompts(max(options.images)))
    choose_chunk(bench)
    bandwidth = measure_bandwidth(bench)
    for images in options.images:
        with bench.failing("rollout", "all", images, "ms a token"):
            rollouts(bench, images, bandwidth)
    with bench.failing("drift", "all", few, "nats a token"):
        drift(bench, few)
    with bench.failing("update", "all", options.micro_batch, "s"):
        updates(bench)
    with bench.failing("step", "all", few, "s"):
        steps(bench, few)
    bench.report.seconds = time.perf_counter() - bench.started
    return bench.report


def choose_chunk(bench: Bench) -> None:
    """Let as many logits exist at once as a run on this GPU would; on a CPU it stays as it is."""
    free = free_memory(bench.device)
    if free is not None:
        work = bench.work(min(bench.options.images), resolve("gcpo", group_size=bench.options.group_size))
        chosen = choose(bench.planned, work, free, gradient_checkpointing=False, max_batch=False)
        bench.generator.scorer.head_chunk = chosen.head_chunk
    bench.report.settings["head_chunk"] = bench.generator.scorer.head_chunk


def measure_bandwidth(bench: Bench) -> float:
    """Measure the bytes a second that a copy moves, reading and writing."""
    source = torch.ones(COPIED.get(bench.device.type, COPIED["cpu"]), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    target.copy_(source)
    rate = 2 * source.numel() / min(seconds(lambda: target.copy_(source), bench.device) for _ in range(10))
    bench.add("machine", "copy bandwidth", 0, rate / 1e9, "GB/s")
    return rate


def bytes_per_token(generator: Janus, images: int, prompt: int) -> int:
    """Return the bytes that a step of the rollout must read on average: weights once, keys and values of all rows."""
    model, text = generator.model, generator.model.config.text_config
    embeddings = generator.model.model.language_model.get_input_embeddings().weight
    read = [*model.model.language_model.parameters(), *model.model.generation_head.parameters()]
    weights = sum(p.numel() * p.element_size() for p in read if p is not embeddings)
    columns = prompt + math.prod(generator.grid) / 2
    head = text.head_dim or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head * embeddings.element_size()
    return int(weights + 2 * images * columns * cache)


def rollouts(bench: Bench, images: int, bandwidth: float) -> None:
    """Time the loops, and work out the floor."""
    generator, prompts, how = bench.generator, bench.prompts(images), bench.sampling()
    steps, width = generator.sampler.steps, plain_loop.encoded(generator, prompts, 1).ids.shape[1]
    scale, unit = 1e3 / bench.tokens, "ms a token"

    def ours(*, fused: bool, one_piece: bool, row: bool, graphs: bool = False) -> Rollout:
        before = steps.fused_attention, steps.keys_in_one_piece, steps.row_attention, steps.graphs
        steps.fused_attention, steps.keys_in_one_piece = fused, one_piece
        steps.row_attention, steps.graphs = row, graphs
        generator.compiles.choice = bench.compile
        try:
            return generator.sample(prompts, how)
        finally:
            generator.compiles.choice = False
            steps.fused_attention, steps.keys_in_one_piece, steps.row_attention, steps.graphs = before

    work = bench.work(images, resolve("grpo", group_size=how.group_size))
    planned = gpu_memory.rollout_bytes(bench.planned, work)
    plain = lambda: plain_loop.sample(generator, prompts, how)  # noqa: E731
    fused = bench.device.type != "cpu"
    bench.time("rollout", "the paper's loop", images, plain, unit=unit, scale=scale)
    bench.time("rollout", "ours, keys side by side", images, lambda: ours(fused=True, one_piece=False, row=False),
               unit=unit, scale=scale)  # fmt: skip
    if steps.row_attention:
        bench.time("rollout", "ours, masked attention", images, lambda: ours(fused=True, one_piece=True, row=False),
                   unit=unit, scale=scale)  # fmt: skip
    bench.time("rollout", "ours", images, lambda: ours(fused=fused, one_piece=fused, row=steps.row_attention),
               unit=unit, scale=scale, planned=planned)  # fmt: skip
    if steps.row_attention and bench.compile:
        graphs = lambda: ours(fused=fused, one_piece=fused, row=True, graphs=True)  # noqa: E731
        bench.time("rollout", "ours, CUDA graphs", images, graphs, unit=unit, scale=scale)
    floor = bytes_per_token(generator, images, width) / bandwidth
    bench.add("rollout", "floor of the bandwidth", images, 1e3 * floor, unit)


@torch.no_grad()
def drift(bench: Bench, images: int) -> None:
    """Compare the log-probs of sampling with those of the training forward, by seed."""
    for seed in range(DRIFT_SEEDS):
        rollout = bench.generator.sample(bench.prompts(images), bench.sampling(seed))
        parts = torch.arange(rollout.batch).split(bench.options.micro_batch)
        scored = torch.cat([bench.generator.token_logprobs(rollout.rows(part), distribution="guided")
                            for part in parts])  # fmt: skip
        difference = (scored - rollout.logprob_behaviour).abs()
        note = f"largest {float(difference.max()):.3g}"
        bench.add("drift", f"mean, seed {seed}", images, float(difference.mean()), "nats a token", note=note)


def updates(bench: Bench) -> None:
    """Time the forward and backward pass of a micro-batch, with and without checkpointed activations."""
    size, generator = bench.options.micro_batch, bench.generator
    group = bench.options.group_size
    rollout = generator.sample(bench.prompts(-(-size // group) * group), bench.sampling())
    rows = rollout.rows(torch.arange(size))

    def both_passes() -> None:
        generator.training_scores(rows, distribution="guided").logprob.mean().backward()
        generator.policy.zero_grad(set_to_none=True)

    algorithm = resolve("gcpo", group_size=group)
    planned = [gpu_memory.passes_bytes(bench.planned, bench.work(rollout.batch, algorithm, checkpointing=on))
               for on in (False, True)]  # fmt: skip
    bench.time("update", "forward and backward", size, both_passes, unit="s", scale=1.0, planned=planned[0])
    generator.weights.checkpoint_activations()
    generator.gradient_checkpointing = True
    bench.time("update", "with gradient checkpointing", size, both_passes, unit="s", scale=1.0, planned=planned[1])
    generator.gradient_checkpointing = False


def steps(bench: Bench, images: int) -> None:
    """Time whole steps: GCPO, GRPO, and the paper's written plainly; decoding and a trivial reward included."""
    generator, prompts, how = bench.generator, bench.prompts(images), bench.sampling()
    loop = LoopOptions(micro_batch=bench.options.micro_batch)
    optim = OptimConfig(lr=1e-9, warmup_steps=0)  # as good as no change: every call does the same work
    generator.keep_reference()

    def step(name: str, updater: Updater) -> None:
        generator.compiles.choice = bench.compile
        rollout = generator.sample(prompts, replace(how, contrast=updater.algorithm.needs_contrast))
        generator.compiles.choice = False
        targets = token_advantages(updater.algorithm, rollout, redness(generator.decode(rollout.tokens)))
        updater.update(rollout, targets, Clock(bench.device), torch.Generator())

    for name in ("grpo", "gcpo"):
        updater = Updater(generator, resolve(name, group_size=how.group_size), loop, optim)
        bench.time("step", name, images, lambda name=name, updater=updater: step(name, updater),  # type: ignore[misc]
                   unit="s", scale=1.0)  # fmt: skip
        if name == "gcpo":
            phases(bench, images, updater)
        del updater
    plain = plain_loop.PlainStep(generator, how, micro_batch=loop.micro_batch, lr=optim.lr, kl_coef=0.03)
    bench.time("step", "the paper's, written plainly", images, lambda: plain(prompts, redness), unit="s", scale=1.0)


def phases(bench: Bench, images: int, updater: Updater) -> None:
    """Set the peak of each phase of a step against the plan's."""
    generator, prompts, algorithm = bench.generator, bench.prompts(images), updater.algorithm
    how = replace(bench.sampling(), contrast=algorithm.needs_contrast)

    def update(rollout: Rollout) -> None:
        targets = token_advantages(algorithm, rollout, torch.arange(rollout.batch) / rollout.batch)
        updater.update(rollout, targets, Clock(bench.device), torch.Generator())

    def sample() -> Rollout:
        generator.compiles.choice = bench.compile
        try:
            return generator.sample(prompts, how)
        finally:
            generator.compiles.choice = False

    if bench.over("memory", "phases of a step", images, "GiB"):
        return
    rows: list[gpu_memory.Measured] = []
    with bench.failing("memory", "phases of a step", images, "GiB"):
        rows = gpu_memory.phases(updater, bench.planned, bench.work(images, algorithm), sample, update)
    for row in rows:
        planned, measured = row.planned / GIB, None if row.measured is None else row.measured / GIB
        ratio = None if measured is None else planned / measured
        note = "on a CPU not told apart from the rest of the process" if measured is None else ""
        what = row.phase if row.phase == "state" else f"{row.phase}, beyond the state"
        bench.add("memory", what, images, measured, "GiB", planned_gib=planned, ratio=ratio, note=note)


def redness(images: Tensor) -> Tensor:
    """Score images [B, 3, H, W] by their red channel: B numbers in [0, 1], on the host."""
    return images[:, 0].float().mean(dim=(1, 2)).cpu() / 255
