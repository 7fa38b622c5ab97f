"""Draw the credit of tokens over images that are sampled, read from an npz, or followed through a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

import rewards
from t2i_gcpo.algorithms import ALL_STATS, TABLE, resolve, token_advantages, token_weights
from t2i_gcpo.commands.images_at_once import settle_batch
from t2i_gcpo.commands.options.number_types import count, finite, positive
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.commands.options.shared import add_generator_options, add_sampling_options, load_generator, sampling
from t2i_gcpo.data.shapes.grammar import find_prompt, not_understood
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.generators.base import ImageGenerator, in_chunks
from t2i_gcpo.heatmap import KINDS, Heatmap, Recipe, load, noise, over_steps, reweigh, without
from t2i_gcpo.heatmap.animation import over_images, over_order, write_gif
from t2i_gcpo.heatmap.files import write
from t2i_gcpo.records import Prompt, Rollout, ScoredRollout
from t2i_gcpo.training.credit_inputs import credit_inputs
from t2i_gcpo.utils.checks import at_least
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.pictures import write_png


def main(argv: list[str]) -> int:
    """Draw the credit of tokens; writes heatmap.png, heatmap.html and heatmap.npz.

    --checkpoint with --prompt samples images (with a reward the advantages are drawn, else the token weights alone);
    --npz redraws a saved heatmap and runs no model; --run shows one prompt and noise at every step that a run drew.
    """
    args = parser().parse_args(argv)
    others = [f"{name}.png" for name in (args.map or [])[1:]]
    check_folder(
        args.out, "heatmap.png", "heatmap.npz", "heatmap.html", *others, *(["heatmap.gif"] if args.gif else [])
    )
    if args.npz is not None:
        heatmap = load(args.npz)
    elif args.run is not None:
        heatmap = over_steps(args.run, prompt=args.prompt, image=args.image)
    else:
        heatmap = sampled(args)
    if args.checkpoint is None and (choices := _choices(args)):
        heatmap = reweigh(heatmap, seed=args.seed, **choices)
    names = list(dict.fromkeys(args.map or [heatmap.map()[0]]))
    empty = [name for name in names if not heatmap.map(name)[1].any()]  # all are known before anything is written
    paths = write(heatmap, args.out, "heatmap", kind=names[0], columns=args.columns)
    for name in names[1:]:
        paths.append(args.out / f"{name}.png")
        write_png(paths[-1], heatmap.draw(name, columns=args.columns))
    if args.gif:
        frames = over_order(heatmap, names[0]) if args.run is None else over_images(heatmap, names[0])
        paths.append(write_gif(frames, args.out / "heatmap.gif"))
    if args.map is None and heatmap.advantages is not None and not heatmap.advantages.any():
        print(f"every value of the map advantage is 0: the images of each group scored alike; {names[0]} is drawn")
    for name in empty:
        why = "the images of each group scored alike; " if name == "advantage" else ""
        print(f"every value of the map {name} is 0: {why}look at another, such as --map weight contrast")
    if words := noise.words(heatmap):
        print(words)
    for path in paths:
        print(f"wrote {path}")
    return 0


def sampled(args: argparse.Namespace) -> Heatmap:
    """Sample one group of images of a prompt, with advantages where there is a reward, and print what is known of
    them."""
    at_least(1, "--", num=args.num)
    if args.prompt is None:
        raise ValueError("--checkpoint needs a --prompt: write what the images should show")
    prompt, negative = find_prompt(args.prompt), args.negative_prompt
    if args.without is not None:
        if negative is not None:
            raise ValueError("--without and --negative-prompt both say what the prompt is contrasted with; give one")
        negative = without(prompt.text, args.without)
        print(f"contrasted with {negative!r}: the maps show the tokens that {args.without!r} drives")
    reward_name, reason = _reward(args, prompt)
    algorithm = resolve(args.algorithm, group_size=max(args.num, 2), **_choices(args))
    if not reward_name and algorithm.credit == "uniform":
        raise ValueError(
            f"algorithm {args.algorithm} weighs all tokens alike, and {reason}: there is nothing to draw; choose gcpo"
        )
    _check_maps(args, reason)
    drawn = sampling(args, group_size=args.num, contrast=True, stats=ALL_STATS)
    reward = rewards.load(reward_name) if reward_name else None
    if reward is not None:
        check_scorable([prompt], reward)
    args = settle_batch(args, [prompt], drawn, images=args.num, negative=negative, beside=args.reference)
    generator = load_generator(args)
    generator.check_prompts([prompt, *([negative] if negative is not None else [])])
    reference = None if args.reference is None else _reference(args, generator)
    rollout = generator.sample([prompt], drawn, negative_prompts=negative)
    with torch.no_grad():
        images = generator.decode(rollout.tokens).cpu()
        logprob_reference = None if reference is None else _logprobs(reference, rollout, args.batch)
    rng = torch.Generator().manual_seed(args.seed)  # the controls draw from it
    inputs = credit_inputs(generator, algorithm, rollout)
    if reward is None:
        print(f"token weights of {args.algorithm}, no advantages: {reason}")
        scored = ScoredRollout(rollout, images, torch.full((args.num,), torch.nan))
        weights = token_weights(algorithm, rollout, generator=rng, **inputs)
        return Heatmap.of(scored, weights=weights, algorithm=algorithm, logprob_reference=logprob_reference)
    output = reward(images, [prompt.text] * args.num, [prompt.metadata] * args.num)
    scored = ScoredRollout(rollout, images, output.scores.float(), output.parts)
    drawn_by = replace(algorithm, normalize_parts=False, entropy_reward_coef=0.0)
    targets = token_advantages(drawn_by, rollout, scored.scores, generator=rng, parts=scored.parts, **inputs)
    scores = ", ".join(f"{score:.3g}" for score in scored.scores.tolist())
    print(f"advantages of {args.algorithm} with the reward {reward_name}; scores {scores}")
    return Heatmap.of(scored, targets, algorithm=algorithm, logprob_reference=logprob_reference)


def _check_maps(args: argparse.Namespace, no_reward: str) -> None:
    """Check, before a model is loaded, that the maps asked for will be there.

    no_reward: why nothing is scored, "" where something is.
    """
    maps = args.map or []
    if "advantage" in maps and no_reward:
        raise ValueError(f"--map advantage needs scores, and {no_reward}; look at another map, such as --map weight")
    if "kl_reference" in maps and args.reference is None:
        raise ValueError("--map kl_reference needs --reference: name the checkpoint that the KL is drawn to")


def _choices(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `Recipe` that were given as options."""
    given = {field.name: vars(args)[field.name] for field in fields(Recipe)}
    return {name: value for name, value in given.items() if value is not None}


