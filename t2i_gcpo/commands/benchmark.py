"""`t2i-gcpo eval --benchmark NAME`: a published benchmark over its own prompt file, resumable and shared among
processes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2i_gcpo.commands.images_at_once import settle_batch
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.config import ROWS
from t2i_gcpo.commands.options.number_types import count
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.commands.options.shared import (
    add_generator_options,
    add_reward_option,
    add_sampling_options,
    load_generator,
    sampling,
    take_reward,
)
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.evaluation.benchmarks import layout
from t2i_gcpo.evaluation.benchmarks.run import ABOUT, Run, describe, records, work
from t2i_gcpo.evaluation.benchmarks.summary import Summary, summarise
from t2i_gcpo.evaluation.benchmarks.table import BENCHMARKS, Benchmark, find
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Prompt
from t2i_gcpo.reports.tables import number, print_note, print_table, with_interval
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.files import describe as describe_file
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import read_json

OPTION = "--benchmark"
EVALUATION, RESULT = "eval.json", "benchmark.json"


def asked(argv: Sequence[str]) -> bool:
    """Say whether `t2i-gcpo eval` is asked for a benchmark."""
    return any(token == OPTION or token.startswith(f"{OPTION}=") for token in argv)


def main(argv: list[str]) -> int:
    """Draw a published benchmark's prompts as often as it is usual, and score the images.

    Writes the images in GenEval's folder layout, scores, eval.json and benchmark.json. Started again with the same
    options, it goes on where it was; `--shard 0/8` to `--shard 7/8` share the work, and whichever ends last writes the
    result.
    """
    if {"-h", "--help"} & set(argv):
        parser().parse_args(["--help"])
    name = argparse.ArgumentParser(add_help=False)
    name.add_argument(OPTION, default="")
    benchmark = find(name.parse_known_args(argv)[0].benchmark)
    options, rest = take_reward(_with_reward(argv, benchmark))
    args = parser().parse_args(rest)
    check_folder(args.out, RESULT, EVALUATION)
    prompts = limit(benchmark.read(Path(args.prompts)), args.limit)
    run = Run(
        prompts,
        args.out,
        sampling(args),
        images=args.images or benchmark.images,
        batch=args.batch or ROWS,
        reward=options.name,
        shard=_shard(args.shard),
    )
    reward = build.reward(options)
    check_scorable(prompts, reward)
    args, run = _settled(args, run)
    describe(run.image_folder, _about_images(args, run, benchmark))
    describe(run.score_folder, reward.identity())
    work(run, lambda: _load(args, prompts), reward, progress=True)
    for kind in benchmark.layouts:
        _export(kind, run)
    scored = [record for record in records(run) if record is not None]
    if len(scored) < len(prompts):
        print(
            f"scored {len(scored)} of {len(prompts)} prompts; "
            "run the other shards, or once without --shard, for the result"
        )
        return 0
    summary = summarise(run, scored, benchmark, checkpoint=args.checkpoint, source=args.prompts)
    text = json.dumps(summary.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    written = [summary.result.save(args.out / EVALUATION), write_atomically(args.out / RESULT, text)]
    _print(summary)
    for path in [*written, run.image_folder]:
        print(f"wrote {path}")
    return int(summary.result.failed == summary.result.n)


def _settled(args: argparse.Namespace, run: Run) -> tuple[argparse.Namespace, Run]:
    """Return options and run with `--batch` chosen where it is left open; images that are there keep theirs."""
    there = run.image_folder / ABOUT
    if not args.batch and there.is_file() and isinstance(batch := read_json(there).get("batch"), int) and batch > 0:
        args = argparse.Namespace(**{**vars(args), "batch": batch})
    drawn = replace(run.sampling, group_size=run.images, contrast=False, stats=())
    args = settle_batch(args, run.prompts, drawn, images=run.images * len(run.prompts))
    return args, replace(run, batch=args.batch)


def _with_reward(argv: Sequence[str], benchmark: Benchmark) -> list[str]:
    """Put the benchmark's own scorer in front of the arguments, unless another is named."""
    if any(token == "--reward" or token.startswith(("--reward=", "--reward.name")) for token in argv):
        return list(argv)
    own = [f"--reward.{key}={value}" for key, value in benchmark.options.items()]
    return ["--reward", benchmark.reward, *own, *argv]


