"""Means per task with bootstrap intervals, where the images of one prompt are not independent of one another.

N values (scores, or paired differences of scores), each of one cluster (its prompt) within one task; K clusters of a task.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimates:
    """Means and 95 % intervals; NaN where there is nothing to estimate from."""

    overall: float
    """Mean over tasks of the tasks' means (GenEval's overall, 2310.11513)."""
    ci95: Interval
    by_task: dict[str, float]
    by_task_ci95: dict[str, Interval]
    n_by_task: dict[str, int]

    @property
    def n(self) -> int:
        return sum(self.n_by_task.values())


def estimate(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    tasks: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimates:
    """Means with percentile intervals of a bootstrap over clusters within each task. values, clusters, tasks: N of each.

    A value that is not finite is left out; a task with no other value has mean NaN, and so has the overall. K - 1 of a task's K clusters
    are drawn with replacement: with all K the interval of a few clusters would be too narrow by sqrt(K / (K - 1)) (Rao and Wu, 1988). The
    interval of a task speaks about prompts like these; a task with one prompt resamples that prompt's images instead, and one with one image
    has none. The overall then resamples clusters across the tasks, which is wider rather than narrower.

    As with any bootstrap, values that are all equal give an interval of no width: little can be said of 0 out of 10.
    """
    numbers = np.asarray(values, dtype=np.float64)
    names = list(dict.fromkeys(tasks))
    replicates, by_task, intervals, counts = [], {}, {}, {}
    pooled: list[tuple[np.ndarray, np.ndarray]] = []
    stratified = True
    for position, task in enumerate(names):
        chosen = [k for k, name in enumerate(tasks) if name == task and np.isfinite(numbers[k])]
        sums, sizes = _totals(numbers[chosen], [clusters[k] for k in chosen])
        counts[task] = len(chosen)
        by_task[task] = float(sums.sum() / sizes.sum()) if chosen else float("nan")
        pooled.append((sums / max(len(chosen), 1), sizes / max(len(chosen), 1)))
        if len(sums) == 1 < len(chosen):
            stratified = False
            sums, sizes = numbers[chosen], np.ones(len(chosen))
        stratified = stratified and len(sums) > 1
        replicates.append(_resampled(sums, sizes, np.random.default_rng([seed, position]), resamples))
        intervals[task] = _interval(replicates[-1])
    if stratified or not names:
        overall = np.mean(replicates, axis=0) if names else np.full(1, np.nan)
    else:
        # Each cluster enters with its share of the overall: 1 / tasks, times its share of its task's values.
        sums, sizes = (np.concatenate(parts) for parts in zip(*pooled, strict=True))
        overall = _resampled(sums, sizes, np.random.default_rng([seed, len(names)]), resamples)
    mean = float(np.mean(list(by_task.values()))) if names else float("nan")
    ci95 = _interval(overall) if np.isfinite(mean) else (float("nan"), float("nan"))
    return Estimates(mean, ci95, by_task, intervals, counts)


def _totals(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each cluster: [K], [K]."""
    index = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
    owner = np.array([index[name] for name in clusters], dtype=np.int64)
    return np.bincount(owner, values, minlength=len(index)), np.bincount(owner, minlength=len(index)).astype(float)


def _resampled(sums: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """[resamples] means, each over K - 1 clusters drawn with replacement; NaN for K < 2."""
    clusters = len(sums)
    if clusters < 2:
        return np.full(resamples, np.nan)
    drawn = rng.multinomial(clusters - 1, np.full(clusters, 1 / clusters), size=resamples)
    return (drawn @ sums) / (drawn @ sizes)


def _interval(replicates: np.ndarray) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail]) if np.isfinite(replicates).all() else (np.nan, np.nan)
    return float(low), float(high)
