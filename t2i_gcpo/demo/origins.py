"""Says what each checkpoint of the demo is: how it was trained, what it scored, and which scores are told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2i_gcpo.commands.export import provenance
from t2i_gcpo.evaluation.intervals import Interval
from t2i_gcpo.evaluation.separation import overlapping
from t2i_gcpo.generators import deltas
from t2i_gcpo.generators.checkpoints import Checkpoint
from t2i_gcpo.reports.tables import number, with_interval

COLUMNS = ("checkpoint", "algorithm", "steps", "seed", "images sampled", "score [95 % interval]", "on")
#: Stands for the algorithm of tuned weights whose folder does not name it.
UNKNOWN = "not known"


@dataclass(frozen=True)
class Score:
    """Is what a checkpoint scored on a list of prompts."""

    mean: float
    interval: Interval
    """95 %; NaN where it is not known."""
    prompts: str
    images: int | None = None

    @property
    def on(self) -> str:
        return self.prompts if self.images is None else f"{self.prompts}, {self.images} images"


@dataclass(frozen=True)
class Origin:
    """Says how a checkpoint was trained; None where that is not known."""

    algorithm: str | None = None
    steps: int | None = None
    seed: int | None = None
    images: float | None = None
    """Sampled in training, discarded ones included."""
    score: Score | None = None


def origins(checkpoints: Mapping[str, Checkpoint]) -> dict[str, Origin]:
    """Describe checkpoints, by their names in the demo.

    One that training started from has the score that the runs of the others measured before their first step.
    """
    abouts = {name: _about(checkpoint) for name, checkpoint in checkpoints.items()}
    befores: dict[str, Score] = {}
    for about in abouts.values():
        before = _score(about, "test_before")
        if before is not None:
            befores.setdefault(str(about.get("base", _config(about).get("generator.checkpoint"))), before)
    found = {}
    for name, checkpoint in checkpoints.items():
        about = abouts[name]
        if about:
            score = _score(about, "test_after") or _validation(about)
            images = about.get("images_sampled")
            found[name] = Origin(
                about.get("algorithm") or UNKNOWN, about.get("step"), about.get("seed"), images and float(images), score
            )
        else:
            found[name] = Origin(score=befores.get(checkpoint.name))
    return found


def rows(found: Mapping[str, Origin]) -> list[list[str]]:
    """Return the rows of a table below COLUMNS."""
    return [
        [
            name,
            origin.algorithm or "not tuned here",
            number(None) if origin.steps is None else str(origin.steps),
            number(None) if origin.seed is None else str(origin.seed),
            number(None) if origin.images is None else f"{origin.images:,.0f}",
            number(None) if origin.score is None else with_interval(origin.score.mean, origin.score.interval),
            "" if origin.score is None else origin.score.on,
        ]
        for name, origin in found.items()
    ]


def verdict(found: Mapping[str, Origin]) -> str:
    """Return sentences that say which scores are told apart, and how that was decided; "" where none can be compared.

    Scores of the same prompts and number of images are compared with one another.
    """
    by_test: dict[str, dict[str, tuple[float, Interval]]] = {}
    for name, origin in found.items():
        if origin.score is not None and all(map(math.isfinite, origin.score.interval)):
            by_test.setdefault(origin.score.on, {})[name] = (origin.score.mean, origin.score.interval)
    return " ".join(_sentences(scores, test) for test, scores in by_test.items() if len(scores) > 1)


def _sentences(scores: Mapping[str, tuple[float, Interval]], test: str) -> str:
    alike = overlapping(scores)
    how = (
        f"Decided by 95 % intervals that hold together (Bonferroni, {len(scores)} scores on {test}): scores whose "
        "intervals overlap are not told apart. A run of two with the same prompts and noise, below, can tell more."
    )
    if not alike:
        return f"Each two of {_listed(list(scores))} are told apart. {how}"
    members = [name for name in scores if any(name in pair for pair in alike)]
    if len(alike) == len(members) * (len(members) - 1) // 2:
        rest = [name for name in scores if name not in members]
        apart = f" {_listed(rest)} {'is' if len(rest) == 1 else 'are'} told apart from each of them." if rest else ""
        return f"No two of {_listed(members)} are told apart.{apart} {how}"
    pairs = "; ".join(f"{one} and {other}" for one, other in alike)
    return f"These are not told apart: {pairs}. {how}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _about(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what is known of a training: of a delta its delta.json, of RUN/checkpoints/step_N its run folder."""
    if checkpoint.delta is not None:
        return deltas.read_about(checkpoint.delta)
    return provenance(checkpoint.adapter or checkpoint.folder)


def _config(about: Mapping[str, Any]) -> Mapping[str, Any]:
    config = about.get("config")
    return config if isinstance(config, dict) else {}


def _score(about: Mapping[str, Any], name: str) -> Score | None:
    scores = about.get("scores")
    found = scores.get(name) if isinstance(scores, dict) else None
    if not isinstance(found, dict) or found.get("overall") is None:
        return None
    low, high = (math.nan if bound is None else float(bound) for bound in found.get("ci95") or (None, None))
    return Score(float(found["overall"]), (low, high), str(found.get("prompts", "")), found.get("n"))


def _validation(about: Mapping[str, Any]) -> Score | None:
    """Return the score on the validation prompts at the checkpoint's step, which has no interval."""
    scores = about.get("scores")
    value = scores.get("validation") if isinstance(scores, dict) else None
    where = f"{_config(about).get('prompts.validation', 'validation prompts')}, during training"
    return None if value is None else Score(float(value), (math.nan, math.nan), where)