def _load(args: argparse.Namespace, prompts: list[Prompt]) -> ImageGenerator:
    generator = load_generator(args)
    generator.check_prompts(prompts)
    return generator


def _shard(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal()):
        raise ValueError(f"--shard is {text!r}; write this process's number and how many there are, e.g. 0/8")
    return int(first), int(second)


def _about_images(args: argparse.Namespace, run: Run, benchmark: Benchmark) -> dict[str, Any]:
    """Say what the pixels depend on; the batch, too, as another one may round differently."""
    checkpoint, source = Path(args.checkpoint), Path(args.prompts)
    files = sorted(checkpoint.rglob("*")) if checkpoint.is_dir() else []
    names = sorted(source.glob("*")) if source.is_dir() else [source]
    drawn = vars(run.sampling) | {"unmasking": vars(run.sampling.unmasking), "stats": list(run.sampling.stats)}
    return {
        "benchmark": benchmark.name,
        "prompts": {file.name: describe_file(file) for file in names if file.is_file()},
        "limit": args.limit,
        "checkpoint": args.checkpoint,
        "revision": args.revision,
        "files": {str(file.relative_to(checkpoint)): describe_file(file) for file in files if file.is_file()},
        "dtype": args.dtype,
        "images": run.images,
        "batch": args.batch,
        "sampling": drawn,
    }


def _export(kind: str, run: Run) -> None:
    if all(run.drawn(row) for row in range(len(run.prompts))):
        exported = layout.export(kind, run.image_folder, run.out / kind, run.prompts, run.images)
        print(f"wrote {exported} images to {run.out / kind} in the benchmark's own layout")


def _print(summary: Summary) -> None:
    result, own = summary.result, summary.benchmark
    rows = [
        [task, str(result.estimates.n_by_task[task]), with_interval(value, result.by_task_ci95[task])]
        for task, value in result.by_task.items()
    ]
    parts = {name: part for name, part in summary.parts.items() if name.startswith("category/")}
    rows += [[name, str(part.n), with_interval(part.overall, part.ci95)] for name, part in parts.items()]
    total = [own.number, str(result.n), with_interval(summary.number.overall, summary.number.ci95)]
    title = f"{own.name}: {result.checkpoint}, {result.reward}, guidance {number(result.sampling.guidance, digits=1)}"
    print_table(["task", "n", "score"], [*(rows if len(rows) > 1 else []), total], title=title)
    note = "in brackets: 95 % bootstrap interval, clustered by prompt"
    if result.failed:
        note += f"; {result.failed} images could not be scored and are left out"
    if not summary.whole:
        images = result.n // summary.prompts
        note += (
            f"; {summary.prompts} prompts with {images} images each, where the benchmark has {own.prompts} with "
            f"{own.images}: not a number to compare with published ones"
        )
    print_note(note)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo eval --benchmark", description=main.__doc__)
    add = parser.add_argument
    add(OPTION, required=True, metavar="NAME", help=", ".join(BENCHMARKS))
    add_generator_options(parser)
    add_sampling_options(parser)
    add_reward_option(parser)
    add("--prompts", required=True, help="the benchmark's own file, or a folder that holds its files")
    add(
        "--out", required=True, type=home_path, help="folder to write images, scores and the result to, and to go on in"
    )
    add("--images", type=count, default=0, help="images a prompt; 0 takes the benchmark's own number")
    add("--limit", type=count, default=0, help="prompts, the tasks in equal parts; 0 takes all")
    add(
        "--shard",
        default="0/1",
        metavar="K/N",
        help="this process's share of the work, counted from 0 (default: %(default)s)",
    )
    return parser
