"""Compare how fast the groups of a study learn, at an equal number of sampled images.

The rewards are those of the training images, which every step draws anew, before it learns from them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from t2i_gcpo.evaluation.learning_curve import WINDOW, area, over_seeds, samples_until, trailing
from t2i_gcpo.reports.run import Run
from t2i_gcpo.reports.tables import number, with_interval

Curve = tuple[list[float], list[float]]
"""Images sampled up to each step, and the step's mean reward."""
REWARD, SAMPLED = "reward/mean", "images_sampled"

COLUMNS = ["group", "seeds", "images", "area", "against", "difference", "images to its level", "of its own"]
NOTE = (
    "area: mean reward of the training images, up to the number that every finished run has sampled (images), "
    "discarded ones included; difference: less that of the group it stands against, seed by seed; in brackets: 95 % "
    f"Student interval over seeds; images to its level: images until the mean over {WINDOW} steps first reaches what "
    "the other group ends with under the same seed, median over seeds, and as a share of the other group's own number; "
    "first passages of a noisy curve are early for both"
)


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
    ends = [sampled[-1] for runs in curves.values() for sampled, _ in runs.values()]
    if not ends:
        return []
    budget = min(ends)
    result = []
    for group, own in curves.items():
        if not own:
            continue
        areas = over_seeds([area(*one, budget) for one in own.values()])
        row = {"group": group, "seeds": len(own), "images": budget, "area": areas, "against": None}
        compared = [_against(own, curves[name], budget) | {"against": name} for name in baselines.get(group, ())
                    if own.keys() & curves.get(name, {}).keys()]  # fmt: skip
        result += [row | one for one in compared] or [row]
    return result


def curve(run: Run) -> Curve | None:
    """Return the images sampled up to each step and the step's mean reward, where both were logged."""
    both = [
        (float(row[SAMPLED]), float(row[REWARD]))
        for row in run.metrics
        if row.get(SAMPLED) is not None and row.get(REWARD) is not None
    ]
    return ([one for one, _ in both], [value for _, value in both]) if both else None


def _against(own: Mapping[int, Curve], theirs: Mapping[int, Curve], budget: float) -> dict[str, Any]:
    """Compare two groups over the seeds that both have."""
    seeds = [seed for seed in own if seed in theirs]
    levels = {seed: float(trailing(theirs[seed][1])[-1]) for seed in seeds}
    until = {seed: samples_until(*own[seed], levels[seed]) for seed in seeds}
    their_own = {seed: samples_until(*theirs[seed], levels[seed]) for seed in seeds}
    return {
        "difference": over_seeds([area(*own[seed], budget) - area(*theirs[seed], budget) for seed in seeds]),
        "until": [None if math.isinf(until[seed]) else until[seed] for seed in seeds],
        "share": [None if math.isinf(until[seed]) else until[seed] / their_own[seed] for seed in seeds],
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
