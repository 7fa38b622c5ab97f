"""The parts that benchmarks of a masked generator's update share: a rollout, and its forward and backward pass.

P prompts, G images a prompt, B = P * G rows, T tokens.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from t2i_gcpo import generators
from t2i_gcpo.bench import positive
from t2i_gcpo.commands.options.number_types import finite
from t2i_gcpo.data import prompts as prompt_files
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.records import Rollout, Sampling, Unmasking
from t2i_gcpo.utils.device import pick_device


def add_arguments(parser: argparse.ArgumentParser, *, pairs: int, unit: str) -> None:
    parser.add_argument(
        "--checkpoint", default="amused-mini", help="an aMUSEd checkpoint: embedded name, folder or hub repository"
    )
    parser.add_argument("--pairs", type=positive, default=pairs, help=f"rounds of {unit}")
    parser.add_argument("--prompts", default="shapes:val", help="prompt file, or shapes:train|val|test")
    parser.add_argument("--num-prompts", type=positive, default=2, help="prompts of a rollout")
    parser.add_argument("--group-size", type=positive, default=8, help="images of a prompt")
    parser.add_argument("--guidance", type=finite, default=Sampling.guidance, help="guidance scale of the rollout")
    parser.add_argument("--steps", type=positive, default=12, help="sampling steps")


def load(options: argparse.Namespace) -> Amused:
    """Load the checkpoint. ValueError: another kind of generator."""
    generator = generators.load(options.checkpoint, device=pick_device(options.device), compile=False)
    if not isinstance(generator, Amused):
        raise ValueError(
            f"{options.checkpoint} is a {generator.kind} checkpoint; this benchmark is of masked ones (amused)"
        )
    return generator


def rollout(generator: Amused, options: argparse.Namespace, *, steps: int) -> Rollout:
    prompts = limit(prompt_files.read(options.prompts), options.num_prompts, repeat=True)
    plan = Unmasking(steps=steps)
    how = Sampling(group_size=options.group_size, guidance=options.guidance, seed=options.seed, unmasking=plan)
    return generator.sample(prompts, how)


def gradients(generator: Amused, drawn: Rollout) -> tuple[Tensor, ...]:
    """Compute the gradients of the mean objective at ratio 1, with an advantage of 1 for every token."""
    logprob, scale, _ = generator.training_scores(drawn)
    objective = (logprob if scale is None else logprob * scale).mean()
    return torch.autograd.grad(objective, generator.trainable_parameters())
