"""Compare how fast runs learn, at an equal number of samples: the area under the curve, and when a level is reached.

A curve has a value for each of N steps, and how many samples (images, completions) were drawn up to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from t2i_gcpo.evaluation.intervals import LEVEL

WINDOW = 10
"""Steps of a trailing mean: one step's own mean is mostly noise."""


def area(sampled: Sequence[float], values: Sequence[float], budget: float) -> float:
    """Return the mean value of the first `budget` samples, each of which has its step's value.

    >>> area([10, 20, 30], [0.0, 0.5, 1.0], budget=25)
    0.4

    `sampled` [N] grows. Of a step beyond the budget the part within it counts. ValueError: no sample within it.
    """
    ends = np.minimum(np.asarray(sampled, dtype=float), budget)
    sizes = np.diff(ends, prepend=0.0)
    if not sizes.sum() > 0:
        raise ValueError(f"the curve has no sample within the budget of {budget:g}")
    return float(np.dot(sizes, values) / sizes.sum())


def trailing(values: Sequence[float], window: int = WINDOW) -> np.ndarray:
    """Return the mean over the last `window` steps at each step from the first that has so many: [N - window + 1].

    Of fewer steps than that it is the mean over all of them, [1].
    """
    window = min(window, len(values))
    return np.lib.stride_tricks.sliding_window_view(np.asarray(values, dtype=float), window).mean(axis=-1)


def first_at(values: Sequence[float], level: float, window: int = WINDOW) -> int | None:
    """Return the step (0, 1, ...) at which the trailing mean first is at least `level`; None: never."""
    means = trailing(values, window)
    reached = np.flatnonzero(means >= level)
    return len(values) - len(means) + int(reached[0]) if len(reached) else None


def samples_until(sampled: Sequence[float], values: Sequence[float], level: float, window: int = WINDOW) -> float:
    """Return how many samples were drawn when the trailing mean first was at least `level`; infinity: never."""
    step = first_at(values, level, window)
    return math.inf if step is None else float(sampled[step])


def mean_at(values: Sequence[float | None], step: int, window: int = WINDOW) -> float | None:
    """Return the mean of the known values of the `window` steps up to `step`; None where none is known."""
    known = [value for value in values[max(step + 1 - window, 0) : step + 1] if value is not None]
    return float(np.mean(known)) if known else None


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean, its Student 95 % interval and the seeds' values; one seed has no interval."""
    mean, ci95 = float(np.mean(values)), None
    if len(values) > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
        ci95 = [float(mean - half), float(mean + half)]
    return {"mean": mean, "ci95": ci95, "by_seed": list(values)}
