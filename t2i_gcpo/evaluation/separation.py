"""Says which of several scores their intervals tell apart, where nothing but scores and intervals is known.

Scores of the same images are better compared image by image (`evaluate.paired_difference`), which sees less.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from statistics import NormalDist

from t2i_gcpo.evaluation.intervals import LEVEL, Interval


def joint(mean: float, interval: Interval, count: int) -> Interval:
    """Widen one of `count` 95 % intervals, so that all of them hold together in at least 95 of 100 cases.

    Bonferroni's inequality: each is taken at the level 1 - 0.05 / count. Both arms grow by the ratio of the normal
    distribution's quantiles. ValueError: count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; there must be at least one interval")
    quantile = NormalDist().inv_cdf
    factor = quantile(1 - (1 - LEVEL) / (2 * count)) / quantile(1 - (1 - LEVEL) / 2)
    return mean - factor * (mean - interval[0]), mean + factor * (interval[1] - mean)


def overlapping(scores: Mapping[str, tuple[float, Interval]]) -> list[tuple[str, str]]:
    """Return the pairs of names whose joint intervals overlap, so that they are not told apart.

    scores: name -> mean and 95 % interval.
    """
    wide = {name: joint(mean, interval, len(scores)) for name, (mean, interval) in scores.items()}
    return [
        (one, other)
        for one, other in combinations(scores, 2)
        if wide[one][0] <= wide[other][1] and wide[other][0] <= wide[one][1]
    ]
