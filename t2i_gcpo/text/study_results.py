"""Make the results of a study of text from the files of its finished trials.

There is a row an arm, pooled over the seeds that it has finished, and one for each arm beside the one that the study
compares with.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2i_gcpo.evaluation import learning_curve
from t2i_gcpo.evaluation.intervals import pooled
from t2i_gcpo.evaluation.learning_curve import over_seeds
from t2i_gcpo.text import study
from t2i_gcpo.text.run import AFTER, METRICS, SAMPLED
from t2i_gcpo.text.study_curves import Curve, draw
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import read_json, read_json_lines

RESULTS, TABLE, CURVES = "results.json", "table.md", "curves.png"
PACKAGES = ("torch", "transformers", "trl", "t2i-gcpo")
NOTE = (
    "before, after: share of the test questions that a sampled answer solves, mean over the three numbers of operands, "
    "then over seeds; in brackets: 95 % bootstrap interval over seeds and questions. area: mean reward of the "
    "completions that the training sampled, up to the budget; in brackets: 95 % Student interval over seeds. sampled: "
    "completions of a run, those that dynamic sampling discarded included. differences: the arm minus the one it "
    "stands against, same seeds, questions and noise, question by question; areas seed by seed"
)


def write(spec: study.Spec, out: Path) -> dict[str, Any]:
    """Write results.json, table.md and curves.png, and return the content of results.json.

    ValueError: an arm whose learning rate is not tuned yet, or without a finished seed.
    """
    results = pool(spec, out)
    write_atomically(out / RESULTS, json.dumps(results, indent=1) + "\n")
    write_atomically(out / TABLE, table(results))
    curves = {arm: [curve(study.seed_folder(out, arm, seed)) for seed in finished(spec, out, arm)] for arm in spec.arms}
    starts = [start["overall"] for start in (read_json(study.start_file(out, seed)) for seed in spec.seeds)]
    finals = {row["arm"]: (row["sampled"], row["after"]["mean"], row["after"]["ci95"]) for row in results["arms"]}
    draw(curves, start=float(np.mean(starts)), finals=finals).savefig(out / CURVES, dpi=110)
    return results


def pool(spec: study.Spec, out: Path) -> dict[str, Any]:
    """Return the content of results.json."""
    others = [arm for arm in spec.arms if arm != spec.against]
    return {
        "note": NOTE,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "study": spec.to_json(),
        "arms": [arm_row(spec, out, arm) for arm in spec.arms],
        "against": [pair_row(spec, out, arm) for arm in others],
    }


def finished(spec: study.Spec, out: Path, arm: str) -> list[int]:
    """Return the seeds that an arm has finished. ValueError where there is none."""
    seeds = [seed for seed in spec.seeds if (study.seed_folder(out, arm, seed) / AFTER).is_file()]
    if not seeds:
        raise ValueError(f"{out} holds no finished trial of the arm {arm}; run the study first")
    return seeds


def arm_row(spec: study.Spec, out: Path, arm: str) -> dict[str, Any]:
    """Pool one arm over its seeds."""
    seeds = finished(spec, out, arm)
    folders = [study.seed_folder(out, arm, seed) for seed in seeds]
    before = [read_json(study.start_file(out, seed)) for seed in seeds]
    after = [read_json(folder / AFTER) for folder in folders]
    logs = [steps(folder) for folder in folders]
    areas = [area(log, budget(spec)) for log in logs]
    return {
        "arm": arm,
        "learning_rate": study.tuned_rate(spec, out, arm),
        "tuning": {f"{r:g}": study.accuracy(study.tuning_folder(out, arm, r)) for r in spec.learning_rates},
        "seeds": seeds,
        "before": _pooled(before),
        "after": _pooled(after),
        "gain": _pooled(after, before),
        "area": over_seeds(areas),
        "updates": [len(log) for log in logs],
        "sampled_by_seed": [log[-1][SAMPLED] for log in logs],
        "sampled": float(np.mean([log[-1][SAMPLED] for log in logs])),
        "seconds": [sum(row["step_time"] for row in log) for log in logs],
    }


def pair_row(spec: study.Spec, out: Path, arm: str) -> dict[str, Any]:
    """Pool one arm minus the one that the study compares with, over the seeds that both have finished."""
    seeds = [seed for seed in finished(spec, out, arm) if seed in finished(spec, out, spec.against)]
    own, theirs = ([study.seed_folder(out, name, seed) for seed in seeds] for name in (arm, spec.against))
    areas = [[area(steps(folder), budget(spec)) for folder in folders] for folders in (own, theirs)]
    return {
        "arm": arm,
        "against": spec.against,
        "seeds": seeds,
        "after": _pooled([read_json(f / AFTER) for f in own], [read_json(f / AFTER) for f in theirs]),
        "area": over_seeds([a - b for a, b in zip(*areas, strict=True)]),
    }


def steps(folder: Path) -> list[dict[str, Any]]:
    """Read the logged steps of a trial; the last line of a log sums the run up, and is no step."""
    return [row for row in read_json_lines(folder / METRICS) if row.get("reward") is not None]


def budget(spec: study.Spec) -> int:
    """Return how many completions the area counts."""
    return int(spec.base["max_completions"])


def area(log: Sequence[Mapping[str, Any]], budget: int) -> float:
    """Return the mean reward of a trial's first `budget` completions, from the means of its steps."""
    return learning_curve.area([row[SAMPLED] for row in log], [row["reward"] for row in log], budget)


