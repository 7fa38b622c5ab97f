"""Tells where the steps of a run spend their time, from the `time/` metrics that each step logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2i_gcpo.evaluation.intervals import Interval
from t2i_gcpo.reports.run import Run

PREFIX, TOTAL, OTHER = "time/", "time/step", "time/other"
HEADER = ["phase", "s a step", "share", "95 % interval"]
#: What the phases are; stands below every table of them.
NOTE = (
    "sample: draw the tokens; decode: tokens to pixels; score: the reward; credit: advantages and token weights; "
    "forward: log-probs of the "
    "policy and its reference, and the loss; backward: gradients and the optimiser. Shares are of the summed time "
    "of the steps; their "
    "intervals are from a bootstrap over steps."
)
RESAMPLES = 2000


@dataclass(frozen=True)
class Phase:
    """A phase's mean seconds a step, and its share of the steps' time."""

    name: str
    seconds: float
    share: float
    ci95: Interval


def phases(run: Run, *, first_step: int = 1, seed: int = 0) -> tuple[list[Phase], int]:
    """The phases, the costliest first and "other" last, and the number of steps from `first_step` on.

    Without such a step: none.
    """
    rows = [row for row in run.metrics if TOTAL in row and int(row["step"]) >= first_step]
    if not rows:
        return [], 0
    totals = np.array([float(row[TOTAL]) for row in rows])
    drawn = np.random.default_rng(seed).integers(len(rows), size=(RESAMPLES, len(rows)))
    names = {name for row in rows for name in row if name.startswith(PREFIX) and name != TOTAL}
    found = []
    for name in names:
        seconds = np.array([float(row.get(name, 0.0)) for row in rows])
        shares = seconds[drawn].sum(axis=1) / totals[drawn].sum(axis=1)
        low, high = np.quantile(shares, [0.025, 0.975])
        share = float(seconds.sum() / totals.sum())
        found.append(Phase(name.removeprefix(PREFIX), float(seconds.mean()), share, (float(low), float(high))))
    found.sort(key=lambda phase: (PREFIX + phase.name == OTHER, -phase.seconds, phase.name))
    return found, len(rows)


def table_rows(found: Sequence[Phase]) -> list[list[str]]:
    """Rows under `HEADER`, the whole step last."""
    rows = [
        [phase.name, f"{phase.seconds:.3f}", f"{phase.share:.1%}", f"{phase.ci95[0]:.1%} to {phase.ci95[1]:.1%}"]
        for phase in found
    ]
    return [*rows, ["step", f"{sum(phase.seconds for phase in found):.3f}", "100.0%", ""]]


def to_json(found: Sequence[Phase], steps: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "seconds_per_step": sum(phase.seconds for phase in found),
        "phases": {p.name: {"seconds": p.seconds, "share": p.share, "share_ci95": list(p.ci95)} for p in found},
    }
