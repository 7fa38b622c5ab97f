"""Measure the peak memory of a masked generator's update at N sampling steps, and at one.

It is back-propagated step by step and at once.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from t2i_gcpo.bench import update_workload as masked
from t2i_gcpo.bench.measure import MIB, Report, check_same, cost, peak_bytes, warm_up
from t2i_gcpo.bench.sampling_workload import settings
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.utils.device import pick_device

BASELINE = "one sampling step"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    masked.add_arguments(parser, pairs=3, unit="peaks; they hardly vary")


def run(options: argparse.Namespace, console: Console) -> Report:
    """Measure the peaks. ValueError: no masked checkpoint. RuntimeError: the gradients of the two ways differ."""
    device = pick_device(options.device)
    by_step = masked.load(options)
    at_once = Amused(by_step.parts, compile=False, gradient_checkpointing=False)
    many, one = (masked.rollout(by_step, options, steps=steps) for steps in (options.steps, 1))
    sides = {
        "step_by_step": lambda: masked.gradients(by_step, many),
        "at_once": lambda: masked.gradients(at_once, many),
        "baseline": lambda: masked.gradients(by_step, one),
    }
    warmup = warm_up(sides, device, console)
    check_same("gradients", sides["step_by_step"](), sides["at_once"](), rtol=1e-4, atol=1e-6)
    console.print("checked: same gradients step by step and at once", highlight=False)
    peaks = {name: [float(peak_bytes(side, device)) for _ in range(options.pairs)] for name, side in sides.items()}
    lines = tuple(
        cost(name, peaks[name], peaks["baseline"], unit="MiB", scale=1 / MIB, seed=options.seed)
        for name in ("step_by_step", "at_once")
    )
    about = settings(options, by_step, len(many.prompts), compiled=False, steps=options.steps)
    return Report("memory", lines, BASELINE, warmup, device, about)
