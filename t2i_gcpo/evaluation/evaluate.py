"""Scores a generator on held-out prompts: a table per task with 95 % intervals, and differences of checkpoints.

The differences are paired, image by image.

N images; each one's noise depends on (seed, the row of its prompt in the list, its number), so that two evaluations
with the same prompts and seed differ by the checkpoint alone and are compared image by image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rewards.base import Reward, RewardOutput, check, name_of
from rewards.function import as_reward
from t2i_gcpo.data.selection import evenly
from t2i_gcpo.evaluation.intervals import Estimates, Interval, estimate
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.generators.base import ImageGenerator, chunks
from t2i_gcpo.records import Prompt, Rollout, Sampling, Unmasking
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import check_shape, finite_or_none, read_json
from t2i_gcpo.utils.processes import ALONE, Processes, joined

#: What an eval.json must hold, of what is read back; and what newer ones hold besides.
SHAPE = {
    "images": [{"index": int, "image": int, "prompt": str, "task": str, "score": (float, None)}],
    "seed": int,
    "guidance": float,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "checkpoint": str,
    "prompts": str,
    "reward": str,
}
MORE_SHAPES = {"unmasking": dict, "held_out": {str: {"scores": [(float, None)]}}}
REASONS = [str]


@dataclass(frozen=True)
class ScoredImage:
    """Holds what is known about one image of an evaluation."""

    index: int
    """Row of its prompt in the list of prompts."""
    image: int
    """Number of the image among those of its prompt."""
    text: str
    task: str
    score: float
    """NaN where the scorer failed."""
    reasons: tuple[str, ...] = ()
    """Why it does not have the full score, where the scorer says so."""

    @property
    def failed(self) -> bool:
        return math.isnan(self.score)


@dataclass(frozen=True)
class EvalResult:
    """Holds N scored images and their means. Failed images are counted and left out of every mean."""

    rows: tuple[ScoredImage, ...]
    seed: int
    sampling: Sampling
    checkpoint: str = ""
    prompts: str = ""
    """Where the prompts came from."""
    reward: str = ""
    held_out: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Scorer that was not trained on -> its scores of the N images, in the order of `rows`; NaN where it failed."""
    images: Tensor | None = field(default=None, repr=False, compare=False)
    """[N, 3, H, W] uint8 on the CPU, if they were kept."""

    def kept_images(self) -> Tensor:
        """Return the images [N, 3, H, W]. ValueError where they were not kept."""
        if self.images is None:
            raise ValueError("the images of this result were not kept; call evaluate with keep_images=True")
        return self.images

    @cached_property
    def estimates(self) -> Estimates:
        # Rows of the same text are images of one prompt, also where the list repeats it.
        return estimate([r.score for r in self.rows], [r.text for r in self.rows], [r.task for r in self.rows])

    @property
    def overall(self) -> float:
        """Return the mean over tasks of the tasks' means."""
        return self.estimates.overall

    @property
    def by_task(self) -> dict[str, float]:
        return self.estimates.by_task

    @property
    def ci95(self) -> Interval:
        return self.estimates.ci95

    @property
    def by_task_ci95(self) -> dict[str, Interval]:
        return self.estimates.by_task_ci95

    @property
    def n(self) -> int:
        """Count the images that were sampled, failed ones included."""
        return len(self.rows)

    @property
    def failed(self) -> int:
        return sum(row.failed for row in self.rows)

    def under(self, name: str) -> EvalResult:
        """Return the same images under the scorer `name` of `held_out`."""
        scores = self.held_out[name]
        rows = tuple(replace(row, score=score, reasons=()) for row, score in zip(self.rows, scores, strict=True))
        return replace(self, rows=rows, reward=name, held_out={})

    def to_json(self) -> dict[str, Any]:
        """Return the content of eval.json. A number that does not exist (no image scored, an interval from one image)
        is null."""
        s = self.sampling
        return {
            "overall": finite_or_none(self.overall),
            "by_task": {task: finite_or_none(value) for task, value in self.by_task.items()},
            "n": self.n,
            "ci95": [finite_or_none(value) for value in self.ci95],
            "checkpoint": self.checkpoint,
            "prompts": self.prompts,
            "by_task_ci95": {task: [finite_or_none(v) for v in pair] for task, pair in self.by_task_ci95.items()},
            "n_by_task": self.estimates.n_by_task,
            "failed": self.failed,
            "reward": self.reward,
            "seed": self.seed,
            "guidance": s.guidance,
            "temperature": s.temperature,
            "top_k": s.top_k,
            "top_p": s.top_p,
            "unmasking": asdict(s.unmasking),
            "images": [_row_json(row) for row in self.rows],
            "held_out": {name: _held_out_json(self.under(name)) for name in self.held_out},
        }

    def save(self, path: str | Path) -> Path:
        """Write eval.json, as a whole or not at all, and return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        return write_atomically(path, text + "\n")

    @staticmethod
    def load(path: str | Path) -> EvalResult:
        """Read an eval.json that `save` wrote, without its images.

        ValueError, naming the file and what is wrong, for any other.
        """
        try:
            return EvalResult._read(path)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not an evaluation written by t2i-gcpo eval or train: {error}") from error

    @staticmethod
    def _read(path: str | Path) -> EvalResult:
        """Read an eval.json. ValueError or TypeError says what is wrong in it."""
        data = read_json(path, SHAPE)
        for key, shape in MORE_SHAPES.items():  # absent from files of older versions
            check_shape(data.get(key, {}), shape, f"{path}: {key}")
        for k, row in enumerate(data["images"]):
            check_shape(row.get("reasons", []), REASONS, f"{path}: images: entry {k}: reasons")
        rows = tuple(
            ScoredImage(
                r["index"],
                r["image"],
                r["prompt"],
                r["task"],
                math.nan if r["score"] is None else r["score"],
                tuple(r.get("reasons", ())),
            )
            for r in data["images"]
        )
        held_out = {
            name: tuple(math.nan if score is None else score for score in scores["scores"])
            for name, scores in data.get("held_out", {}).items()
        }
        for name, scores in held_out.items():
            if len(scores) != len(rows):
                raise ValueError(f"{path} has {len(scores)} scores of {name} for {len(rows)} images; it is damaged")
        if not rows:
            raise ValueError(f"{path} holds no images")
        names = ("guidance", "temperature", "top_k", "top_p", "seed")
        unmasking = Unmasking(**data.get("unmasking", {}))
        sampling = Sampling(**{k: data[k] for k in names}, contrast=False, stats=(), unmasking=unmasking)
        return EvalResult(rows, data["seed"], sampling, data["checkpoint"], data["prompts"], data["reward"], held_out)


@torch.no_grad()
def evaluate(
    generator: ImageGenerator,
    prompts: Sequence[Prompt],
    reward: Reward,
    *,
    sampling: Sampling,
    images_per_prompt: int = 1,
    batch: int = 64,
    seed: int,
    progress: bool = False,
    keep_images: bool = False,
    checkpoint: str = "",
    source: str = "",
    reward_name: str = "",
    held_out: Mapping[str, Reward] | None = None,
    observe: Callable[[Rollout, Tensor], None] | None = None,
    processes: Processes = ALONE,
) -> EvalResult:
    """Sample `images_per_prompt` images for each row of `prompts`, score them.

    >>> result = evaluate(generator, prompts.read("shapes:val")[:2], reward, sampling=Sampling(), seed=0)
    >>> len(result.rows), 0 <= result.overall <= 1
    (2, True)

    prompts: a prompt may come more than once (see `limit`); its images then have noise of their own, and count as one
    cluster in the intervals. sampling: guidance, temperature and truncation; its group size, seed, contrast and stats
    are replaced. batch: images at once; the result does not depend on it. checkpoint, source, reward_name: names for
    eval.json. held_out: name -> a scorer that judges the same images besides. observe: called with each batch's rollout
    and images; with it the sampling's contrast and stats are kept, and the images are the same. processes: each samples
    and scores a part of the prompts, and all return the whole result. ValueError: no prompts,
    a batch or a number of images below 1, a reward that returns the wrong number of scores.
    """
    if not prompts:
        raise ValueError("there are no prompts to evaluate on")
    if batch < 1 or images_per_prompt < 1:
        raise ValueError(f"batch is {batch}, images_per_prompt {images_per_prompt}; both must be at least 1")
    scorer = as_reward(reward, name=reward_name, failure="mark")
    others = {name: as_reward(other, name=name, failure="mark") for name, other in (held_out or {}).items()}
    check_scorable(prompts, scorer, *others.values())
    sampling = replace(sampling, group_size=images_per_prompt, seed=seed)
    if observe is None:
        sampling = replace(sampling, contrast=False, stats=())
    rows: list[ScoredImage] = []
    images_kept: list[Tensor] = []
    other_scores: dict[str, list[float]] = {name: [] for name in others}
    own = range(len(prompts))[processes.part(len(prompts))]
    hidden = not (progress and processes.is_main)
    with tqdm(total=len(own) * images_per_prompt, unit="image", desc="evaluate", disable=hidden, leave=False) as bar:
        for part in chunks(own, max(1, batch // images_per_prompt)):
            chosen = [prompts[index] for index in part]
            rollout = generator.sample(chosen, sampling, prompt_indices=part)
            images = generator.decode(rollout.tokens)
            if observe is not None:
                observe(rollout, images)
            owners = [(index, image) for index in part for image in range(images_per_prompt)]
            texts = [prompts[index].text for index, _ in owners]
            metadata = [prompts[index].metadata for index, _ in owners]
            scored = _scored(scorer, reward_name or name_of(scorer), images, texts, metadata)
            scores, reasons = scored.scores.tolist(), scored.reasons or ((),) * len(owners)
            rows += [
                ScoredImage(index, image, prompts[index].text, prompts[index].task, score, tuple(lines))
                for (index, image), score, lines in zip(owners, scores, reasons, strict=True)
            ]
            for name, other in others.items():
                other_scores[name] += _scored(other, name, images, texts, metadata).scores.tolist()
            if keep_images:
                images_kept.append(images.cpu())
            bar.update(len(owners))
    kept = joined(processes, images_kept)
    return EvalResult(
        tuple(joined(processes, rows)),
        seed,
        sampling,
        checkpoint,
        source,
        reward_name,
        {name: tuple(joined(processes, scores)) for name, scores in other_scores.items()},
        torch.cat(kept) if keep_images else None,
    )


def _scored(
    reward: Reward, name: str, images: Tensor, texts: list[str], metadata: list[dict[str, Any]]
) -> RewardOutput:
    return check(reward(images, texts, metadata), len(texts), name, texts, failure="mark")


def _row_json(row: ScoredImage) -> dict[str, Any]:
    """Return an image's entry in eval.json; its reasons where there are any."""
    known = {"index": row.index, "image": row.image, "prompt": row.text, "task": row.task}
    return {**known, "score": finite_or_none(row.score)} | ({"reasons": list(row.reasons)} if row.reasons else {})


