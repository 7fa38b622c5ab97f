"""Sums up a benchmark's scores: the number that is reported, tasks and parts, with intervals clustered by prompt.

N images of P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2i_gcpo.evaluation.benchmarks.run import Record, Run
from t2i_gcpo.evaluation.benchmarks.table import Benchmark
from t2i_gcpo.evaluation.evaluate import EvalResult, ScoredImage
from t2i_gcpo.evaluation.intervals import Estimates, estimate
from t2i_gcpo.utils.json_files import finite_or_none

#: DPG-Bench's categories among the parts, which are means over questions.
CATEGORY = "category/"


@dataclass(frozen=True)
class Summary:
    """Holds a benchmark's result.

    A part's mean is over the images to which it applies, a category's over its questions.
    """

    benchmark: Benchmark
    number: Estimates
    """`overall` is the number that is reported."""
    result: EvalResult
    """All scores, by task."""
    parts: Mapping[str, Estimates]
    prompts: int
    """P; fewer than the benchmark has where a limit was set."""

    @property
    def whole(self) -> bool:
        """Say whether all prompts of the official files were drawn, as often as it is usual."""
        images = self.result.n // self.prompts
        return self.prompts == self.benchmark.prompts and images == self.benchmark.images

    def to_json(self) -> dict[str, Any]:
        """Return what benchmark.json holds. A number that does not exist is null."""
        return {
            "benchmark": self.benchmark.name,
            "source": self.benchmark.source,
            "number": {"what": self.benchmark.number, **_mean(self.number)},
            "whole": self.whole,
            "prompts": self.prompts,
            "images": self.result.n,
            "failed": self.result.failed,
            "reward": self.result.reward,
            "checkpoint": self.result.checkpoint,
            "file": self.result.prompts,
            "by_task": {
                task: {
                    "mean": finite_or_none(value),
                    "ci95": [finite_or_none(v) for v in self.result.by_task_ci95[task]],
                }
                for task, value in self.result.by_task.items()
            },
            "parts": {name: {**_mean(part), "n": part.n} for name, part in self.parts.items()},
        }


def summarise(run: Run, scored: Sequence[Record], benchmark: Benchmark, *, checkpoint: str, source: str) -> Summary:
    """Sum up P prompts' scores. `source` is where the prompts came from."""
    rows = tuple(
        ScoredImage(index, image, run.prompts[index].text, run.prompts[index].task, score)
        for index, record in enumerate(scored)
        for image, score in enumerate(record.scores)
    )
    result = EvalResult(rows, run.sampling.seed, run.sampling, checkpoint, source, run.reward)
    one_task = ["all"] * len(rows)
    over_images = estimate([row.score for row in rows], [row.text for row in rows], one_task)
    number = result.estimates if benchmark.number == "mean over tasks" else over_images
    names = dict.fromkeys(name for record in scored for name in record.parts)
    return Summary(benchmark, number, result, {name: _part(run, scored, name) for name in names}, len(scored))


def _part(run: Run, scored: Sequence[Record], name: str) -> Estimates:
    values: list[float] = []
    clusters: list[str] = []
    for prompt, record in zip(run.prompts, scored, strict=True):
        for value in record.parts.get(name, []):
            times = _questions(prompt.metadata, name) if name.startswith(CATEGORY) else 1
            values += [value] * times
            clusters += [prompt.text] * times
    return estimate(values, clusters, ["all"] * len(values))


def _questions(metadata: Mapping[str, Any], name: str) -> int:
    """Count how many of a prompt's questions are of the category that the part is named after."""
    category = name.removeprefix(CATEGORY)
    return sum(question.get("category") == category for question in metadata.get("questions") or ())


def _mean(e: Estimates) -> dict[str, Any]:
    return {"mean": finite_or_none(e.overall), "ci95": [finite_or_none(value) for value in e.ci95]}
