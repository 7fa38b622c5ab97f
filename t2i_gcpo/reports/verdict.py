"""Say in one sentence what a training did to the scores: before, after, the difference, and the tasks that moved."""

from __future__ import annotations

import math

from t2i_gcpo.evaluation.intervals import Estimates
from t2i_gcpo.reports.run import Run
from t2i_gcpo.reports.tables import number, with_interval


def sentence(run: Run) -> str:
    """Say whether the score on the test prompts rose or fell, by how much, and which tasks did.

    A change counts where its 95 % interval leaves 0 out.
    """
    difference, reason = run.difference()
    if difference is None or run.before is None or run.after is None:
        return f"There is no verdict: {reason}."
    did = {1: "raised", -1: "lowered", 0: "did not measurably change"}[direction(difference.ci95)]
    scores = f"{number(run.before.overall)} → {number(run.after.overall)}"
    change = with_interval(difference.overall, difference.ci95, signed=True)
    if not all(map(math.isfinite, difference.ci95)):
        change += ", without an interval"
    return (
        f"{run.algorithm} {did} the score on the test prompts: {scores}, {change} (95 % interval, n = {difference.n} "
        f"pairs of images); {tasks_in_words(difference)}."
    )


def tasks_in_words(difference: Estimates) -> str:
    """Name the tasks that rose and those that fell, and count those of which neither can be said."""
    moved = {task: direction(interval) for task, interval in difference.by_task_ci95.items()}
    rose, fell = ([task for task, where in moved.items() if where == sign] for sign in (1, -1))
    if not rose and not fell:
        return "no task rose or fell by more than its own interval"
    parts = [f"{', '.join(tasks)} {verb}" for tasks, verb in ((rose, "rose"), (fell, "fell")) if tasks]
    parts += [f"none {verb}" for tasks, verb in ((rose, "rose"), (fell, "fell")) if not tasks]
    rest = len(moved) - len(rose) - len(fell)
    return ", ".join([*parts, *([f"{rest} of {len(moved)} tasks cannot be told from no change"] if rest else [])])


def direction(interval: tuple[float, float]) -> int:
    """Return 1 for an interval above 0, -1 for one below, and 0 for any other, also of no finite ends."""
    low, high = interval
    return 1 if low > 0 else -1 if high < 0 else 0
