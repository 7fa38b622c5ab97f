"""Time a GCPO update against a GRPO update on the same guided rollout, where only the credit differs.

Guidance computes both branches anyway, so the contrast is in the rollout; what is left of GCPO is the ranking of its
token weights. Each call starts from the same weights and optimiser state. P prompts, G images a prompt, B = P * G rows.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from t2i_gcpo import generators
from t2i_gcpo.algorithms import Algorithm, TokenAdvantages, resolve, token_advantages
from t2i_gcpo.bench import positive
from t2i_gcpo.bench.measure import Report, check_same, cost, interleave, warm_up
from t2i_gcpo.commands.options.number_types import finite
from t2i_gcpo.data import prompts as prompt_files
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.generators.base import DISTRIBUTIONS, ImageGenerator
from t2i_gcpo.records import Rollout, Sampling
from t2i_gcpo.training.options import LoopOptions, OptimConfig
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils.clock import Clock
from t2i_gcpo.utils.device import pick_device

BASELINE = "GRPO"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="janus-mini", help="embedded name, folder or hub repository")
    parser.add_argument("--pairs", type=positive, default=30, help="pairs of updates that are measured")
    parser.add_argument("--sample-pairs", type=positive, default=5, help="pairs of rollouts with and without contrast")
    parser.add_argument("--prompts", default="shapes:val", help="prompt file, or shapes:train|val|test")
    parser.add_argument("--num-prompts", type=positive, default=8, help="prompts of a rollout")
    parser.add_argument("--group-size", type=positive, default=8, help="images of a prompt, at least 2")
    parser.add_argument("--micro-batch", type=positive, default=16, help="images of a forward and backward pass")
    parser.add_argument(
        "--guidance", type=finite, default=Sampling.guidance, help="guidance scale of the rollout, other than 1"
    )
    parser.add_argument(
        "--distribution", choices=DISTRIBUTIONS, default="guided", help="the distribution that is trained"
    )


class Step:
    """Run one algorithm's update on a fixed rollout, again and again from the same state."""

    def __init__(
        self,
        generator: ImageGenerator,
        algorithm: Algorithm,
        rollout: Rollout,
        scores: Tensor,
        options: argparse.Namespace,
    ) -> None:
        self.algorithm, self.rollout, self.scores = algorithm, rollout, scores
        self.device = generator.device
        loop = LoopOptions(distribution=options.distribution, micro_batch=options.micro_batch, max_nonfinite=1)
        self.updater = Updater(generator, algorithm, loop, OptimConfig(warmup_steps=0))
        self.start: dict[str, Any] = copy.deepcopy(self.updater.state_dict())

    def __call__(self) -> None:
        targets = token_advantages(self.algorithm, self.rollout, self.scores)
        self.updater.update(self.rollout, targets, Clock(self.device), torch.Generator())

    def restore(self) -> None:
        self.updater.load_state_dict(self.start)

    def keep_optimizer(self) -> None:
        """Let `restore` bring back the optimiser's present state from now on, so that no timed update allocates it."""
        self.start = copy.deepcopy(self.updater.state_dict()) | {"weights": self.start["weights"]}

    def gradients(self, targets: TokenAdvantages) -> list[Tensor]:
        """Return the gradients of an update from the starting weights."""
        self.restore()
        self.updater.update(self.rollout, targets, Clock(self.device), torch.Generator())
        gradients = [master.grad for master in self.updater.weights.masters]
        self.restore()
        return [gradient.clone() for gradient in gradients if gradient is not None]


def run(options: argparse.Namespace, console: Console) -> Report:
    """Time both. ValueError: no guidance, or no contrast. RuntimeError: the sides differ in more than the credit."""
    if options.guidance == 1:
        raise ValueError("--guidance is 1; contrast is free under guidance only, set another scale")
    device = pick_device(options.device)
    # Weighting the KL by the credit is an option of its own, and GRPO has no credit to weigh it by.
    gcpo = resolve("gcpo", group_size=options.group_size, kl_weighting=False)
    grpo = resolve("grpo", group_size=options.group_size)
    generator = generators.load(options.checkpoint, device=device)
    generator.keep_reference()
    prompts = limit(prompt_files.read(options.prompts), options.num_prompts, repeat=True)
    sampling = Sampling(group_size=options.group_size, guidance=options.guidance, seed=options.seed)
    rollout = generator.sample(prompts, sampling)
    scores = torch.rand(rollout.batch, generator=torch.Generator().manual_seed(options.seed))

    steps = {
        "gcpo": Step(generator, gcpo, rollout, scores, options),
        "baseline": Step(generator, grpo, rollout, scores, options),
    }
    warmup = warm_up(steps, device, console)
    for step in steps.values():
        step.keep_optimizer()
    check(steps["gcpo"], steps["baseline"])
    console.print(
        "checked: with uniform credit, GCPO's gradients are GRPO's; with its own they are not", highlight=False
    )
    times = interleave(steps, options.pairs, device, before=lambda name: steps[name].restore())
    steps["baseline"].restore()

    samplers = {
        "contrast": lambda: generator.sample(prompts, replace(sampling, contrast=True)),
        "baseline": lambda: generator.sample(prompts, replace(sampling, contrast=False)),
    }
    sampled = interleave(samplers, max(options.sample_pairs, 2), device)
    lines = (
        cost("update", times["gcpo"], times["baseline"], unit="s", seed=options.seed),
        cost("sampling", sampled["contrast"], sampled["baseline"], unit="s", seed=options.seed),
    )
    settings = {
        "checkpoint": options.checkpoint,
        "prompts": options.prompts,
        "num_prompts": len(prompts),
        "group_size": options.group_size,
        "images": rollout.batch,
        "tokens": rollout.tokens.shape[1],
        "micro_batch": options.micro_batch,
        "guidance": options.guidance,
        "distribution": options.distribution,
        "kl": {"estimator": gcpo.kl_estimator, "coef": gcpo.kl_coef, "weighting": gcpo.kl_weighting},
        "dtype": str(generator.dtype),
        "seed": options.seed,
    }
    return Report("step", lines, BASELINE, warmup, device, settings)


def check(gcpo: Step, grpo: Step) -> None:
    """Raise a RuntimeError unless GCPO with uniform weights has GRPO's gradients.

    ValueError if its own weights are uniform already.
    """
    targets = token_advantages(gcpo.algorithm, gcpo.rollout, gcpo.scores)
    if not bool((targets.weights.std(dim=-1) > 0).any()):
        raise ValueError(
            "the rollout's images show no contrast, so GCPO is GRPO here; take another checkpoint or other prompts"
        )
    everywhere = replace(gcpo.algorithm, floor=1e6)  # no contrast is above it: all weights are 1
    uniform = gcpo.gradients(token_advantages(everywhere, gcpo.rollout, gcpo.scores))
    plain = grpo.gradients(token_advantages(grpo.algorithm, grpo.rollout, grpo.scores))
    check_same("gradients where the credit is uniform", uniform, plain, rtol=1e-4, atol=1e-6)
    own = gcpo.gradients(targets)
    if all(torch.equal(a, b) for a, b in zip(own, plain, strict=True)):
        raise RuntimeError(
            "GCPO's gradients are GRPO's although its weights are not uniform: the credit does not reach the loss"
        )
