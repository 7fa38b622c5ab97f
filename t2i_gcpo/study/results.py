"""The results of a study, collected trial by trial: results.json, table.md and the tables on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from t2i_gcpo.reports.run import Run
from t2i_gcpo.reports.tables import PAIRED_NOTE, markdown, number, print_note, print_table, with_interval
from t2i_gcpo.study import comparable, learning
from t2i_gcpo.study.rows import LAST_STEPS, Outcome, against_row, group_row, trial_row
from t2i_gcpo.study.spec import Study, Trial
from t2i_gcpo.utils.files import write_atomically

COLUMNS = [
    "group", "seeds", "images", "before", "after", "difference", "lowest seed", "KL", "entropy", "diversity", "sampled",
    "min a run",
]  # fmt: skip
AGAINST_COLUMNS = ["group", "against", "seeds", "images", "theirs", "its own", "difference", "lowest seed"]
AGAINST_NOTE = (
    "After training, group against group: the same seeds, test prompts and noise, compared image by image; positive "
    "where the group's score is above "
    "that of the one it stands against; intervals as above"
)
FAILED_COLUMNS = ["failed trial", "exit status", "last line of its log"]
NOTE = (
    "before, after, difference: mean over the tasks, then over the seeds; in brackets: 95 % bootstrap interval over "
    f"seeds and prompts; {PAIRED_NOTE}; images: such pairs, over all seeds; lowest seed: the smallest of the seeds' "
    f"differences; KL (to the reference, nats a token), entropy, diversity: mean of the last {LAST_STEPS} logged "
    "steps; sampled: images that a run sampled, those that dynamic sampling discarded included; min a run: training "
    "steps, without the evaluations"
)
ONE_SEED_NOTE = "of one seed, the interval is over prompts alone: it holds no variance between seeds"


class Results:
    """Collects the outcomes of trials and writes them; `about`: versions, machine and the like, for results.json."""

    def __init__(self, study: Study, about: Mapping[str, Any]) -> None:
        self.study, self.about = study, about
        self.outcomes = {trial.name: Outcome() for trial in study.trials}
        self._trials = {trial.name: trial_row(trial, Outcome()) for trial in study.trials}
        self._groups = {group: group_row(group, members, self.outcomes) for group, members in study.groups.items()}
        self._against, self._speeds = self._beside(), self._learning()

    def record(self, trial: Trial, outcome: Outcome) -> None:
        self.outcomes[trial.name] = outcome
        self._trials[trial.name] = trial_row(trial, outcome)
        self._groups[trial.group] = group_row(trial.group, self.study.groups[trial.group], self.outcomes)
        self._against, self._speeds = self._beside(), self._learning()

    def to_json(self) -> dict[str, Any]:
        study = {"file": str(self.study.file), "content": self.study.content}
        return {
            "study": study,
            **self.about,
            "note": self.note(),
            "code": comparable.read_code(self.study.out),
            "trials": [*self._trials.values()],
            "groups": [*self._groups.values()],
            "against": self._against,
            "learning": self._speeds,
        }

    def _learning(self) -> list[dict[str, Any]]:
        """Compare how fast the groups learn, at an equal number of images."""
        groups = self.study.groups
        finished = {
            group: [(one.seed, run) for one in members if (run := self.outcomes[one.name].run) is not None]
            for group, members in groups.items()
        }
        return learning.rows(
            finished, {group: self.study.compared_with(members[0]) for group, members in groups.items()}
        )

    def _beside(self) -> list[dict[str, Any]]:
        """Compare the groups with the study's baselines after training, over the seeds that both have done."""
        groups = self.study.groups
        return [
            against_row(group, members, baseline, groups[baseline], self.outcomes)
            for group, members in groups.items()
            for baseline in self.study.compared_with(members[0])
        ]

    def finished(self) -> dict[str, list[Run]]:
        """Return the runs that are done by group; groups without any are left out."""
        runs = {
            group: [run for trial in members if (run := self.outcomes[trial.name].run) is not None]
            for group, members in self.study.groups.items()
        }
        return {group: done for group, done in runs.items() if done}

    def failed(self) -> list[list[str]]:
        """Return a row of FAILED_COLUMNS for each trial that failed."""
        return [
            [name, str(outcome.exit_status), outcome.last_line]
            for name, outcome in self.outcomes.items()
            if outcome.status == "failed"
        ]

    def note(self) -> str:
        single = any(row["seeds"] == 1 for row in self._groups.values())
        unequal = comparable.unequal(self._groups.values(), self._against)
        budgets = f"{unequal} (max_images ends runs alike)" if unequal else ""
        versions = {one for hashes in comparable.read_code(self.study.out).values() for one in hashes}
        mixed = f"trials were run by {len(versions)} versions of the code" if len(versions) > 1 else ""
        return "; ".join(filter(None, (NOTE, ONE_SEED_NOTE if single else "", budgets, mixed)))

    def write(self) -> None:
        """Write results.json and table.md, each of which is replaced as a whole."""
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
        if self._against:
            parts += [AGAINST_NOTE + "\n", markdown(AGAINST_COLUMNS, against_table(self._against))]
        if self._speeds:
            parts += [learning.NOTE + "\n", markdown(learning.COLUMNS, learning.table(self._speeds))]
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
        """Print the tables on the terminal."""
        print_table(COLUMNS, table(self._groups.values()))
        print_note(self.note())
        if self._against:
            print_table(AGAINST_COLUMNS, against_table(self._against))
            print_note(AGAINST_NOTE)
        if self._speeds:
            print_table(learning.COLUMNS, learning.table(self._speeds))
            print_note(learning.NOTE)
        if self.failed():
            print_table(FAILED_COLUMNS, self.failed())


def table(groups: Any) -> list[list[str]]:
    """Return a row of COLUMNS for each group."""
    return [
        [
            row["group"],
            *_pooled_cells(row, "before", "after"),
            number(row["kl"], digits=4),
            number(row["entropy"]),
            number(row["diversity"]),
            "–" if row["images_sampled"] is None else f"{row['images_sampled']:,.0f}",
            number(row["seconds"] and row["seconds"] / 60, digits=1),
        ]
        for row in groups
    ]


def against_table(rows: Any) -> list[list[str]]:
    """Return a row of AGAINST_COLUMNS for each comparison."""
    return [[row["group"], row["against"], *_pooled_cells(row, "theirs", "own")] for row in rows]


def _pooled_cells(row: Mapping[str, Any], first: str, second: str) -> list[str]:
    """Return the cells that both tables share: seeds, images, both scores, their difference, the lowest seed's."""
    return [
        str(row["seeds"]) if row["seeds"] == row["of"] else f"{row['seeds']} of {row['of']}",
        "–" if row["images"] is None else f"{row['images']:,}",
        number(row[first] and row[first]["overall"]),
        number(row[second] and row[second]["overall"]),
        _interval_cell(row["difference"]),
        "–" if row["lowest_seed"] is None else number(row["lowest_seed"]["difference"], signed=True),
    ]


def _interval_cell(difference: Mapping[str, Any] | None, task: str | None = None) -> str:
    """Return a difference, overall or of a task, with its interval."""
    value, pair = (None, (None, None))
    if difference is not None:
        value = difference["overall"] if task is None else difference["by_task"].get(task)
        pair = difference["ci95"] if task is None else difference["by_task_ci95"].get(task, pair)
    if value is None:
        return number(None)
    low, high = (math.nan if bound is None else bound for bound in pair)
    return with_interval(value, (low, high), signed=True)
