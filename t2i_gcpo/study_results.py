"""What a study found: a row a trial, a row a group pooled over its seeds; results.json and table.md."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from t2i_gcpo.checkpoint import write_atomically
from t2i_gcpo.evaluate import EvalResult
from t2i_gcpo.run_folder import Run
from t2i_gcpo.statistics import Estimates, pooled
from t2i_gcpo.study_file import Study, Trial
from t2i_gcpo.tables import PAIRED_NOTE, markdown, number, print_note, print_table, with_interval

Status = Literal["pending", "done", "failed", "interrupted"]

#: Metrics in the table are means over this many logged steps at the end of a run.
LAST_STEPS = 10
METRICS = ("kl", "entropy", "diversity")
COLUMNS = [
    "group", "seeds", "images", "before", "after", "difference", "lowest seed", "KL", "entropy", "diversity", "sampled",
    "min a run",
]  # fmt: skip
FAILED_COLUMNS = ["failed trial", "exit status", "last line of its log"]
NOTE = (
    "before, after, difference: mean over the tasks, then over the seeds; in brackets: 95 % bootstrap interval over seeds and prompts; "
    f"{PAIRED_NOTE}; images: such pairs, over all seeds; lowest seed: the smallest of the seeds' differences; KL (to the reference, nats a token), "
    f"entropy, diversity: mean of the last {LAST_STEPS} logged steps; sampled: images that a run sampled, those that dynamic "
    "sampling discarded included; min a run: training steps, without the evaluations"
)
ONE_SEED_NOTE = "of one seed, the interval is over prompts alone: it holds no variance between seeds"


@dataclass(frozen=True)
class Outcome:
    """How far a trial is."""

    status: Status = "pending"
    run: Run | None = None
    """Of a trial that is done."""
    exit_status: int | None = None
    last_line: str = ""
    """Of the log of a trial that failed."""


class Results:
    """Collects outcomes and writes them; `about`: versions, machine and the like, for results.json."""

    def __init__(self, study: Study, about: Mapping[str, Any]) -> None:
        self.study, self.about = study, about
        self.outcomes = {trial.name: Outcome() for trial in study.trials}
        self._trials = {trial.name: trial_row(trial, Outcome()) for trial in study.trials}
        self._groups = {group: group_row(group, members, self.outcomes) for group, members in study.groups.items()}

    def record(self, trial: Trial, outcome: Outcome) -> None:
        self.outcomes[trial.name] = outcome
        self._trials[trial.name] = trial_row(trial, outcome)
        self._groups[trial.group] = group_row(trial.group, self.study.groups[trial.group], self.outcomes)

    def to_json(self) -> dict[str, Any]:
        study = {"file": str(self.study.file), "content": self.study.content}
        return {
            "study": study,
            **self.about,
            "note": self.note(),
            "trials": [*self._trials.values()],
            "groups": [*self._groups.values()],
        }

    def finished(self) -> dict[str, list[Run]]:
        """Group -> the runs that are done; groups without any are left out."""
        runs = {
            group: [run for trial in members if (run := self.outcomes[trial.name].run) is not None]
            for group, members in self.study.groups.items()
        }
        return {group: found for group, found in runs.items() if found}

    def failed(self) -> list[list[str]]:
        """Rows below FAILED_COLUMNS."""
        return [
            [name, str(outcome.exit_status), outcome.last_line]
            for name, outcome in self.outcomes.items()
            if outcome.status == "failed"
        ]

    def note(self) -> str:
        single = any(row["seeds"] == 1 for row in self._groups.values())
        return NOTE + (f"; {ONE_SEED_NOTE}" if single else "")

    def write(self) -> None:
        """results.json and table.md, each replaced as a whole."""
        out = self.study.out
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False, default=str)
        write_atomically(out / "results.json", text + "\n")
        parts = [
            f"# {self.study.file.stem}\n",
            markdown(COLUMNS, table(self._groups.values())),
            self.note() + "\n",
            *self._by_task(),
        ]
        if self.failed():
            parts.append(markdown(FAILED_COLUMNS, self.failed()))
        write_atomically(out / "table.md", "\n".join(parts))

    def _by_task(self) -> list[str]:
        tasks = list(
            dict.fromkeys(
                task for row in self._groups.values() for task in (row["difference"] or {}).get("by_task", ())
            )
        )
        rows = [
            [row["group"], *(_interval_cell(row["difference"], task) for task in tasks)]
            for row in self._groups.values()
            if row["difference"]
        ]
        return ["Difference by task:\n", markdown(["group", *tasks], rows)] if rows else []

    def show(self) -> None:
        """The tables on the terminal."""
        print_table(COLUMNS, table(self._groups.values()))
        print_note(self.note())
        if self.failed():
            print_table(FAILED_COLUMNS, self.failed())


def trial_row(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """What results.json says of a trial; null where there is nothing, as for a trial that is not done."""
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
    """What results.json says of a group: its finished seeds, pooled."""
    done = [(trial, run) for trial in members if (run := outcomes[trial.name].run) is not None]
    runs = [run for _, run in done]
    before, after, difference, reason = pool(runs)
    lowest = None
    if difference is not None:
        found = [(run.difference()[0], trial.seed) for trial, run in done]
        overall, seed = min((e.overall, seed) for e, seed in found if e is not None)
        lowest = {"seed": seed, "difference": _finite(overall)}
    return {
        "group": group,
        "arm": members[0].arm,
        "options": members[0].options,
        "seeds": len(runs),
        "of": len(members),
        "images": difference and difference.n,
        "before": before and estimates(before),
        "after": after and estimates(after),
        "difference": difference and estimates(difference),
        "no_difference": reason or None,
        "lowest_seed": lowest,
        **{name: _mean([_at_the_end(run, name) for run in runs]) for name in METRICS},
        "seconds": _mean([run.seconds() for run in runs]),
        "images_sampled": _mean([run.last("images_sampled") for run in runs]),
    }


def pool(runs: Sequence[Run]) -> tuple[Estimates | None, Estimates | None, Estimates | None, str]:
    """Scores before, after and their paired difference, pooled over runs; or None of them and why."""
    if not runs:
        return None, None, None, "no seed is done"
    pairs: list[tuple[EvalResult, EvalResult]] = []
    for run in runs:
        difference, reason = run.difference()
        if difference is None or run.before is None or run.after is None:
            return None, None, None, f"{run.path}: {reason}"
        pairs.append((run.before, run.after))
    rows = pairs[0][0].rows
    clusters, tasks = [row.text for row in rows], [row.task for row in rows]
    if any(
        [(row.text, row.task) for row in before.rows] != [*zip(clusters, tasks, strict=True)] for before, _ in pairs
    ):
        return None, None, None, "the seeds have different test prompts"
    scores = [[[row.score for row in result.rows] for result in pair] for pair in pairs]
    before, after = (pooled([pair[k] for pair in scores], clusters, tasks) for k in (0, 1))
    differences = [[b - a for a, b in zip(*pair, strict=True)] for pair in scores]
    return before, after, pooled(differences, clusters, tasks), ""


def estimates(found: Estimates) -> dict[str, Any]:
    """Plain values for JSON; null for what there is not."""
    return {
        "overall": _finite(found.overall),
        "ci95": [_finite(bound) for bound in found.ci95],
        "n": found.n,
        "by_task": {task: _finite(value) for task, value in found.by_task.items()},
        "by_task_ci95": {task: [_finite(bound) for bound in pair] for task, pair in found.by_task_ci95.items()},
        "n_by_task": found.n_by_task,
    }


def table(groups: Any) -> list[list[str]]:
    """Rows of text below COLUMNS."""
    return [
        [
            row["group"],
            str(row["seeds"]) if row["seeds"] == row["of"] else f"{row['seeds']} of {row['of']}",
            "–" if row["images"] is None else f"{row['images']:,}",
            number(row["before"] and row["before"]["overall"]),
            number(row["after"] and row["after"]["overall"]),
            _interval_cell(row["difference"]),
            "–" if row["lowest_seed"] is None else number(row["lowest_seed"]["difference"], signed=True),
            number(row["kl"], digits=4),
            number(row["entropy"]),
            number(row["diversity"]),
            "–" if row["images_sampled"] is None else f"{row['images_sampled']:,.0f}",
            number(row["seconds"] and row["seconds"] / 60, digits=1),
        ]
        for row in groups
    ]


def _interval_cell(found: Mapping[str, Any] | None, task: str | None = None) -> str:
    """A difference, overall or of a task, with its interval."""
    value, pair = (None, (None, None))
    if found is not None:
        value = found["overall"] if task is None else found["by_task"].get(task)
        pair = found["ci95"] if task is None else found["by_task_ci95"].get(task, pair)
    if value is None:
        return number(None)
    low, high = (math.nan if bound is None else bound for bound in pair)
    return with_interval(value, (low, high), signed=True)


def _at_the_end(run: Run, name: str) -> float | None:
    """Mean of a metric over the last LAST_STEPS logged steps, where it was logged."""
    return _mean([row.get(name) for row in run.metrics[-LAST_STEPS:]])


def _ends(run: Run) -> tuple[float | None, float | None]:
    """The rollouts' mean reward over the first and the last tenth of the logged steps."""
    tenth = math.ceil(len(run.metrics) / 10)
    first, last = run.metrics[:tenth], run.metrics[len(run.metrics) - tenth :]
    return _mean([row.get("reward/mean") for row in first]), _mean([row.get("reward/mean") for row in last])


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
