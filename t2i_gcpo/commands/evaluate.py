"""Score a checkpoint on held-out prompts, alone or against a second one: `t2i-gcpo eval`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import rewards
from rewards.geneval.detectors import load as load_detector
from t2i_gcpo.algorithms import ALL_STATS
from t2i_gcpo.commands import benchmark
from t2i_gcpo.commands.images_at_once import settle_batch
from t2i_gcpo.commands.options.number_types import count
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.commands.options.shared import add_generator_options, add_sampling_options, load_generator, sampling
from t2i_gcpo.data import prompts as prompt_files
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.evaluation.benchmarks.table import BENCHMARKS
from t2i_gcpo.evaluation.causal_agreement import Agreement
from t2i_gcpo.evaluation.causal_file import Truth
from t2i_gcpo.evaluation.credit_location import CreditObserver, CreditResult, against_truth, check_named
from t2i_gcpo.evaluation.evaluate import EvalResult, evaluate, pick
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Prompt
from t2i_gcpo.reports.tables import print_credit, print_evaluation
from t2i_gcpo.utils import pictures
from t2i_gcpo.utils.destination import check_folder

EVALUATION, CREDIT = "eval.json", "credit.json"
#: File of a checkpoint -> the same of --against.
AGAINST = {EVALUATION: "eval_against.json", CREDIT: "credit_against.json"}


def main(argv: list[str]) -> int:
    """Score a checkpoint on held-out prompts, per task, with 95 % intervals; writes eval.json and sample grids."""
    if benchmark.asked(argv):
        return benchmark.main(argv)
    args = parser().parse_args(argv)
    check_folder(args.out, EVALUATION, CREDIT, *AGAINST.values(), "samples.png", "against.png")
    prompts = limit(prompt_files.read(args.prompts), args.limit, repeat=True)
    reward = rewards.load(args.reward)
    check_scorable(prompts, reward)
    if args.credit:
        check_named(prompts)
    truth = _truth(args)
    drawn = sampling(args, stats=ALL_STATS) if args.credit else sampling(args)
    names = list(dict.fromkeys([args.checkpoint, *([args.against] if args.against else [])]))
    asked = drawn if args.credit else replace(drawn, contrast=False, stats=())
    args = settle_batch(args, prompts, replace(asked, group_size=1), *names[1:], images=len(prompts))
    generator: ImageGenerator | None = _checked(args, names, prompts)
    results, measured, written = {}, {}, []
    for name in names:
        observer = CreditObserver(load_detector("shapes")) if args.credit else None
        generator = generator or load_generator(args, name)
        results[name] = evaluate(
            generator,
            prompts,
            reward,
            sampling=drawn,
            batch=args.batch,
            seed=args.seed,
            progress=True,
            keep_images=True,
            checkpoint=name,
            source=args.prompts,
            reward_name=args.reward,
            observe=observer,
        )
        generator = None  # a card need not hold both
        # Saved at once: what happens to the other checkpoint, or to the terminal, cannot take it away.
        written.append(_save(results[name], args.out / EVALUATION, name, args))
        if observer is not None:
            about = {"checkpoint": name, "prompts": args.prompts, "limit": args.limit, "seed": args.seed}
            result = observer.result(**about, guidance=args.guidance, temperature=args.temperature)
            measured[name] = replace(result, truth=truth if name == args.checkpoint else None)
            written.append(_save(measured[name], args.out / CREDIT, name, args))
    ours, other = results[args.checkpoint], results.get(args.against)
    try:
        written += _pictures(ours, other, args.out, args.pictures)
    finally:  # the numbers are worth more than the pictures
        print_evaluation(ours, other)
        for result in measured.values():
            print_credit(result)
    for path in written:
        print(f"wrote {path}")
    return 0


def _truth(args: argparse.Namespace) -> Agreement | None:
    """Compare the maps with the influence in --truth. ValueError: a file of another checkpoint, or no --credit."""
    if args.truth is None:
        return None
    if not args.credit:
        raise ValueError("--truth compares the maps of --credit with it; give --credit too")
    truth = Truth.load(args.truth)
    if truth.about["checkpoint"] != args.checkpoint:
        raise ValueError(
            f"{args.truth} was measured on the checkpoint {truth.about['checkpoint']}, and --checkpoint is "
            f"{args.checkpoint}; measure it there with: t2i-gcpo credit-truth --checkpoint {args.checkpoint} ..."
        )
    return against_truth(truth, seed=args.seed)


def _checked(args: argparse.Namespace, names: list[str], prompts: list[Prompt]) -> ImageGenerator:
    """Load every checkpoint once, so that one that cannot be used shows before any is evaluated; returns the first."""
    for name in reversed(names[1:]):
        load_generator(args, name).check_prompts(prompts)  # and let go of it: a card need not hold both
    generator = load_generator(args, names[0])
    generator.check_prompts(prompts)
    return generator


def _save(result: EvalResult | CreditResult, path: Path, name: str, args: argparse.Namespace) -> Path:
    """Save what was measured of a checkpoint; that of --against has a file of its own."""
    return result.save(path if name == args.checkpoint else path.with_name(AGAINST[path.name]))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo eval", description=main.__doc__)
    add_generator_options(parser)
    add_sampling_options(parser)
    add = parser.add_argument
    add(
        benchmark.OPTION,
        metavar="NAME",
        help=f"a published benchmark ({', '.join(BENCHMARKS)}) with options of its own: "
        "t2i-gcpo eval --benchmark NAME --help",
    )
    add("--prompts", required=True, help="a prompt file, or shapes:test, shapes:val, shapes:train")
    add("--out", required=True, type=home_path, help="folder to write eval.json and the sample grids to")
    add("--against", help="a second checkpoint: same prompts, same noise, paired differences")
    add(
        "--reward", default="geneval", help="a registered reward, or your own as module:callable (default: %(default)s)"
    )
    add(
        "--limit",
        type=count,
        default=0,
        help="images, the tasks in equal parts, prompts repeated where a task has too few; 0: each prompt once",
    )
    add(
        "--credit",
        action="store_true",
        help=(
            "also measure where credit lies: every credit rule and its controls against the objects' cells, on "
            "ShapeScenes; writes credit.json"
        ),
    )
    add(
        "--truth",
        type=home_path,
        metavar="FILE",
        help="with --credit: a truth.safetensors of `t2i-gcpo credit-truth`; compares the maps with what each token "
        "does to the reward, on the images in the file",
    )
    add("--pictures", type=count, default=24, help="images in the sample grid (default: %(default)s)")
    return parser


def _pictures(ours: EvalResult, other: EvalResult | None, out: Path, count: int) -> list[Path]:
    """Save samples.png and, with another checkpoint, against.png: images of each task in equal parts."""
    shown = pick(ours, count)
    if not shown:
        return []
    captions = [ours.rows[k].text for k in shown]
    scores = [ours.rows[k].score for k in shown]
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "samples.png"]
    grid = pictures.sample_grid(ours.kept_images()[shown], captions, columns=6, scores=scores, title=ours.checkpoint)
    pictures.write_png(paths[0], grid)
    if other is not None:
        paths.append(out / "against.png")
        both = pictures.before_after(
            other.kept_images()[shown],
            ours.kept_images()[shown],
            captions,
            scores_before=[other.rows[k].score for k in shown],
            scores_after=scores,
            labels=("A", "B"),
            pairs=3,
            title=f"A: {other.checkpoint}   B: {ours.checkpoint}",
        )
        pictures.write_png(paths[1], both)
    return paths
