"""The options that `sample`, `eval` and `heatmap` share: which generator, and how its images are drawn."""

from __future__ import annotations

import argparse
from typing import Any

from t2i_gcpo.build import COMPILE, pick_device
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Sampling, Unmasking
from t2i_gcpo.unmasking import ORDERS, SCHEDULES


def add_generator_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", required=True, help="embedded name, folder (a run's checkpoints/step_N included) or hub name")
    add("--revision", help="branch, tag or commit on the hub")
    add("--batch", type=int, default=64, help="images at once; the images do not depend on it (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU if there is one")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="(default: %(default)s)")
    add("--compile", default="auto", choices=tuple(COMPILE), help="compile the decode step (default: %(default)s)")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--guidance", type=float, default=2.0, help="classifier-free guidance scale; 1 is none (default: %(default)s)")
    add("--temperature", type=float, default=1.0, help="0 is greedy (default: %(default)s)")
    add("--top-k", type=int, default=0, help="keep the k most likely tokens; 0 keeps all")
    add("--top-p", type=float, default=1.0, help="keep the smallest set of tokens with this probability; 1 keeps all")
    masked = "of masked generators: "
    add("--steps", type=int, default=12, help=masked + "sampling steps (default: %(default)s)")
    add("--schedule", default="cosine", choices=tuple(SCHEDULES), help=masked + "tokens that stay masked, by step")
    add("--order", default="confidence", choices=ORDERS, help=masked + "which tokens a step fixes")
    add("--order-temperature", type=float, default=2.0, help=masked + "noise on the confidence (default: %(default)s)")
    add("--seed", type=int, default=0, help="the same seed and prompt give the same images (default: %(default)s)")


def load_generator(args: argparse.Namespace, checkpoint: str | None = None) -> ImageGenerator:
    """`checkpoint` instead of `--checkpoint` where it is given."""
    from t2i_gcpo import generators

    if args.batch < 1:
        raise ValueError(f"--batch is {args.batch}; it must be at least 1")
    return generators.load(
        checkpoint or args.checkpoint,
        device=pick_device(args.device),
        dtype=args.dtype,
        revision=args.revision,
        max_batch=args.batch,
        compile=COMPILE[args.compile],
    )


def sampling(args: argparse.Namespace, **choices: Any) -> Sampling:
    """The options as a `Sampling`; `choices` are its other fields."""
    return Sampling(
        guidance=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        unmasking=Unmasking(args.steps, args.schedule, args.order, args.order_temperature),
        **choices,
    )
