"""Means per task and their bootstrap intervals: by hand, against a slow loop, and how often they cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from t2i_gcpo.statistics import _resampled, estimate


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
