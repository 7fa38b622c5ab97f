"""Make the rows of a study, as plain values for JSON.

A row is a trial, a group pooled over its seeds, or a group compared with another after training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from t2i_gcpo.evaluation.evaluate import EvalResult, paired_difference
from t2i_gcpo.evaluation.intervals import Estimates, pooled
from t2i_gcpo.reports.run import Run
from t2i_gcpo.study.spec import Trial
from t2i_gcpo.utils.json_files import finite_or_none

Status = Literal["pending", "done", "failed", "interrupted"]

#: Metrics of a row are means over this many logged steps at the end of a run.
LAST_STEPS = 10
METRICS = ("kl", "entropy", "diversity")


@dataclass(frozen=True)
class Outcome:
    """Says how far a trial is."""

    status: Status = "pending"
    run: Run | None = None
    """The run folder of a trial that is done."""
    exit_status: int | None = None
    last_line: str = ""
    """The last line of the log of a trial that failed, or what is wrong with its folder."""


def trial_row(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """Return what results.json says of a trial; null where there is nothing, as for a trial that is not done."""
    run = outcome.run
    difference, reason = (None, "") if run is None else run.difference()
    first, last = (None, None) if run is None else _ends(run)
    return {
        "name": trial.name,
        "arm": trial.arm,
        "group": trial.group,
        "options": trial.options,
        "seed": trial.seed,
        "folder": str(trial.folder),
        "log": str(trial.log),
        "status": outcome.status,
        "exit_status": outcome.exit_status,
        "last_line": outcome.last_line or None,
        "steps": run and run.step,
        "images_sampled": run and run.last("images_sampled"),
        "seconds": run and run.seconds(),
        "before": run and run.before and estimates(run.before.estimates),
        "after": run and run.after and estimates(run.after.estimates),
        "difference": difference and estimates(difference),
        "no_difference": reason or None,
        **{name: None if run is None else _at_the_end(run, name) for name in METRICS},
        "reward_first_tenth": first,
        "reward_last_tenth": last,
    }


def group_row(group: str, members: Sequence[Trial], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return what results.json says of a group: its finished seeds, pooled."""
    done = {trial.seed: run for trial in members if (run := outcomes[trial.name].run) is not None}
    runs = [*done.values()]
    pairs, each, reason = {}, {}, ""
    for seed, run in done.items():
        difference, why = run.difference()
        if difference is None or run.before is None or run.after is None:
            reason = reason or f"{run.path}: {why}"
        else:
            pairs[seed], each[seed] = (run.before, run.after), difference.overall
    return {
        "group": group,
        "arm": members[0].arm,
        "options": members[0].options,
        "seeds": len(runs),
        "of": len(members),
        **_pooled(("before", "after"), pairs, each, reason),
        **{name: _mean([_at_the_end(run, name) for run in runs]) for name in METRICS},
        "seconds": _mean([run.seconds() for run in runs]),
        "images_sampled": _mean([run.last("images_sampled") for run in runs]),
    }


def against_row(
    group: str, members: Sequence[Trial], baseline: str, others: Sequence[Trial], outcomes: Mapping[str, Outcome]
) -> dict[str, Any]:
    """Return what results.json says of a group and another that it is compared with.

    It compares their scores after training, over the seeds that both have done.
    """
    theirs = {trial.seed: outcomes[trial.name].run for trial in others}
    pairs = {
        trial.seed: (other.after, own.after)
        for trial in members
        if (own := outcomes[trial.name].run) and (other := theirs.get(trial.seed)) and other.after and own.after
    }
    each, reason = {}, ""
    try:
        each = {seed: paired_difference(*pair).overall for seed, pair in pairs.items()}
    except ValueError as error:
        reason = str(error)
    row = {"group": group, "against": baseline, "seeds": len(pairs), "of": len(members)}
    return {**row, **_pooled(("theirs", "own"), pairs, each, reason)}


def _pooled(
    names: tuple[str, str],
    pairs: Mapping[int, tuple[EvalResult, EvalResult]],
    each: Mapping[int, float],
    reason: str,
) -> dict[str, Any]:
    """Pool the scores of each seed's pair of evaluations, under `names`, and their paired difference, over the seeds.

    `each`: the seeds' own differences. `reason`: why there is nothing to pool, or "".
    """
    first = second = difference = lowest = None
    if not pairs:
        reason = reason or "no seed is done"
    if not reason and len({tuple((row.text, row.task) for row in one.rows) for one, _ in pairs.values()}) > 1:
        reason = "the seeds have different test prompts"
    if not reason:
        rows = next(iter(pairs.values()))[0].rows
        clusters, tasks = [row.text for row in rows], [row.task for row in rows]
        scores = [[[row.score for row in result.rows] for result in pair] for pair in pairs.values()]
        first, second = (pooled([pair[k] for pair in scores], clusters, tasks) for k in (0, 1))
        difference = pooled([[b - a for a, b in zip(*pair, strict=True)] for pair in scores], clusters, tasks)
        seed = min(each, key=lambda seed: (each[seed], seed))
        lowest = {"seed": seed, "difference": finite_or_none(each[seed])}
    return {
        "images": difference and difference.n,
        names[0]: first and estimates(first),
        names[1]: second and estimates(second),
        "difference": difference and estimates(difference),
        "no_difference": reason or None,
        "lowest_seed": lowest,
    }


def estimates(values: Estimates) -> dict[str, Any]:
    """Return estimates as plain values for JSON, with null for what there is not."""
    return {
        "overall": finite_or_none(values.overall),
        "ci95": [finite_or_none(bound) for bound in values.ci95],
        "n": values.n,
        "by_task": {task: finite_or_none(value) for task, value in values.by_task.items()},
        "by_task_ci95": {task: [finite_or_none(bound) for bound in pair] for task, pair in values.by_task_ci95.items()},
        "n_by_task": values.n_by_task,
    }


def _at_the_end(run: Run, name: str) -> float | None:
    """Return the mean of a metric over the last LAST_STEPS logged steps, where it was logged."""
    return _mean([row.get(name) for row in run.metrics[-LAST_STEPS:]])


def _ends(run: Run) -> tuple[float | None, float | None]:
    """Return the rollouts' mean reward over the first and over the last tenth of the logged steps."""
    tenth = math.ceil(len(run.metrics) / 10)
    first, last = run.metrics[:tenth], run.metrics[len(run.metrics) - tenth :]
    return _mean([row.get("reward/mean") for row in first]), _mean([row.get("reward/mean") for row in last])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
