"""Estimates means per task with bootstrap intervals, where the images of one prompt are not independent of one another.

N values (scores, or paired differences of scores), each of one cluster (its prompt) within one task; K clusters of a
task; S runs with the same prompts, which differ in their seed.
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
    """Holds means and 95 % intervals; NaN where there is nothing to estimate from."""

    overall: float
    """Mean over tasks of the tasks' means (GenEval's overall, 2310.11513)."""
    ci95: Interval
    by_task: dict[str, float]
    by_task_ci95: dict[str, Interval]
    n_by_task: dict[str, int]

    @property
    def n(self) -> int:
        return sum(self.n_by_task.values())


def in_words(mean: float, interval: Interval, n: int) -> str:
    """Write a mean with its 95 % interval and number of values, as a command prints it.

    >>> in_words(0.5, (0.41, 0.5904), 120)
    '0.500 (0.410 to 0.590, n = 120)'
    """
    low, high = interval
    return f"{mean:.3f} ({low:.3f} to {high:.3f}, n = {n})"


def estimate(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    tasks: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimates:
    """Estimate means with percentile intervals of a bootstrap over clusters within each task. values, clusters, tasks:
    N of each.

    A value that is not finite is left out; a task with no other value has mean NaN, and so has the overall. K - 1 of a
    task's K clusters are drawn with replacement: with all K the interval of a few clusters would be too narrow by
    sqrt(K / (K - 1)) (Rao and Wu, 1988). The interval of a task speaks about prompts like these; a task with one prompt
    resamples that prompt's images instead, and one with one image has none. The overall then resamples clusters across
    the tasks, which is wider rather than narrower.

    As with any bootstrap, values that are all equal give an interval of no width: little can be said of 0 out of 10.
    """
    return pooled([values], clusters, tasks, seed=seed, resamples=resamples)


def pooled(
    values: Sequence[Sequence[float]],
    clusters: Sequence[Hashable],
    tasks: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimates:
    """Estimate means over S runs of one experiment, with intervals for other runs (seeds) and other prompts like these.

    values: S rows of N; every run has the same clusters and tasks (N of each). Each mean is the mean over runs of what
    `estimate` gives for a run. The intervals are those of the pigeonhole bootstrap (Owen, Annals of Applied Statistics
    1, 2007): each resample draws S - 1 of the S runs, for all tasks at once, and K - 1 of the K clusters of each task,
    the same for all runs, both with replacement; a value counts as often as its run times its cluster was drawn.

    Noise that belongs to one image of one run is counted up to three times, so that the interval rather covers too
    often where it dominates. Where the difference between runs dominates, a few runs say little, and the interval
    covers too rarely: it cannot leave the range of the runs, so that of three runs it holds the truth three times in
    four. S = 1: runs are not resampled, so the interval, that of `estimate`, holds no variance between runs. An
    interval is NaN where a resample may leave a run without any value of a task, which takes a task with two or three
    prompts, one of which failed as a whole.

    ValueError: no runs, or rows of another length than `clusters` and `tasks`.
    """
    lengths = {len(row) for row in values} | {len(clusters), len(tasks)}
    if not len(values) or len(lengths) > 1:
        raise ValueError(
            f"{len(values)} runs with {sorted(lengths)} values, clusters and tasks; "
            "give runs, equally many values of each"
        )
    numbers = np.asarray(values, dtype=np.float64)
    names = list(dict.fromkeys(tasks))
    weights = _run_weights(len(numbers), np.random.default_rng([seed, len(names) + 1]), resamples)
    replicates, by_task, intervals, counts = [], {}, {}, {}
    shares: list[tuple[np.ndarray, np.ndarray]] = []
    stratified = True
    for position, task in enumerate(names):
        chosen = [k for k, name in enumerate(tasks) if name == task and np.isfinite(numbers[:, k]).any()]
        sums, sizes = _totals(numbers[:, chosen], [clusters[k] for k in chosen])
        counts[task] = int(sizes.sum())
        by_task[task] = float(np.mean(_ratio(sums.sum(0), sizes.sum(0))))
        n = np.maximum(sizes.sum(0), 1)
        shares.append((sums / n, sizes / n))
        if len(sums) == 1 < len(chosen):
            stratified = False
            sums, sizes = _totals(numbers[:, chosen], range(len(chosen)))
        stratified = stratified and len(sums) > 1
        replicates.append(_resampled(sums, sizes, np.random.default_rng([seed, position]), resamples))
        intervals[task] = _interval((replicates[-1] * weights).sum(1))
    if stratified or not names:
        overall = np.mean(replicates, axis=0) if names else np.full((1, 1), np.nan)
    else:
        # Each cluster enters with its share of the overall: 1 / tasks, times its share of its task's values.
        sums, sizes = (np.concatenate(parts) for parts in zip(*shares, strict=True))
        overall = _resampled(sums, sizes, np.random.default_rng([seed, len(names)]), resamples)
    mean = float(np.mean(list(by_task.values()))) if names else float("nan")
    ci95 = _interval((overall * weights).sum(1)) if np.isfinite(mean) else (float("nan"), float("nan"))
    return Estimates(mean, ci95, by_task, intervals, counts)


def ratio(
    above: Sequence[float],
    below: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, Interval]:
    """Estimate the sum of N values over the sum of N others, with the interval of `estimate` without tasks.

    The ratio is NaN where the sum below is not above 0, and so is the interval where that of a resample is not.
    """
    rows = np.asarray([above, below], dtype=np.float64)
    sums, _ = _totals(rows, clusters)
    replicates = _resampled(sums[:, 0], sums[:, 1], np.random.default_rng([seed, 0]), resamples)
    return float(_ratio(*sums.sum(axis=0)[:, None])[0]), _interval(replicates)


def _totals(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and number of the finite values of each cluster in each run. values: [S, N]; returns [K, S] twice."""
    index = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
    owner = np.array([index[name] for name in clusters], dtype=np.int64)
    finite = np.isfinite(values)
    sums = [np.bincount(owner, row, minlength=len(index)) for row in np.where(finite, values, 0.0)]
    sizes = [np.bincount(owner, row, minlength=len(index)) for row in finite.astype(float)]
    return np.stack(sums, axis=1), np.stack(sizes, axis=1)


def _resampled(sums: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Return means [resamples, ...] over K - 1 of K clusters, drawn with replacement, the same for all runs.

    They are NaN for K < 2.
    """
    clusters = len(sums)
    if clusters < 2:
        return np.full((resamples, *sums.shape[1:]), np.nan)
    drawn = rng.multinomial(clusters - 1, np.full(clusters, 1 / clusters), size=resamples)
    return _ratio(drawn @ sums, drawn @ sizes)


def _run_weights(runs: int, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Return the shares [resamples, S] of the runs in each resample's mean: S - 1 of them, drawn with replacement."""
    if runs == 1:
        return np.ones((resamples, 1))
    return rng.multinomial(runs - 1, np.full(runs, 1 / runs), size=resamples) / (runs - 1)


def _ratio(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return means; NaN where there is nothing to take the mean of."""
    return np.divide(sums, sizes, out=np.full_like(sums, np.nan, dtype=float), where=sizes > 0)


def _interval(replicates: np.ndarray) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail]) if np.isfinite(replicates).all() else (np.nan, np.nan)
    return float(low), float(high)
