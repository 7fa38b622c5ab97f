"""Compare how fast the groups of a study learn, at an equal number of sampled images.

The rewards are those of the training images, which every step draws anew, before it learns from them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2i_gcpo.evaluation.learning_curve import WINDOW, area, first_at, mean_at, over_seeds, samples_until, trailing
from t2i_gcpo.reports.run import Run
from t2i_gcpo.reports.tables import number, with_interval

REWARD, SAMPLED = "reward/mean", "images_sampled"
#: What is compared at an equal reward: how far the policy has gone for it, and what it has lost.
PAID = ("kl", "diversity")

COLUMNS = [
    "group", "seeds", "images", "area", "against", "difference", "images to its level", "of its own",
    *(f"{name} there (its own)" for name in ("KL", "diversity")),
]  # fmt: skip
NOTE = (
    "area: mean reward of the training images, up to the number that every finished run has sampled (images), "
    "discarded ones included; difference: less that of the group it stands against, seed by seed; in brackets: 95 % "
    f"Student interval over seeds; images to its level: images until the mean over {WINDOW} steps first reaches what "
    "the other group ends with under the same seed, median over seeds, and as a share of the other group's own number; "
    "first passages of a noisy curve are early for both; KL and diversity there: mean over these steps, and in "
    "brackets over those in which the other group first reached it, median over the seeds that reach it"
)


@dataclass(frozen=True)
class Curve:
    """Holds what a run logged, a value a step."""

    sampled: list[float]
    """Images up to each step."""
    rewards: list[float]
    """The step's mean reward."""
    paid: dict[str, list[float | None]]
    """Each of PAID; None where a step did not log it."""

    def area(self, budget: float) -> float:
        """Return the mean reward of the first `budget` images."""
        return area(self.sampled, self.rewards, budget)

    def until(self, level: float) -> float:
        """Return how many images were drawn when the trailing reward first was at least `level`; infinity: never."""
        return samples_until(self.sampled, self.rewards, level)

    def paid_at(self, name: str, level: float) -> float | None:
        """Return the mean of one of PAID over the steps whose mean reward first was at least `level`."""
        step = first_at(self.rewards, level)
        return None if step is None else mean_at(self.paid[name], step)


def rows(
    finished: Mapping[str, Sequence[tuple[int, Run]]], baselines: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return a row for each group, and one more for each group that it is compared with.

    finished: group -> its finished runs with their seeds. baselines: group -> the groups that it stands against. A run
    whose log lacks the reward or the number of images is left out.
    """
    curves = {
        group: {seed: one for seed, run in runs if (one := curve(run)) is not None} for group, runs in finished.items()
    }
    ends = [one.sampled[-1] for runs in curves.values() for one in runs.values()]
    if not ends:
        return []
    budget = min(ends)
    result = []
    for group, own in curves.items():
        if not own:
            continue
        areas = over_seeds([one.area(budget) for one in own.values()])
        row = {"group": group, "seeds": len(own), "images": budget, "area": areas, "against": None}
        compared = [
            _against(own, curves[name], budget) | {"against": name}
            for name in baselines.get(group, ())
            if own.keys() & curves.get(name, {}).keys()
        ]
        result += [row | one for one in compared] or [row]
    return result


def curve(run: Run) -> Curve | None:
    """Return what a run logged of the steps whose reward and number of images it logged; None: of no step."""
    logged = [row for row in run.metrics if row.get(SAMPLED) is not None and row.get(REWARD) is not None]
    if not logged:
        return None
    sampled, rewards = ([float(row[name]) for row in logged] for name in (SAMPLED, REWARD))
    return Curve(sampled, rewards, {name: [row.get(name) for row in logged] for name in PAID})


def _against(own: Mapping[int, Curve], theirs: Mapping[int, Curve], budget: float) -> dict[str, Any]:
    """Compare two groups over the seeds that both have."""
    pairs = [(own[seed], theirs[seed]) for seed in own if seed in theirs]
    levels = [float(trailing(other.rewards)[-1]) for _, other in pairs]
    until, their_own = (
        [pair[which].until(level) for pair, level in zip(pairs, levels, strict=True)] for which in (0, 1)
    )
    return {
        "difference": over_seeds([one.area(budget) - other.area(budget) for one, other in pairs]),
        "until": [None if math.isinf(count) else count for count in until],
        "share": [None if math.isinf(count) else count / other for count, other in zip(until, their_own, strict=True)],
        "paid": {
            name: [[one.paid_at(name, level) for one in pair] for pair, level in zip(pairs, levels, strict=True)]
            for name in PAID
        },
    }


def table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a row of COLUMNS for each comparison."""
    return [
        [
            row["group"],
            str(row["seeds"]),
            f"{row['images']:,.0f}",
            _interval(row["area"]),
            row["against"] or "–",
            _interval(row["difference"], signed=True) if row["against"] else "–",
            _median(row["until"], digits=0) if row["against"] else "–",
            _median(row["share"], digits=2) if row["against"] else "–",
            *(_paid(row["paid"][name]) if row["against"] else "–" for name in PAID),
        ]
        for row in found
    ]


def _interval(values: Mapping[str, Any], *, signed: bool = False) -> str:
    low, high = values["ci95"] or (math.nan, math.nan)
    return with_interval(values["mean"], (low, high), signed=signed)


def _median(values: Sequence[float | None], *, digits: int) -> str:
    """Return the median, where "never" is above every number."""
    middle = statistics.median(math.inf if value is None else value for value in values)
    return "never" if math.isinf(middle) else number(middle, digits=digits)


def _paid(pairs: Sequence[Sequence[float | None]]) -> str:
    """Return the medians of a group's values and of the other's, over the seeds that have both."""
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if not known:
        return "–"
    own, theirs = (statistics.median(values) for values in zip(*known, strict=True))
    return f"{number(own)} ({number(theirs)})"
