"""Score pictures on disk with any scorer: `t2i-gcpo score`. N is the number of images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rewards.base import Reward, RewardOutput, check, join
from rewards.identity import hide_secrets
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.number_types import positive
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.commands.options.shared import add_reward_option, take_reward
from t2i_gcpo.evaluation.intervals import Estimates, estimate
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.reports.image_folders import Picture, find
from t2i_gcpo.reports.tables import print_note, print_table, with_interval
from t2i_gcpo.utils.destination import check_file
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import finite_or_none

NOTE = "mean over the images that have a value; in brackets: 95 % bootstrap interval, clustered by prompt"


def main(argv: list[str]) -> int:
    """Score a folder of images, or the samples of a run, with any scorer or mixture; writes JSON and prints a table."""
    if {"-h", "--help"} & set(argv):
        parser().parse_args(["--help"])
    options, rest = take_reward(argv)
    args = parser().parse_args(rest)
    check_file(args.out)
    pictures, source = find(args.images, args.prompts)
    reward = build.reward(options)
    check_scorable([picture.prompt for picture in pictures], reward)
    notes = look_over(pictures)
    scores = score(pictures, reward, name=options.name, batch=args.batch, progress=True)
    about = {"reward": options.name, "options": hide_secrets(options.options)}
    where = {"images": str(args.images), "prompts": source, "notes": notes}
    text = json.dumps({**about, **where, **scores.to_json()}, indent=1, ensure_ascii=False) + "\n"
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, text)
    finally:  # what cannot be written can still be read
        print_table(*scores.table(), title=f"{options.name} on {args.images}")
        print_note(NOTE + (f"; {scores.failed} images could not be scored" if scores.failed else ""))
        for note, files in notes.items():
            print_note(
                f"{len(files)} of {len(pictures)} images have {note} ({files[0]}{', ...' if len(files) > 1 else ''})"
            )
    print(f"wrote {args.out}")
    return int(scores.failed == len(pictures))


def look_over(pictures: Sequence[Picture]) -> dict[str, list[str]]:
    """Read every picture once, before any is scored; returns note on what was left out -> the files that it is of.

    ValueError, naming it, for a damaged file: the last one of many must not take the scores of the others with it.
    """
    notes: dict[str, list[str]] = {}
    for picture in tqdm(pictures, unit="image", desc="read", leave=False, disable=None):
        for note in picture.read()[1]:
            notes.setdefault(note, []).append(picture.name)
    return notes


@dataclass(frozen=True)
class Scores:
    """Holds N pictures and what the scorer says of them."""

    pictures: Sequence[Picture]
    output: RewardOutput
    """[N]; NaN = could not be scored, in a part: does not apply."""

    @property
    def failed(self) -> int:
        return int(self.output.scores.isnan().sum())

    @cached_property
    def estimates(self) -> dict[str, Estimates]:
        """Return the mean over all images of "score", and then of each part."""
        one_task = ["all"] * len(self.pictures)
        return {name: self._estimate(values, one_task) for name, values in self._columns.items()}

    @cached_property
    def by_group(self) -> Estimates:
        """Return the mean score of each task, in a run of each step."""
        return self._estimate(self.output.scores, [picture.group for picture in self.pictures])

    @property
    def _columns(self) -> dict[str, Tensor]:
        return {"score": self.output.scores, **self.output.parts}

    def _estimate(self, values: Tensor, tasks: list[str]) -> Estimates:
        return estimate(values.tolist(), [picture.prompt.text for picture in self.pictures], tasks)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows: the score, its groups where there are several, and the parts."""
        score, *parts = [[name, str(e.n), with_interval(e.overall, e.ci95)] for name, e in self.estimates.items()]
        e = self.by_group
        groups = [
            [f"  {name}", str(e.n_by_task[name]), with_interval(value, e.by_task_ci95[name])]
            for name, value in e.by_task.items()
        ]
        return ["what", "images", "mean"], [score, *(groups if len(groups) > 1 else []), *parts]

    def to_json(self) -> dict[str, Any]:
        """Return what the file holds; numbers that do not exist are null."""
        e = self.by_group
        columns = {name: [finite_or_none(value) for value in values.tolist()] for name, values in self._columns.items()}
        scores = columns.pop("score")
        return {
            "n": len(self.pictures),
            "failed": self.failed,
            **_mean(self.estimates["score"]),
            "groups": {
                name: {
                    "mean": finite_or_none(e.by_task[name]),
                    "ci95": list(map(finite_or_none, e.by_task_ci95[name])),
                    "n": n,
                }
                for name, n in e.n_by_task.items()
            },
            "parts": {name: {**_mean(part), "n": part.n} for name, part in self.estimates.items() if name != "score"},
            "rows": [
                {
                    "file": picture.name,
                    "prompt": picture.prompt.text,
                    "group": picture.group,
                    "score": scores[k],
                    "parts": {name: values[k] for name, values in columns.items()},
                }
                for k, picture in enumerate(self.pictures)
            ],
        }


def score(pictures: Sequence[Picture], reward: Reward, *, name: str, batch: int = 32, progress: bool = False) -> Scores:
    """Score pictures in their order, `batch` of one size at once. ValueError for a damaged file, or what the scorer
    refuses."""
    outputs = []
    with tqdm(total=len(pictures), unit="image", desc="score", disable=not progress, leave=False) as bar:
        for part, images in _batches(pictures, batch):
            texts = [picture.prompt.text for picture in part]
            output = reward(images, texts, [picture.prompt.metadata for picture in part])
            output = check(output, len(part), name, texts, failure="mark")
            parts = {label: values.detach().float().cpu() for label, values in output.parts.items()}
            outputs.append(RewardOutput(output.scores.cpu(), parts))
            bar.update(len(part))
    return Scores(pictures, join(outputs))


def _batches(pictures: Sequence[Picture], most: int) -> Iterator[tuple[list[Picture], Tensor]]:
    """Yield pictures of one size that follow one another, and their images [B, 3, H, W]."""
    part: list[Picture] = []
    images: list[Tensor] = []
    for picture in pictures:
        image = picture.pixels()
        if part and (len(part) == most or image.shape != images[0].shape):
            yield part, torch.stack(images)
            part, images = [], []
        part.append(picture)
        images.append(image)
    if part:
        yield part, torch.stack(images)


def _mean(e: Estimates) -> dict[str, Any]:
    return {"mean": finite_or_none(e.overall), "ci95": list(map(finite_or_none, e.ci95))}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo score", description=main.__doc__)
    add = parser.add_argument
    add_reward_option(parser)
    add(
        "--images",
        required=True,
        type=home_path,
        help=(
            "a folder of t2i-gcpo sample, a run, a folder in GenEval's layout, or files named after rows of "
            "--prompts: 12.png, 12_0.png"
        ),
    )
    add("--prompts", help="a prompt file, or shapes:test and the like: the prompts' metadata, and their rows")
    add("--out", required=True, type=home_path, help="JSON file to write")
    add("--batch", type=positive, default=32, help="images at once (default: %(default)s)")
    return parser
