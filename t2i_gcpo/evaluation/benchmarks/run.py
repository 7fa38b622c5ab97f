"""Runs a benchmark with images and scores as files, prompt by prompt, so that a kill loses the prompts under way
and no more.

N prompts, G images of each. The prompts are drawn in fixed parts of consecutive rows, and a part is always drawn as a
whole: the images do not depend on what was there before, nor on how many processes shared the work.

    OUT/images/          GenEval's layout; about.json says what the pixels depend on
    OUT/scores/REWARD/   00000.json, ... one file a prompt; about.json says what the scores depend on
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rewards.base import AsyncReward, Pending, Reward, RewardOutput, check
from t2i_gcpo.evaluation.benchmarks import layout
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.utils.json_files import finite_or_none, read_json
from t2i_gcpo.utils.nested import flatten

ABOUT = "about.json"
#: Parts whose scores may be on their way while the next one is drawn.
_UNDER_WAY = 4


@dataclass(frozen=True)
class Run:
    """Says what is drawn, how, and where to."""

    prompts: Sequence[Prompt]
    out: Path
    sampling: Sampling
    images: int
    """G, images a prompt."""
    batch: int
    """Images at once."""
    reward: str
    """Name of the scorer, for its folder."""
    shard: tuple[int, int] = (0, 1)
    """This process's number and the number of processes that share the work."""

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch < 1:
            raise ValueError(f"{self.images} images a prompt, {self.batch} at once; both must be at least 1")
        if not 0 <= self.shard[0] < self.shard[1]:
            raise ValueError(
                f"shard {self.shard[0]}/{self.shard[1]}: the first number counts from 0 and is below the second"
            )

    @property
    def image_folder(self) -> Path:
        return self.out / "images"

    @property
    def score_folder(self) -> Path:
        return self.out / "scores" / "".join(c if c.isalnum() or c in "._-" else "_" for c in self.reward)

    def score_file(self, row: int) -> Path:
        return self.score_folder / f"{row:05d}.json"

    def drawn(self, row: int) -> bool:
        """Say whether all images of a prompt are there."""
        return all(file.is_file() for file in layout.files_of(self.image_folder, row, self.images))

    def parts(self) -> list[range]:
        """Return the rows of each part of this process: as many prompts as fill a batch."""
        size = max(1, self.batch // self.images)
        starts = range(0, len(self.prompts), size)
        return [
            range(start, min(start + size, len(self.prompts)))
            for number, start in enumerate(starts)
            if number % self.shard[1] == self.shard[0]
        ]


def describe(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what a folder's files depend on, or ValueError where there are files that depend on something else."""
    file = folder / ABOUT
    text = json.dumps(about, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if not file.exists() or all(path.name == ABOUT for path in folder.iterdir()):
        layout.write(file, text)
        return
    there, now = flatten(read_json(file)), flatten(json.loads(text))
    differ = [key for key in sorted({*there, *now}) if there.get(key) != now.get(key)]
    if differ:
        listed = "; ".join(f"{key} {there.get(key)!r} there, {now.get(key)!r} here" for key in differ)
        raise ValueError(f"{folder} is of another run ({listed}); name another --out, or delete {folder}")


def work(run: Run, load: Callable[[], ImageGenerator], reward: Reward, *, progress: bool = False) -> None:
    """Draw and score what is missing of this process's prompts.

    The generator is loaded where an image is missing, and not before.
    """
    generator: ImageGenerator | None = None
    waiting: deque[tuple[range, Pending]] = deque()
    parts = run.parts()
    total = run.images * sum(map(len, parts))
    with tqdm(total=total, unit="image", desc="benchmark", disable=not progress, leave=False) as bar:
        for part in parts:
            if not all(run.drawn(row) for row in part):
                generator = generator or load()
                _draw(run, generator, part)
            if not all(_read_scores(run, row) for row in part):
                waiting.append((part, _submit(run, reward, part)))
            if len(waiting) >= _UNDER_WAY or not isinstance(reward, AsyncReward):
                _finish(run, waiting)
            bar.update(run.images * len(part))
        while waiting:
            _finish(run, waiting)


@torch.no_grad()
def _draw(run: Run, generator: ImageGenerator, part: range) -> None:
    prompts = [run.prompts[row] for row in part]
    sampling = replace(run.sampling, group_size=run.images, contrast=False, stats=())
    rollout = generator.sample(prompts, sampling, prompt_indices=part)
    images = generator.decode(rollout.tokens)
    for k, row in enumerate(part):
        if not run.drawn(row):
            layout.write_prompt(run.image_folder, row, run.prompts[row], images[k * run.images : (k + 1) * run.images])


@dataclass(frozen=True)
class _Ready:
    """Holds scores of a reward that does not score elsewhere, as something to wait for."""

    output: RewardOutput

    def result(self) -> RewardOutput:
        return self.output


def _submit(run: Run, reward: Reward, part: range) -> Pending:
    # From the files, not from memory: what is scored is what is kept, and a run that goes on scores the same.
    images: Tensor = torch.cat([layout.read_prompt(run.image_folder, row, run.images) for row in part])
    owners = [run.prompts[row] for row in part for _ in range(run.images)]
    texts, metadata = [owner.text for owner in owners], [dict(owner.metadata) for owner in owners]
    if isinstance(reward, AsyncReward):
        return reward.submit(images, texts, metadata)
    return _Ready(reward(images, texts, metadata))


def _finish(run: Run, waiting: deque[tuple[range, Pending]]) -> None:
    """Wait for the oldest part's scores, and write them."""
    if not waiting:
        return
    part, pending = waiting.popleft()
    texts = [run.prompts[row].text for row in part for _ in range(run.images)]
    output = check(pending.result(), len(texts), run.reward, texts, failure="mark")
    columns = {"score": output.scores.tolist(), **{name: values.tolist() for name, values in output.parts.items()}}
    for k, row in enumerate(part):
        mine = slice(k * run.images, (k + 1) * run.images)
        values = {name: [finite_or_none(value) for value in column[mine]] for name, column in columns.items()}
        scores = values.pop("score")
        record = {"prompt": run.prompts[row].text, "task": run.prompts[row].task, "scores": scores, "parts": values}
        layout.write(run.score_file(row), json.dumps(record, ensure_ascii=False) + "\n")


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


@dataclass(frozen=True)
class Record:
    """Holds the scores of one prompt's G images, NaN where it failed, and parts, NaN where one does not apply."""

    scores: list[float]
    parts: dict[str, list[float]]


def _read_scores(run: Run, row: int) -> Record | None:
    """Read one prompt's scores; None where they are missing, or where an image has none: it is scored again."""
    record = _read(run, row)
    return None if record is None or any(math.isnan(value) for value in record.scores) else record


def _read(run: Run, row: int) -> Record | None:
    file = run.score_file(row)
    if not file.is_file():
        return None
    data = read_json(file, {"prompt": str, "scores": [(float, None)], "parts": {str: [(float, None)]}})
    scores = _numbers(data["scores"])
    parts = {name: _numbers(values) for name, values in data["parts"].items()}
    if data["prompt"] != run.prompts[row].text or {len(scores), *map(len, parts.values())} != {run.images}:
        raise ValueError(f"{file} is of another prompt, or of another number of images; name another --out")
    return Record(scores, parts)


def records(run: Run) -> Iterator[Record | None]:
    """Read each prompt's scores, in the order of the prompts; None where they are missing."""
    return (_read(run, row) for row in range(len(run.prompts)))
