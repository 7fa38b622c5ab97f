"""Measure Janus-Pro on this machine in one go: rollout, update, drift and a whole step, beside what the card allows.

The rollout: the paper's loop written plainly, our compiled loop with the cache in the layout of a CPU and with a kernel
that this layout forces (what ours was before), and ours. The floor is the bytes that each token must read, by the
bandwidth that a copy reaches here. Weights are random, so that no hub is needed. B rows, T tokens.
"""

from __future__ import annotations

import argparse
import time

from rich.console import Console

from t2i_gcpo.bench import gpu_parts, positive
from t2i_gcpo.bench.gpu_bench import Bench
from t2i_gcpo.bench.gpu_report import GpuReport
from t2i_gcpo.commands.options.number_types import count, finite


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


def run(options: argparse.Namespace, console: Console) -> GpuReport:
    """Measure all parts. ValueError: no Janus checkpoint, or images that are no whole groups."""
    if options.group_size < 2 or any(images % options.group_size for images in options.images):
        raise ValueError(f"--images {options.images}: each must be a multiple of --group-size, which is at least 2")
    if options.guidance <= 1:
        raise ValueError(f"--guidance is {options.guidance}; it must be above 1, as both branches are measured")
    bench, few = Bench(options, console), min(options.images)
    bench.generator.check_prompts(bench.prompts(max(options.images)))
    gpu_parts.choose_chunk(bench)
    bandwidth = gpu_parts.measure_bandwidth(bench)
    for images in options.images:
        with bench.failing("rollout", "all", images, "ms a token"):
            gpu_parts.rollouts(bench, images, bandwidth)
    with bench.failing("drift", "all", few, "nats a token"):
        gpu_parts.drift(bench, few)
    with bench.failing("update", "all", options.micro_batch, "s"):
        gpu_parts.updates(bench)
    with bench.failing("step", "all", few, "s"):
        gpu_parts.steps(bench, few)
    bench.report.seconds = time.perf_counter() - bench.started
    return bench.report
