"""Time the forward and backward pass of a rollout under each likelihood of a masked generator, against `commit_step`.

The activations of all passes are held. Credit, loss and optimiser are not in it: they cost the same for all.
"""

from __future__ import annotations

import argparse
from functools import partial

from rich.console import Console

from t2i_gcpo.bench import update_workload as masked
from t2i_gcpo.bench.measure import Report, cost, interleave, warm_up
from t2i_gcpo.bench.sampling_workload import settings
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.amused.likelihoods import LIKELIHOODS
from t2i_gcpo.utils.device import pick_device

BASELINE = "commit_step"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    masked.add_arguments(parser, pairs=5, unit="all likelihoods that are timed")


def run(options: argparse.Namespace, console: Console) -> Report:
    """Time all likelihoods. ValueError: no masked checkpoint."""
    device = pick_device(options.device)
    parts = masked.load(options).parts
    made = {
        name: Amused(parts, compile=False, gradient_checkpointing=False, masked_policy=name) for name in LIKELIHOODS
    }
    # This one also records which steps are its key steps.
    drawn = masked.rollout(made["key_steps"], options, steps=options.steps)
    sides = {name: partial(masked.gradients, generator, drawn) for name, generator in made.items()}
    warmup = warm_up(sides, device, console)
    times = interleave(sides, options.pairs, device)
    lines = tuple(
        cost(name, times[name], times[BASELINE], unit="s", seed=options.seed)
        for name in LIKELIHOODS
        if name != BASELINE
    )
    about = settings(options, made[BASELINE], len(drawn.prompts), compiled=False, steps=options.steps)
    return Report("policies", lines, BASELINE, warmup, device, about)
