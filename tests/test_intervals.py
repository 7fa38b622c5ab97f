"""Means per task and their bootstrap intervals: by hand, against a slow loop, and how often they cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from t2i_gcpo.evaluation.intervals import _resampled, _run_weights, estimate, pooled


def test_overall_is_the_mean_of_task_means_and_failed_values_count_nowhere() -> None:
    found = estimate([1, 0, 1, 1, 0.5, math.nan], ["a", "a", "b", "b", "c", "d"], ["x"] * 4 + ["y"] * 2)
    assert found.by_task == {"x": 0.75, "y": 0.5}
    assert found.overall == 0.625  # not 0.7, the mean over images
    assert found.n_by_task == {"x": 4, "y": 1} and found.n == 5


def test_a_mean_weighs_images_and_not_prompts() -> None:
    assert estimate([1, 1, 1, 0], ["a", "a", "a", "b"], ["x"] * 4).by_task["x"] == 0.75


def test_resampling_equals_a_slow_loop() -> None:
    sums, sizes = np.array([3.0, 1.0, 0.0, 2.5]), np.array([3.0, 2.0, 1.0, 4.0])
    drawn = np.random.default_rng(7).multinomial(3, [0.25] * 4, size=50)
    expected = []
    for counts in drawn:
        chosen = [k for k, times in enumerate(counts) for _ in range(times)]
        assert len(chosen) == 3
        expected.append(sum(sums[k] for k in chosen) / sum(sizes[k] for k in chosen))
    np.testing.assert_allclose(_resampled(sums, sizes, np.random.default_rng(7), 50), expected, rtol=1e-12)


def test_the_spread_of_the_replicates_is_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=12)
    replicates = _resampled(values, np.ones(12), np.random.default_rng(1), 200_000)
    assert replicates.std() == pytest.approx(values.std(ddof=1) / math.sqrt(12), rel=0.01)  # with ddof 0: 4 % less


def test_equal_images_of_a_prompt_do_not_narrow_the_interval() -> None:
    scores = [0, 1, 1, 0, 1, 0, 0, 1]
    once = estimate(scores, range(8), ["x"] * 8)
    often = estimate(np.repeat(scores, 10), np.repeat(range(8), 10).tolist(), ["x"] * 80)
    assert often.ci95 == pytest.approx(once.ci95)
    as_if_independent = estimate(np.repeat(scores, 10), range(80), ["x"] * 80)
    assert np.diff(as_if_independent.ci95) < 0.5 * np.diff(once.ci95)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered, clusters = 0, np.repeat(range(30), 4)
    for trial in range(200):
        p = rng.beta(2, 2, size=30)  # prompts differ in how hard they are
        values = (rng.random(120) < p[clusters]).astype(float)
        low, high = estimate(values, clusters.tolist(), ["x"] * 120, seed=trial, resamples=400).ci95
        covered += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_tasks_are_resampled_apart() -> None:
    # Two tasks without spread inside them: between tasks there is plenty, but the overall holds the tasks fixed.
    found = estimate([1, 1, 1, 0, 0, 0], range(6), ["x"] * 3 + ["y"] * 3)
    assert found.ci95 == (0.5, 0.5)


def test_what_one_prompt_or_one_image_can_say() -> None:
    one_prompt = estimate([1, 0, 1, 0], ["a"] * 4, ["x"] * 4)
    assert one_prompt.by_task_ci95["x"][0] < 0.5 < one_prompt.by_task_ci95["x"][1]
    singles = estimate([1, 0, 1], ["a", "b", "c"], ["x", "y", "z"])
    assert all(math.isnan(bound) for pair in singles.by_task_ci95.values() for bound in pair)
    assert singles.ci95[0] < singles.overall < singles.ci95[1]
    assert all(map(math.isnan, estimate([1.0], ["a"], ["x"]).ci95))
    nothing = estimate([math.nan, 1.0, 0.0], ["a", "b", "c"], ["x", "y", "y"])
    assert math.isnan(nothing.by_task["x"]) and math.isnan(nothing.overall) and all(map(math.isnan, nothing.ci95))
    assert nothing.by_task["y"] == 0.5
    assert math.isnan(estimate([], [], []).overall)


def test_the_seed_decides() -> None:
    values, clusters, tasks = np.random.default_rng(0).random(40), list(range(40)), ["x"] * 40
    assert estimate(values, clusters, tasks).ci95 == estimate(values, clusters, tasks).ci95
    assert estimate(values, clusters, tasks, seed=1).ci95 != estimate(values, clusters, tasks).ci95


# -- pooled over runs --------------------------------------------------------------------------------------------------


def crossed(
    rng: np.random.Generator, runs: int, *, between_runs: float, between_prompts: float, noise: float
) -> tuple[np.ndarray, list[int], list[str]]:
    """Values of mean 0, [S, 40]: a random effect of the run, one of the prompt, and noise.

    20 prompts with two images, two tasks.
    """
    prompts = np.repeat(np.arange(20), 2)
    values = between_runs * rng.normal(size=(runs, 1)) + between_prompts * rng.normal(size=20)[prompts]
    return values + noise * rng.normal(size=(runs, 40)), prompts.tolist(), ["x"] * 20 + ["y"] * 20


def test_the_pooled_mean_is_that_of_the_runs_overalls() -> None:
    runs = [[1, 0, 1, 0.5], [0, 0, math.nan, 1]]
    found = pooled(runs, ["a", "b", "c", "d"], ["x", "x", "x", "y"])
    assert found.by_task["x"] == pytest.approx((2 / 3 + 0) / 2) and found.by_task["y"] == 0.75
    assert found.overall == pytest.approx(((2 / 3 + 0.5) / 2 + (0 + 1) / 2) / 2)
    assert found.n_by_task == {"x": 5, "y": 2}


def test_one_run_pooled_is_its_estimate() -> None:
    rng = np.random.default_rng(3)
    values, clusters, tasks = rng.random(60), (np.arange(60) // 3).tolist(), ["x"] * 30 + ["y"] * 27 + ["z"] * 3
    values[7] = math.nan
    alone, together = estimate(values, clusters, tasks, seed=4), pooled([values], clusters, tasks, seed=4)
    assert alone == together and alone.ci95[0] < alone.overall < alone.ci95[1]
    # Equal runs know as much as one of them: their prompts are the same, and there is nothing between them.
    assert pooled([values] * 4, clusters, tasks, seed=4).ci95 == pytest.approx(alone.ci95)


def test_resampling_runs_and_prompts_equals_a_slow_loop() -> None:
    values, clusters, tasks = crossed(np.random.default_rng(5), 3, between_runs=1, between_prompts=1, noise=1)
    values[1, :2] = math.nan  # a prompt that failed in one run
    draws = {name: np.random.default_rng([6, k]) for k, name in enumerate(("x", "y"))}
    drawn = {name: rng.multinomial(9, [0.1] * 10, size=25) for name, rng in draws.items()}
    chosen_runs = np.random.default_rng([6, 3]).multinomial(2, [1 / 3] * 3, size=25)
    expected = []
    for b in range(25):
        means = []
        for run in [run for run, times in enumerate(chosen_runs[b]) for _ in range(times)]:
            of_tasks = []
            for task, first in (("x", 0), ("y", 10)):
                taken = [
                    values[run, k]
                    for prompt, times in enumerate(drawn[task][b])
                    for _ in range(times)
                    for k in (2 * (first + prompt), 2 * (first + prompt) + 1)
                ]
                of_tasks.append(np.nanmean(taken))
            means.append(np.mean(of_tasks))
        assert len(means) == 2
        expected.append(np.mean(means))
    found = pooled(values, clusters, tasks, seed=6, resamples=25).ci95
    assert found == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])), rel=1e-12)


def test_runs_that_differ_widen_the_interval() -> None:
    values, clusters, tasks = crossed(np.random.default_rng(0), 4, between_runs=0, between_prompts=1, noise=0.1)
    apart = values + np.array([[-1.5], [-0.5], [0.5], [1.5]])
    same, wide = pooled(values, clusters, tasks), pooled(apart, clusters, tasks)
    assert wide.overall == pytest.approx(same.overall)
    assert np.diff(wide.ci95) > 2 * np.diff(same.ci95)
    assert np.diff(wide.by_task_ci95["x"]) > np.diff(same.by_task_ci95["x"])


def test_the_spread_between_runs_is_their_standard_error() -> None:
    offsets = np.array([0.0, 1.0, 3.0, 4.5])
    replicates = _run_weights(4, np.random.default_rng(1), 100_000) @ offsets
    assert replicates.mean() == pytest.approx(offsets.mean(), rel=0.01)
    assert replicates.std() == pytest.approx(offsets.std(ddof=1) / 2, rel=0.01)  # with all four drawn: 13 % less


@pytest.mark.parametrize("runs", [3, 4, 5])
def test_the_pooled_interval_covers_the_truth_about_as_often_as_it_says(runs: int) -> None:
    rng, covered = np.random.default_rng(runs), 0
    for trial in range(200):
        values, clusters, tasks = crossed(rng, runs, between_runs=0.15, between_prompts=0.5, noise=1)
        low, high = pooled(values, clusters, tasks, seed=trial, resamples=300).ci95
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 1


def test_of_three_runs_whose_differences_dominate_it_covers_three_times_in_four() -> None:
    """What the docstring warns of; without resampled runs it would cover almost never."""
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        values, clusters, tasks = crossed(rng, 3, between_runs=1, between_prompts=0.05, noise=0.05)
        low, high = pooled(values, clusters, tasks, seed=trial, resamples=300).ci95
        covered += low <= 0 <= high
    assert 0.68 <= covered / 200 <= 0.82


def test_neither_the_order_of_runs_nor_that_of_prompts_matters() -> None:
    rng = np.random.default_rng(8)
    values, clusters, tasks = crossed(rng, 5, between_runs=0.3, between_prompts=0.5, noise=1)
    first = pooled(values, clusters, tasks, resamples=20_000)
    runs, images = rng.permutation(5), rng.permutation(40)
    other = pooled(values[runs][:, images], [clusters[k] for k in images], [tasks[k] for k in images], resamples=20_000)
    assert other.overall == pytest.approx(first.overall, abs=1e-12)
    width = first.ci95[1] - first.ci95[0]
    assert other.ci95 == pytest.approx(first.ci95, abs=0.03 * width)


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 runs with"):
        pooled([[1, 2], [1]], ["a", "b"], ["x", "x"])
    with pytest.raises(ValueError, match="0 runs"):
        pooled([], [], [])
