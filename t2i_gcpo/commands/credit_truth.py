"""`t2i-gcpo credit-truth`: measure what each token does to the reward, and compare the rules of credit with it."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import rewards
from rewards.base import Reward
from t2i_gcpo.algorithms import ALL_STATS, TABLE, Algorithm
from t2i_gcpo.commands.images_at_once import settle_batch
from t2i_gcpo.commands.options.number_types import count, positive
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.commands.options.rules import read_rules
from t2i_gcpo.commands.options.shared import add_generator_options, add_sampling_options, load_generator, sampling
from t2i_gcpo.data import prompts as prompt_files
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.evaluation import causal_agreement
from t2i_gcpo.evaluation.causal_agreement import Agreement
from t2i_gcpo.evaluation.causal_file import Truth
from t2i_gcpo.evaluation.causal_influence import Influence, Plan, measure
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Prompt, Rollout, Sampling
from t2i_gcpo.reports.tables import agreement_note, agreement_rows, print_note, print_table
from t2i_gcpo.training.rollout import score
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.interrupt import on_interrupt

TRUTH, TABLE_FILE, PICTURE = "truth.safetensors", "truth.json", "truth.png"
#: Images of a prompt, so that the control with another image's weights has one.
GROUP = 2
#: Images in the picture, those with the most influence; and the end of its scale.
SHOWN, HIGHEST = 4, 30.0
RULES = (
    "grpo",
    "gcpo",
    "gcpo:normalization=none",
    "gcpo:divergence=abs,normalization=none",
    "gcpo:divergence=exact_kl,normalization=none",
    "gcpo_magnitude",
    "gcpo_variance",
    "gcpo_entropy",
    "gcpo_random",
    "gcpo_shuffled",
    "gcpo_sibling",
)


def main(argv: list[str]) -> int:
    """Measure what each token does to the reward, by drawing it anew and finishing the image; compare rules with it.

    The influence of a token is the standard deviation, over the tokens that could have been drawn in its place, of the
    expected reward of the images that begin so. Nothing is trained. Writes truth.safetensors (the images and their
    tokens' influence), truth.json (how well each rule of credit agrees) and truth.png. With --measured FILE nothing is
    drawn: the rules are compared on what was measured before.
    """
    args = parser().parse_args(argv)
    plan = Plan(args.places, args.alternatives, args.completions)
    check_folder(args.out, TRUTH, TABLE_FILE, PICTURE)
    rules = read_rules(args.rules, GROUP)
    lacking = [name for name, rule in rules.items() if rule.needed_vectors or rule.credit == "clauses"]
    if lacking:
        raise ValueError(
            f"--rules names {', '.join(lacking)}, whose weights are made of the tokens' vectors or of the prompt "
            "without a clause, which the file does not hold; name other rules"
        )
    of_events = [name for name, rule in rules.items() if rule.events is not None]
    if of_events:
        raise ValueError(
            f"--rules names {', '.join(of_events)}: events change what of a token is trained, and not how much it "
            "weighs; compare them with credit-alignment"
        )
    if args.measured is not None:
        truth = Truth.load(args.measured)
    elif args.checkpoint is None or args.prompts is None:
        raise ValueError("give --checkpoint and --prompts to measure, or --measured FILE")
    else:
        truth = measured(args, plan)
        print(f"wrote {truth.save(args.out / TRUTH)}")
    result = causal_agreement.agreement(truth, rules, seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / TABLE_FILE, json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {args.out / TABLE_FILE}")
    show(result)
    draw(truth, rules, args.seed).savefig(args.out / PICTURE, dpi=120)
    print(f"wrote {args.out / PICTURE}")
    return 0


def measured(args: argparse.Namespace, plan: Plan) -> Truth:
    """Draw the images, and measure their tokens."""
    prompts = limit(prompt_files.read(args.prompts), args.limit, repeat=True)
    reward = rewards.load(args.reward)
    check_scorable(prompts, reward)
    drawn = sampling(args, group_size=GROUP, stats=ALL_STATS)
    args = settle_batch(args, prompts, drawn, scored=True)
    generator = load_generator(args)
    generator.check_prompts(prompts)
    # Each image needs several rollouts of like size.
    generator.prepare(rollouts_ahead=1 + plan.alternatives * plan.completions)
    return draw_and_measure(generator, reward, prompts, drawn, plan, args)


def draw_and_measure(
    generator: ImageGenerator,
    reward: Reward,
    prompts: Sequence[Prompt],
    drawn: Sampling,
    plan: Plan,
    args: argparse.Namespace,
) -> Truth:
    """Go through the prompts one by one.

    Ctrl-C, SIGTERM and SIGHUP end it after the present prompt, and the prompts until then count.
    """
    rng = torch.Generator().manual_seed(args.seed)
    rollouts: list[Rollout] = []
    parts: list[Influence] = []
    scores: list[torch.Tensor] = []
    images: list[torch.Tensor] = []
    ended: list[str] = []
    with on_interrupt(ended.append):
        for index, prompt in enumerate(tqdm(prompts, desc="prompts", disable=None)):
            rollout = generator.sample([prompt], drawn, prompt_indices=[index])
            scored = score(generator, reward, rollout)
            scores.append(scored.scores.cpu())
            images.append(scored.images.cpu())
            parts.append(measure(generator, reward, rollout, plan, rng=rng))
            rollouts.append(rollout.cpu())
            if ended:
                print(f"{ended[0]}: {index + 1} of {len(prompts)} prompts are measured; the result is of these")
                break
    about: dict[str, Any] = {
        "checkpoint": args.checkpoint,
        "prompts": args.prompts,
        "prompts_measured": len(rollouts),
        "reward": args.reward,
        "guidance": args.guidance,
        "temperature": args.temperature,
        "places": plan.places,
        "alternatives": plan.alternatives,
        "completions": plan.completions,
        "mean_reward": float(torch.cat(scores).nanmean()),
    }
    return Truth(Rollout.cat(rollouts), Influence.cat(parts), torch.cat(images), torch.cat(scores), about)


def show(result: Agreement) -> None:
    """Print a table of the rules, and what its columns mean."""
    print_table(*agreement_rows(result), title="weights against influence")
    print_note(agreement_note(result))


def draw(truth: Truth, rules: dict[str, Algorithm], seed: int) -> Any:
    """Draw some images with their tokens' influence and each rule's weights, all of mean 1 and on one scale."""
    from matplotlib.figure import Figure

    grid = truth.rollout.grid
    total = np.nan_to_num(truth.influence.value.numpy()).sum(axis=1)
    shown = [int(image) for image in (-total).argsort(kind="stable")[:SHOWN] if total[image] > 0]
    value = truth.influence.value.numpy()[shown]
    maps = {"influence": value / np.nanmean(value, axis=1, keepdims=True)}
    maps |= {name: causal_agreement.weights(rule, truth.rollout, seed=seed)[0][shown] for name, rule in rules.items()}
    figure = Figure(figsize=(1.5 * (len(maps) + 1), 1.7 * len(shown) + 0.6), layout="constrained")
    panels = figure.subplots(len(shown), len(maps) + 1, squeeze=False)
    for row, image in enumerate(shown):
        panels[row, 0].imshow(truth.images[image].permute(1, 2, 0).numpy())
        panels[row, 0].set_ylabel(textwrap.fill(truth.rollout.row_prompts[image].text, 18), fontsize=6)
        for column, one in enumerate(maps.values(), start=1):
            drawn = panels[row, column].imshow(
                one[row].reshape(grid), cmap="magma", norm="symlog", vmin=0, vmax=HIGHEST
            )
    for column, name in enumerate(["image", *maps]):
        panels[0, column].set_title(name.replace(":", "\n").replace(",", "\n"), fontsize=6)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=panels, label="weight (mean 1); white: not measured", shrink=0.6)
    return figure


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo credit-truth", description=main.__doc__)
    add = parser.add_argument
    add_generator_options(parser, checkpoint=parser)
    add_sampling_options(parser)
    add("--prompts", help="a prompt file, or shapes:train, shapes:val, shapes:test")
    add("--out", required=True, type=home_path, help="folder to write truth.safetensors, truth.json and truth.png to")
    add("--measured", type=home_path, metavar="FILE", help="a truth.safetensors: compare rules with it, draw nothing")
    add(
        "--reward", default="geneval", help="a registered reward, or your own as module:callable (default: %(default)s)"
    )
    add(
        "--rules",
        nargs="+",
        default=list(RULES),
        metavar="RULE",
        help=f"rows of the algorithms' table ({', '.join(TABLE)}), with other choices after a colon",
    )
    add("--limit", type=count, default=0, help=f"prompts, the tasks in equal parts, {GROUP} images each; 0: all")
    add("--places", type=count, default=0, help="tokens of each image that are measured, at random; 0: all")
    add("--alternatives", type=positive, default=Plan.alternatives, help="tokens drawn in each place (%(default)s)")
    add(
        "--completions",
        type=positive,
        default=Plan.completions,
        help="images finished of each of them, an even number (default: %(default)s)",
    )
    return parser