def curve(folder: Path) -> Curve:
    """Return the completions sampled up to each step, and the mean reward of the step's own."""
    log = steps(folder)
    return [row[SAMPLED] for row in log], [row["reward"] for row in log]


def _pooled(results: Sequence[Mapping[str, Any]], minus: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Pool evaluations of the same questions, or their differences, with intervals over seeds and questions."""
    rows = [result["completions"] for result in results]
    scores = np.array([[row["score"] for row in one] for one in rows], dtype=float)
    if minus is not None:
        scores -= np.array([[row["score"] for row in one["completions"]] for one in minus], dtype=float)
    clusters, tasks = [row["index"] for row in rows[0]], [row["task"] for row in rows[0]]
    e = pooled(scores.tolist(), clusters, tasks)
    each = [pooled([values], clusters, tasks, resamples=1).overall for values in scores.tolist()]
    return {
        "mean": e.overall,
        "ci95": list(e.ci95),
        "by_seed": each,
        "by_task": e.by_task,
        "by_task_ci95": {task: list(pair) for task, pair in e.by_task_ci95.items()},
        "questions": len(rows[0]),
    }


def table(results: Mapping[str, Any]) -> str:
    """Write the two tables in Markdown, and the note."""
    arms = [
        [
            row["arm"], f"{row['learning_rate']:g}", str(len(row["seeds"])), _number(row["before"]),
            _number(row["after"]), _number(row["area"]), _range(row["updates"]), _range(row["sampled_by_seed"]),
        ]
        for row in results["arms"]
    ]  # fmt: skip
    pairs = [
        [
            row["arm"], row["against"], str(len(row["seeds"])), _number(row["after"], signed=True),
            f"{min(row['after']['by_seed']):+.3f}", _number(row["area"], signed=True),
        ]
        for row in results["against"]
    ]  # fmt: skip
    head = ["arm", "learning rate", "seeds", "before", "after", "area", "updates", "sampled"]
    pair_head = ["arm", "against", "seeds", "after, difference", "lowest seed", "area, difference"]
    return "\n\n".join([_markdown(head, arms), _markdown(pair_head, pairs), results["note"]]) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: Mapping[str, Any], *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text, ci95 = f"{value['mean']:{sign}.3f}", value["ci95"]
    return text if ci95 is None else f"{text} [{ci95[0]:{sign}.3f}, {ci95[1]:{sign}.3f}]"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
