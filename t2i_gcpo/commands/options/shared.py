"""The options that several commands share: which generator, how its images are drawn, which scorer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2i_gcpo.commands.options.arguments import read_arguments, take_reward_options
from t2i_gcpo.commands.options.build import COMPILE
from t2i_gcpo.commands.options.config import ROWS, RewardConfig
from t2i_gcpo.commands.options.number_types import count, finite, positive, seed
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.generators.tokens.unmasking import ORDERS, SCHEDULES
from t2i_gcpo.records import Sampling, SamplingOptions, Unmasking
from t2i_gcpo.utils.device import pick_device


def add_generator_options(parser: argparse.ArgumentParser, *, checkpoint: Any = None) -> None:
    """checkpoint: a group of alternatives that --checkpoint is one of; without it, it is required."""
    help = "embedded name, folder (a run's checkpoints/step_N included) or hub name"
    if checkpoint is None:
        parser.add_argument("--checkpoint", required=True, help=help)
    else:
        checkpoint.add_argument("--checkpoint", help=help)
    add = parser.add_argument
    add("--revision", help="branch, tag or commit on the hub")
    add(
        "--batch",
        type=count,
        default=0,
        help="images at once; the images do not depend on it; 0 is 64 on a CPU, and on a GPU as many, up to 64, as fit "
        "by the plan of `t2i-gcpo plan` (default: %(default)s)",
    )
    add("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU if there is one")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="(default: %(default)s)")
    add("--compile", default="auto", choices=tuple(COMPILE), help="compile the decode step (default: %(default)s)")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--guidance",
        type=finite,
        default=SamplingOptions.guidance,
        help="classifier-free guidance scale; 1 is none (default: %(default)s)",
    )
    add("--temperature", type=finite, default=SamplingOptions.temperature, help="0 is greedy (default: %(default)s)")
    add("--top-k", type=count, default=SamplingOptions.top_k, help="keep the k most likely tokens; 0 keeps all")
    add(
        "--top-p",
        type=finite,
        default=SamplingOptions.top_p,
        help="keep the smallest set of tokens with this probability; 1 keeps all",
    )
    masked = "of masked generators: "
    add("--steps", type=positive, default=Unmasking.steps, help=masked + "sampling steps (default: %(default)s)")
    add(
        "--schedule",
        default=Unmasking.schedule,
        choices=tuple(SCHEDULES),
        help=masked + "tokens that stay masked, by step",
    )
    add("--order", default=Unmasking.order, choices=ORDERS, help=masked + "which tokens a step fixes")
    add(
        "--order-temperature",
        type=finite,
        default=Unmasking.temperature,
        help=masked + "noise on the confidence (default: %(default)s)",
    )
    add("--seed", type=seed, default=0, help="the same seed and prompt give the same images (default: %(default)s)")


def load_generator(args: argparse.Namespace, checkpoint: str | None = None) -> ImageGenerator:
    """`checkpoint` instead of `--checkpoint` where it is given."""
    from t2i_gcpo import generators

    return generators.load(
        checkpoint or args.checkpoint,
        device=pick_device(args.device),
        dtype=args.dtype,
        revision=args.revision,
        max_batch=args.batch or ROWS,
        compile=COMPILE[args.compile],
    )


def sampling(args: argparse.Namespace, **choices: Any) -> Sampling:
    """The options as a `Sampling`; `choices` are its other fields."""
    drawn = SamplingOptions(
        guidance=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        unmasking=Unmasking(args.steps, args.schedule, args.order, args.order_temperature),
    )
    return Sampling.of(drawn, seed=args.seed, **choices)


def add_reward_option(parser: argparse.ArgumentParser) -> None:
    """Name the scorer's options in the help; `take_reward` takes them off the arguments before they are parsed."""
    parser.add_argument(
        "--reward",
        metavar="NAME",
        help="a registered reward, your own as module:callable, or a YAML file with a group reward: as for train; "
        "further options of the scorer are --reward.KEY VALUE",
    )


def take_reward(argv: Sequence[str]) -> tuple[RewardConfig, list[str]]:
    """Split `--reward NAME|FILE.yaml` and `--reward.KEY VALUE` off the arguments.

    ValueError: none, or a file without a scorer.
    """
    arguments: list[str] = []
    named, tokens = False, iter(argv)
    for token in tokens:
        head, equals, value = token.partition("=")
        if head != "--reward":
            arguments.append(token)
            continue
        value = value if equals else next(tokens, "--")
        if not value or value.startswith("--"):
            raise ValueError("--reward needs a name or a YAML file, e.g. --reward geneval")
        named = True
        if Path(value).suffix.lower() not in (".yaml", ".yml"):
            arguments.append(f"--reward.name={value}")
            continue
        options = [option for option in read_arguments(value) if option.startswith("--reward.")]
        if not any(option.startswith("--reward.name=") for option in options):
            raise ValueError(f"{value} names no scorer; it needs a group like `reward: {{name: geneval}}`")
        arguments += options
    if not named:
        raise ValueError("name the scorer: --reward NAME, module:callable or a YAML file, e.g. --reward geneval")
    return take_reward_options(arguments)