def _reference(args: argparse.Namespace, generator: ImageGenerator) -> ImageGenerator:
    """Load the checkpoint that the KL is drawn to. ValueError where its tokens are others."""
    other = load_generator(args, args.reference)
    if (other.kind, other.codebook_size) != (generator.kind, generator.codebook_size):
        raise ValueError(
            f"--reference {args.reference} is a checkpoint of {other.kind} with {other.codebook_size} codes, "
            f"--checkpoint one of {generator.kind} with {generator.codebook_size}: their tokens mean different things"
        )
    if tuple(other.grid) != tuple(generator.grid):
        raise ValueError(
            f"--reference {args.reference} has a grid of {other.grid}, --checkpoint one of {tuple(generator.grid)}"
        )
    return other


def _logprobs(generator: ImageGenerator, rollout: Rollout, batch: int) -> torch.Tensor:
    """Score the tokens of so many images at once."""
    return in_chunks(lambda rows: generator.token_logprobs(rollout.rows(rows)), torch.arange(rollout.batch), batch)


def _reward(args: argparse.Namespace, prompt: Prompt) -> tuple[str | None, str]:
    """Return the reward to score with, or None and why there is none."""
    if args.reward == "none":
        return None, "no reward was asked for"
    if args.num < 2:
        return None, "an advantage compares an image with its siblings, and --num is 1"
    if args.reward is None and not prompt.metadata:
        return (
            None,
            "the prompt is none of the embedded ones, so the geneval reward cannot score it (name another with "
            f"--reward): {not_understood(prompt.text)}",
        )
    return args.reward or "geneval", ""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo heatmap", description=main.__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    add_generator_options(parser, checkpoint=source)
    source.add_argument("--npz", type=home_path, help="a heatmap.npz, or a step_N.npz of a run")
    source.add_argument("--run", type=home_path, help="a run folder: one prompt and noise over its steps")
    add = parser.add_argument
    add("--out", required=True, type=home_path, help="folder to write heatmap.png, heatmap.html and heatmap.npz to")
    add("--prompt", help='what the images show, e.g. "a photo of a red circle"; of a run: which of its pictures')
    add("--image", type=count, default=0, help="of a run: which of the prompt's images (default: %(default)s)")
    add("--num", type=positive, default=4, help="images; they are one group (default: %(default)s)")
    add(
        "--map",
        nargs="+",
        metavar="MAP",
        choices=KINDS,
        help=f"the first in heatmap.png, others beside it: {_list(KINDS)}",
    )
    add("--gif", action="store_true", help="heatmap.gif too: over the order of sampling, of a run over its steps")
    add("--columns", type=positive, help="images side by side in the picture")
    add("--algorithm", default="gcpo", help=f"whose credit: {_list(TABLE)} (default: %(default)s)")
    for field in fields(Recipe):
        kind = finite if isinstance(field.default, float) else str
        add(f"--{field.name}", type=kind, help=f"instead of the algorithm's, as algorithm.{field.name} of train")
    add("--reward", help="a registered reward, module:callable, or none; geneval for the embedded prompts, else none")
    add("--negative-prompt", help="what the prompt is contrasted with (default: the null prompt of guidance)")
    add(
        "--without",
        metavar="CLAUSE",
        help='the prompt less a part of it, e.g. "and a blue star", as the negative prompt',
    )
    add("--reference", help="a checkpoint that the KL is drawn to: the map kl_reference")
    add_sampling_options(parser)
    return parser


def _list(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(names)
