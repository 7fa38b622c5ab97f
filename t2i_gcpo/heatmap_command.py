"""`t2i-gcpo heatmap`: sample a group of images for a prompt and draw the credit of their tokens."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from t2i_gcpo import heatmap
from t2i_gcpo.algorithms import TABLE, resolve, token_advantages, token_weights
from t2i_gcpo.command_options import add_generator_options, add_sampling_options, load_generator, sampling
from t2i_gcpo.records import Prompt, ScoredRollout


def main(argv: list[str]) -> int:
    """`t2i-gcpo heatmap`: sample images for a prompt, draw the credit of their tokens; writes heatmap.png, .html and .npz.

    With a reward the advantages are drawn, else the token weights alone.
    """
    args = _parser().parse_args(argv)
    import rewards

    if args.num < 1:
        raise ValueError(f"--num is {args.num}; it must be at least 1")
    prompt = find_prompt(args.prompt)
    reward_name, reason = _reward(args, prompt)
    algorithm = resolve(args.algorithm, group_size=max(args.num, 2))
    if not reward_name and algorithm.credit == "uniform":
        raise ValueError(
            f"algorithm {args.algorithm} weighs all tokens alike, and {reason}: there is nothing to draw; choose gcpo"
        )
    generator = load_generator(args)
    drawn = sampling(
        args,
        group_size=args.num,
        contrast=True,
        stats=tuple(sorted({"entropy", *algorithm.needed_stats})),
    )
    rollout = generator.sample([prompt], drawn, negative_prompts=args.negative_prompt)
    with torch.no_grad():
        images = generator.decode(rollout.tokens).cpu()
    rng = torch.Generator().manual_seed(args.seed)  # the controls draw from it
    if reward_name:
        output = rewards.load(reward_name)(images, [prompt.text] * args.num, [prompt.metadata] * args.num)
        scored = ScoredRollout(rollout, images, output.scores.float(), output.parts)
        targets = token_advantages(replace(algorithm, normalize_parts=False), rollout, scored.scores, generator=rng)
        paths = heatmap.save(args.out, "heatmap", scored, targets, algorithm=algorithm)
        print(
            f"advantages of {args.algorithm} with the reward {reward_name}; scores {', '.join(f'{s:.3g}' for s in scored.scores.tolist())}"
        )
        if not targets.sequence_advantages.any():
            print(
                "the images scored alike, so every advantage is 0: look at the weights in the html, or try another --seed or --num"
            )
    else:
        scored = ScoredRollout(rollout, images, torch.full((args.num,), torch.nan))
        weights = token_weights(algorithm, rollout, generator=rng)
        paths = heatmap.save(args.out, "heatmap", scored, weights=weights, algorithm=algorithm)
        print(f"token weights of {args.algorithm}, no advantages: {reason}")
    for path in paths:
        print(f"wrote {path}")
    return 0


def find_prompt(text: str) -> Prompt:
    """A text; with its metadata if it is one of the embedded prompts."""
    from t2i_gcpo.shapes.prompts import SPLITS, split

    text = " ".join(text.split())
    if not text:
        raise ValueError("--prompt is empty; write what the image should show")
    return next((prompt for name in SPLITS for prompt in split(name) if prompt.text == text), Prompt(text))


def _reward(args: argparse.Namespace, prompt: Prompt) -> tuple[str | None, str]:
    """The reward to score with, or None and why there is none."""
    if args.reward == "none":
        return None, "no reward was asked for"
    if args.num < 2:
        return None, "an advantage compares an image with its siblings, and --num is 1"
    if args.reward is None and not prompt.metadata:
        return (
            None,
            "the prompt is none of the embedded ones, so the geneval reward cannot score it (name another with --reward)",
        )
    return args.reward or "geneval", ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo heatmap", description=main.__doc__)
    add_generator_options(parser)
    add = parser.add_argument
    add("--prompt", required=True, help='what the images show, e.g. "a photo of a red circle"')
    add("--out", required=True, type=Path, help="folder to write heatmap.png, heatmap.html and heatmap.npz to")
    add("--num", type=int, default=4, help="images; they are one group (default: %(default)s)")
    add("--algorithm", default="gcpo", help=f"whose credit: {', '.join(TABLE)} (default: %(default)s)")
    add("--reward", help="a registered reward, module:callable, or none; geneval for the embedded prompts, else none")
    add("--negative-prompt", help="what the prompt is contrasted with (default: the null prompt of guidance)")
    add_sampling_options(parser)
    return parser
