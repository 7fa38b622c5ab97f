"""How fast runs learn: by hand, and in the table of a study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from t2i_gcpo.evaluation.learning_curve import area, first_at, mean_at, over_seeds, samples_until, trailing
from t2i_gcpo.reports.run import Run
from t2i_gcpo.study import learning


def run(sampled: list[float], rewards: list[float | None], kl: list[float | None] | None = None) -> Run:
    metrics: list[dict[str, Any]] = [
        {"step": k + 1, "images_sampled": count, "reward/mean": reward} | ({} if kl is None else {"kl": kl[k]})
        for k, (count, reward) in enumerate(zip(sampled, rewards, strict=True))
    ]
    return Run(Path("x"), {}, metrics, None, None)


def test_the_area_counts_each_sample_once_and_none_beyond_the_budget() -> None:
    assert area([10, 20, 40], [0.0, 1.0, 0.5], 40) == pytest.approx((0 * 10 + 1 * 10 + 0.5 * 20) / 40)
    assert area([10, 20, 40], [0.0, 1.0, 0.5], 24) == pytest.approx((0 * 10 + 1 * 10 + 0.5 * 4) / 24)
    assert area([30, 31], [0.2, 9.0], 30) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="no sample within the budget of 0"):
        area([10], [1.0], 0)


def test_a_level_is_reached_by_the_trailing_mean() -> None:
    assert trailing([1.0, 3.0, 5.0, 7.0], 2).tolist() == [2.0, 4.0, 6.0]
    assert trailing([1.0, 3.0], 10).tolist() == [2.0]
    sampled, values = [8, 16, 24, 32], [0.0, 0.9, 0.1, 0.9]
    assert samples_until(sampled, values, 0.45, window=2) == 16  # (0 + 0.9) / 2
    assert samples_until(sampled, values, 0.5, window=2) == 24  # one step above it is not enough
    assert samples_until(sampled, values, 0.6, window=2) == math.inf
    assert [first_at(values, level, window=2) for level in (0.45, 0.5, 0.6)] == [1, 2, None]


def test_what_was_paid_is_the_mean_of_the_same_steps() -> None:
    values = [1.0, None, 3.0, 5.0]
    assert [mean_at(values, step, window=2) for step in range(4)] == [1.0, 1.0, 3.0, 4.0]
    assert mean_at([None, None], 1, window=2) is None


def test_two_groups_at_an_equal_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group reaches the other's level under two of the seeds, under one of which the other logged no KL."""
    monkeypatch.setattr(learning, "trailing", lambda values: trailing(values, 1))
    monkeypatch.setattr(learning, "first_at", lambda *one: first_at(*one, window=1))
    monkeypatch.setattr(learning, "mean_at", lambda *one: mean_at(*one, window=1))
    sampled: list[float] = [8, 16, 24]
    finished = {
        "grpo": [
            (0, run(sampled, [0.1, 0.2, 0.3], [0.1, 0.4, 0.9])), (1, run(sampled, [0.1, 0.2, 0.3])),
            (2, run(sampled, [0.1, 0.2, 0.9], [0.1, 0.2, 0.3])),
        ],
        "gcpo": [(seed, run(sampled, [0.1, 0.3, 0.2], [0.0, 0.05, 0.6])) for seed in range(3)],
    }  # fmt: skip
    row = learning.rows(finished, {"gcpo": ["grpo"]})[1]
    assert row["paid"]["kl"] == [[0.05, 0.9], [0.05, None], [None, 0.3]]
    assert row["paid"]["diversity"] == [[None, None]] * 3
    assert learning.table([row])[0][-2:] == ["0.050 (0.900)", "–"]


def test_the_interval_over_seeds_is_students() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["ci95"] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5])
    assert over_seeds([1.0]) == {"mean": 1.0, "ci95": None, "by_seed": [1.0]}


def test_groups_at_an_equal_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of one cost twice the images; what the others did beyond its budget does not count."""
    finished = {
        "grpo": [(0, run([8, 16, 24, 32], [0.0, 0.2, 0.4, 0.6])), (1, run([8, 16, 24, 32], [0.0, 0.2, 0.2, 0.2]))],
        "dapo": [(0, run([16, 32], [0.1, 0.8]))],
        "late": [(1, run([8, 16, 24, 100], [0.0, 0.0, 0.0, 0.1]))],
        "unlogged": [(0, run([8], [None]))],
    }
    monkeypatch.setattr(learning, "trailing", lambda values: trailing(values, 1))
    monkeypatch.setattr(learning, "samples_until", lambda *one: samples_until(*one, window=1))
    grpo, dapo, late = learning.rows(finished, {"dapo": ["grpo"], "late": ["grpo"], "unlogged": ["grpo"]})
    assert (grpo["group"], grpo["seeds"], grpo["images"], grpo["against"]) == ("grpo", 2, 32, None)
    assert grpo["area"]["by_seed"] == pytest.approx([0.3, 0.15])
    assert dapo["area"]["by_seed"] == pytest.approx([0.45]) and dapo["difference"]["mean"] == pytest.approx(0.15)
    assert (dapo["until"], dapo["share"]) == ([32.0], [1.0])  # 0.6 is reached by both with 32 images
    assert late["difference"]["by_seed"] == pytest.approx([0.025 - 0.15])
    assert (late["until"], late["share"]) == ([None], [None])
    rows = learning.table([grpo, dapo, late])
    assert [len(row) for row in rows] == [len(learning.COLUMNS)] * 3
    assert rows[0][4:] == ["–"] * 6 and rows[1][4:] == ["grpo", "+0.150", "32", "1.00", "–", "–"]
    assert rows[2][6:] == ["never", "never", "–", "–"]
    assert learning.rows({"unlogged": finished["unlogged"]}, {}) == []