def _held_out_json(result: EvalResult) -> dict[str, Any]:
    return {
        "overall": finite_or_none(result.overall),
        "ci95": [finite_or_none(value) for value in result.ci95],
        "by_task": {task: finite_or_none(value) for task, value in result.by_task.items()},
        "by_task_ci95": {task: [finite_or_none(v) for v in pair] for task, pair in result.by_task_ci95.items()},
        "failed": result.failed,
        "scores": [finite_or_none(row.score) for row in result.rows],
    }


def paired_difference(a: EvalResult, b: EvalResult) -> Estimates:
    """Return `b - a`, image by image: means per task and overall, with intervals clustered by prompt.

    Images that failed in either are left out. ValueError unless both have the same prompts in the same order, and the
    same seed.
    """
    if a.seed != b.seed or [_key(row) for row in a.rows] != [_key(row) for row in b.rows]:
        raise ValueError(
            f"the evaluations of {a.checkpoint or 'a'} (seed {a.seed}, {a.n} images) and {b.checkpoint or 'b'} (seed "
            f"{b.seed}, {b.n} images) "
            "have different images, so they cannot be paired; evaluate both with the same prompts, limit and seed"
        )
    differences = [after.score - before.score for before, after in zip(a.rows, b.rows, strict=True)]
    return estimate(differences, [row.text for row in a.rows], [row.task for row in a.rows])


def _key(row: ScoredImage) -> tuple[int, int, str, str]:
    return row.index, row.image, row.text, row.task


def pick(result: EvalResult, count: int) -> list[int]:
    """Choose `count` rows for a picture, the tasks in equal parts and evenly over the rows of each.

    They are never chosen by their score.
    """
    return evenly([row.task for row in result.rows], max(count, 0))
