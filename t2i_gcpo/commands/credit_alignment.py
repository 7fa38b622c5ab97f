"""`t2i-gcpo credit-alignment`: measure which rule of credit points a batch's gradient best along the true one."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

import rewards
from rewards.base import Reward
from t2i_gcpo.advantages import informative_groups
from t2i_gcpo.algorithms import TABLE, Algorithm
from t2i_gcpo.commands.images_at_once import settle_batch
from t2i_gcpo.commands.options.number_types import count, positive
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.commands.options.rules import read_rules
from t2i_gcpo.commands.options.shared import add_generator_options, add_sampling_options, load_generator, sampling
from t2i_gcpo.data import prompts as prompt_files
from t2i_gcpo.data.sampler import PromptSampler
from t2i_gcpo.evaluation.gradient_alignment import (
    LEAST_BATCHES,
    METRICS,
    STATISTICS,
    AlignmentResult,
    GradientFile,
    measure,
    products,
)
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.generators.base import DISTRIBUTIONS, ImageGenerator
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.reports.tables import number, print_note, print_table, with_interval
from t2i_gcpo.training.rollout import collect
from t2i_gcpo.training.rule_gradients import rule_gradients
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.interrupt import ERRORS, STATUS, Terminated, ended_by_signal, on_interrupt

RESULT, PLOT, GRADIENTS = "alignment.json", "alignment.png", "gradients.tmp"
#: Its expected gradient is the true one: all tokens of an image have the same weight.
TRUE_RULE = "grpo"


def main(argv: list[str]) -> int:
    """Measure, without training, how well each rule's gradient of one batch points along the true policy gradient.

    The same images serve all rules, so it costs about as much as --batches training steps. A rule is a row of the
    algorithms' table, with other choices after a colon: gcpo:normalization=none,divergence=abs. Writes alignment.json
    and alignment.png. Ctrl-C ends it after the present batch, and the result is of the batches until then.
    """
    args = parser().parse_args(argv)
    if args.batches < LEAST_BATCHES:
        raise ValueError(
            f"--batches is {args.batches}; it must be at least {LEAST_BATCHES}, as the intervals are over batches"
        )
    check_folder(args.out, RESULT, PLOT)
    rules = read_rules([TRUE_RULE, *args.rules], args.group_size)
    prompts = prompt_files.read(args.prompts)
    reward = rewards.load(args.reward)
    check_scorable(prompts, reward)
    stats = sorted({stat for rule in rules.values() for stat in rule.needed_stats})
    drawn = sampling(args, group_size=args.group_size, stats=tuple(stats))
    args = settle_batch(args, prompts, drawn, images=args.prompts_per_batch * args.group_size)
    generator = load_generator(args)
    generator.check_prompts(prompts)
    if any(rule.events is not None for rule in rules.values()):
        generator.check_events()
    if args.lora_rank:
        generator.add_lora(rank=args.lora_rank, alpha=2.0 * args.lora_rank, seed=args.seed)
    try:
        with ended_by_signal():
            result = run(generator, reward, prompts, drawn, rules, args)
    except Terminated as end:
        print(f"ended by {end.by}; no result is kept, as it takes {LEAST_BATCHES} batches", file=sys.stderr)
        return STATUS[end.by]
    print(f"wrote {result.save(args.out / RESULT)}")
    show(result)
    draw(result).savefig(args.out / PLOT, dpi=120)
    print(f"wrote {args.out / PLOT}")
    return 0


def run(
    generator: ImageGenerator,
    reward: Reward,
    prompts: Sequence[Prompt],
    drawn: Sampling,
    rules: dict[str, Algorithm],
    args: argparse.Namespace,
) -> AlignmentResult:
    """Draw the batches, keep every rule's gradients in a file while it runs, and measure them.

    Ctrl-C, SIGTERM and SIGHUP end it after the present batch, and the batches until then count.
    """
    size = sum(parameter.numel() for parameter in generator.trainable_parameters())
    needed = 4 * size * len(rules) * args.batches
    args.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.out).free
    if needed > free:
        raise ValueError(
            f"the gradients of {len(rules)} rules, {args.batches} batches and {size:,} parameters take "
            f"{needed / 1e9:.1f} GB in {args.out}, which has {free / 1e9:.1f} GB; name fewer rules or batches, or "
            "train adapters alone (--lora-rank)"
        )
    file = GradientFile(args.out / GRADIENTS, len(rules), args.batches, size)
    rng = torch.Generator().manual_seed(args.seed)
    informative: list[torch.Tensor] = []
    scores: list[torch.Tensor] = []
    ended: list[str] = []
    try:
        with on_interrupt(ended.append):
            for batch in tqdm(range(args.batches), desc="batches", disable=None):
                # Each batch draws its prompts anew and has noise of its own: batches are independent.
                sampler = PromptSampler(prompts, seed=int(torch.randint(2**62, (), generator=rng)))
                scored = collect(generator, reward, sampler.draw(args.prompts_per_batch), drawn, rng=rng)
                scores.append(scored.scores)
                informative.append(informative_groups(scored.scores, drawn.group_size))
                gradients = rule_gradients(
                    generator, scored, rules, distribution=args.distribution, micro_batch=args.micro_batch, rng=rng
                )
                for index, name in enumerate(rules):
                    file.write(index, batch, gradients[name])
                if ended:
                    break
        batches = len(scores)
        if batches < LEAST_BATCHES:
            raise ERRORS[ended[0]]
        if batches < args.batches:
            print(f"{ended[0]}: {batches} of {args.batches} batches are drawn; the result is of these")
        spread = torch.cat(informative)
        if not bool(spread.any()):
            raise ValueError(
                f"in none of the {len(spread)} groups do the rewards differ, so no rule has a gradient; name other "
                "prompts, another reward, or a larger --group-size"
            )
        sums = products(file.slices(batches), true=0, rules=len(rules))
    finally:
        file.remove()
    about = {
        "checkpoint": args.checkpoint,
        "prompts": args.prompts,
        "reward": args.reward,
        "batches": batches,
        "prompts_per_batch": args.prompts_per_batch,
        "group_size": args.group_size,
        "guidance": args.guidance,
        "temperature": args.temperature,
        "distribution": args.distribution,
        "lora_rank": args.lora_rank,
        "seed": args.seed,
        "parameters": size,
        "mean_reward": float(torch.cat(scores).nanmean()),
        "informative_groups": float(spread.float().mean()),
    }
    return measure(sums, list(rules), about)


def show(result: AlignmentResult) -> None:
    """Print a table a metric, and what its columns mean."""
    for metric in METRICS:
        rows = []
        for rule in result.rules:
            shown = [with_interval(rule.values[metric][name], rule.intervals[metric][name]) for name in STATISTICS]
            gain = with_interval(rule.gain[metric].value, rule.gain[metric].interval, signed=True)
            rows.append([rule.rule, *shown[:2], gain, *shown[2:]])
        title = "as AdamW sees it" if metric == "adamw" else "plain gradients"
        names = [name.replace("_", " ") for name in STATISTICS]
        print_table(["rule", *names[:2], f"less {TRUE_RULE}'s", *names[2:]], rows, title=title)
        print_note(f"Spearman's correlation of the alignments in two halves: {number(result.stability[metric])}")
    about = result.about
    print_note("; ".join(f"{name.replace('_', ' ')}: {meaning}" for name, meaning in STATISTICS.items()))
    print_note(
        f"less {TRUE_RULE}'s: the difference of the agreement on the same batches, in which shared chance cancels"
    )
    print_note(
        f"{about['batches']} batches of {about['prompts_per_batch']} x {about['group_size']} images, mean reward "
        f"{about['mean_reward']:.3f}, {about['informative_groups']:.0%} of the groups with rewards that differ; in "
        "brackets: 95 % jackknife interval over batches; a dash: not to be told from noise with so few batches"
    )


def draw(result: AlignmentResult) -> Any:
    """Draw how much better each rule agrees than the true rule, with its interval, a panel a metric, as a figure."""
    from matplotlib.figure import Figure

    names = [rule.rule for rule in result.rules]
    figure = Figure(figsize=(10, 1.6 + 0.35 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, METRICS, strict=True):
        for place, rule in enumerate(result.rules):
            axes.plot(rule.gain[metric].interval, [place, place], color="tab:blue")
            axes.plot([rule.gain[metric].value], [place], "o", color="tab:blue")
        axes.axvline(0, color="grey", linewidth=0.8, linestyle="--")
        title = "as AdamW sees it" if metric == "adamw" else "plain gradients"
        axes.set(title=title, xlabel=f"agreement, less {TRUE_RULE}'s")
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return figure


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo credit-alignment", description=main.__doc__)
    add_generator_options(parser)
    add_sampling_options(parser)
    add = parser.add_argument
    add("--prompts", required=True, help="a prompt file, or shapes:train, shapes:val, shapes:test")
    add("--out", required=True, type=home_path, help="folder to write alignment.json and alignment.png to")
    add(
        "--reward", default="geneval", help="a registered reward, or your own as module:callable (default: %(default)s)"
    )
    add(
        "--rules",
        nargs="+",
        default=["gcpo", "gcpo:normalization=none", "gcpo_entropy", "gcpo_shuffled"],
        metavar="RULE",
        help=f"rows of the algorithms' table ({', '.join(TABLE)}), with other choices after a colon; grpo is always "
        "measured, as its expected gradient is the true one",
    )
    add("--batches", type=positive, default=16, help="batches, at least 4 (default: %(default)s)")
    add("--prompts-per-batch", type=positive, default=8, help="prompts of a batch (default: %(default)s)")
    add("--group-size", type=positive, default=8, help="images a prompt, at least 2 (default: %(default)s)")
    add("--micro-batch", type=positive, default=16, help="images a forward pass with gradient (default: %(default)s)")
    add("--distribution", default="guided", choices=DISTRIBUTIONS, help="whose log-probs are trained")
    add("--lora-rank", type=count, default=0, help="measure new adapters of this rank; 0: what the checkpoint trains")
    return parser
