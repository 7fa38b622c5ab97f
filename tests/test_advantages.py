"""Group-relative advantages by hand and against a slow loop; failed images; dynamic sampling's filter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from t2i_gcpo.advantages import (
    batch_normalized,
    closest_entropy_bonus,
    group_advantages,
    informative_groups,
    part_advantages,
    per_row,
    valid_rows,
)

NAN = float("nan")


def slow(rewards: list[float], group_size: int, scale: str, eps: float) -> list[float]:
    result = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        valid = [r for r in group if not math.isnan(r)]
        if len(valid) < 2 or max(valid) == min(valid):
            result += [0.0] * group_size
            continue
        mean = sum(valid) / len(valid)
        std = math.sqrt(sum((r - mean) ** 2 for r in valid) / (len(valid) - 1))
        result += [0.0 if math.isnan(r) else (r - mean) / (std + eps if scale == "std" else 1) for r in group]
    return result


def test_by_hand() -> None:
    # mean 2, deviations -1, 0, 1: variance 2 / (3 - 1) = 1
    rewards = torch.tensor([1.0, 2.0, 3.0])
    assert group_advantages(rewards, 3, eps=0.0).tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert group_advantages(10 * rewards, 3, scale="none").tolist() == [-10.0, 0.0, 10.0]
    # two images: std = |difference| / sqrt(2), so +-1 / sqrt(2), whatever the difference
    assert group_advantages(torch.tensor([0.0, 1.0]), 2, eps=1e-4)[1].item() == pytest.approx(0.5 / (0.5**0.5 + 1e-4))


@pytest.mark.parametrize("scale", ["std", "none"])
def test_parity_with_a_loop(scale: str) -> None:
    rewards = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 3 + 100
    rewards[::7] = NAN
    rewards[8:15] = NAN  # one valid left in the second group
    rewards[16:24] = NAN
    got = group_advantages(rewards, 8, scale=scale, eps=1e-3)  # type: ignore[arg-type]
    assert got.tolist() == pytest.approx(slow(rewards.double().tolist(), 8, scale, 1e-3), abs=1e-4)
    assert got[8:24].abs().max() == 0


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("size", [1e12, 4e19, 1e30, 3e38])
def test_large_rewards_do_not_overflow(size: float, scale: str) -> None:
    """The squares, and even the sum, of rewards that float32 holds may be beyond it."""
    rewards = (
        torch.tensor([0.0, 0.5, NAN, 1.0, -0.25] * 2) * torch.tensor([[size], [1.0]]).repeat_interleave(5, 0).flatten()
    )
    got = group_advantages(rewards, 5, scale=scale).double()  # type: ignore[arg-type]
    assert got.tolist() == pytest.approx(slow(rewards.double().tolist(), 5, scale, 1e-4), rel=1e-6)
    equal = torch.full((16,), size)
    assert group_advantages(equal, 16, scale=scale).abs().max() == 0  # type: ignore[arg-type]


def test_scaling_large_rewards_changes_no_bit() -> None:
    rewards = torch.randn(64, generator=torch.Generator().manual_seed(3))
    large = group_advantages(rewards * 2.0**60, 8, eps=1e-4 * 2.0**60)
    assert torch.equal(large, group_advantages(rewards, 8, eps=1e-4))


def test_groups_do_not_mix() -> None:
    advantages = group_advantages(torch.tensor([0.0, 1.0, 100.0, 101.0]), 2, scale="none")
    assert advantages.tolist() == [-0.5, 0.5, -0.5, 0.5]


def test_failed_images_change_nothing_for_the_others() -> None:
    rewards = torch.tensor([1.0, NAN, 2.0, 3.0, float("inf")])
    advantages = group_advantages(rewards, 5, eps=0.0)
    assert advantages.tolist() == pytest.approx([-1.0, 0.0, 0.0, 1.0, 0.0])
    assert valid_rows(rewards).tolist() == [True, False, True, True, False]


def test_equal_rewards_are_exactly_0() -> None:
    rewards = torch.full((7,), 0.1)  # their fp32 mean is not 0.1
    assert group_advantages(rewards, 7, eps=1e-12).abs().max() == 0


def test_informative_groups() -> None:
    rewards = torch.tensor([1.0, 1.0, 1.0, 2.0, NAN, 1.0, NAN, NAN, 0.1, 0.1])
    assert informative_groups(rewards, 2).tolist() == [False, True, False, False, False]
    assert informative_groups(torch.tensor([NAN, 1.0, 2.0, NAN, 1.0, 1.0]), 3).tolist() == [True, False]
    assert per_row(torch.tensor([True, False]), 3).tolist() == [True] * 3 + [False] * 3


def test_parts_are_normalised_before_they_are_added() -> None:
    parts = {"large": torch.tensor([0.0, 100.0, 0.0, 100.0]), "small": torch.tensor([0.0, 0.0, 0.01, 0.01])}
    got = part_advantages(parts, {"large": 1.0, "small": 2.0}, 4, eps=0.0)
    unit = 0.5 / math.sqrt(1 / 3)  # std of (0, 0, 1, 1) with ddof 1
    assert got.tolist() == pytest.approx([-3 * unit, -1 * unit, 1 * unit, 3 * unit])


def test_one_failed_part_fails_the_row() -> None:
    parts = {"a": torch.tensor([1.0, 2.0, 3.0, 50.0]), "b": torch.tensor([1.0, 2.0, 3.0, NAN])}
    got = part_advantages(parts, {"a": 1.0, "b": 1.0}, 4, eps=0.0)
    assert got.tolist() == pytest.approx([-2.0, 0.0, 2.0, 0.0])
    with pytest.raises(ValueError, match=r"\['c'\]"):
        part_advantages(parts, {"c": 1.0}, 4)
    with pytest.raises(ValueError, match="weight"):
        part_advantages(parts, {}, 4)


def test_batch_normalisation_by_hand() -> None:
    """GDPO: the sum of parts brought back to a spread of 1; the third row failed and is in no statistic."""
    got = batch_normalized(
        torch.tensor([2.0, -2.0, 9.0, 4.0, 0.0]), torch.tensor([True, True, False, True, True]), eps=0.0
    )
    # valid: 2, -2, 4, 0; mean 1; squares 1 + 9 + 9 + 1 = 20, over 3
    std = math.sqrt(20 / 3)
    assert got.tolist() == pytest.approx([1 / std, -3 / std, 0, 3 / std, -1 / std])
    assert batch_normalized(
        torch.tensor([1.0, 3.0]), torch.ones(2, dtype=torch.bool), eps=1.0
    ).tolist() == pytest.approx([-1 / (math.sqrt(2) + 1), 1 / (math.sqrt(2) + 1)])


def test_batch_normalisation_is_that_of_gdpos_code() -> None:
    """Its TRL code on two groups of three and two parts, with a slow loop in place of ours."""
    torch.manual_seed(0)
    parts = {"a": torch.rand(6), "b": 100 * torch.rand(6)}
    weights = {"a": 1.0, "b": 0.5}
    total = []
    for row in range(6):
        siblings = range(row - row % 3, row - row % 3 + 3)
        value = 0.0
        for name, part in parts.items():
            members = [float(part[k]) for k in siblings]
            mean = sum(members) / 3
            std = math.sqrt(sum((m - mean) ** 2 for m in members) / 2)
            value += weights[name] * (float(part[row]) - mean) / (std + 1e-4)
        total.append(value)
    mean = sum(total) / 6
    std = math.sqrt(sum((value - mean) ** 2 for value in total) / 5)
    expected = [(value - mean) / (std + 1e-4) for value in total]
    got = batch_normalized(part_advantages(parts, weights, 3), torch.ones(6, dtype=torch.bool))
    assert got.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [1.0, NAN, NAN]])
def test_a_batch_without_spread_has_no_advantage(values: list[float]) -> None:
    rewards = torch.tensor(values)
    assert batch_normalized(rewards, rewards.isfinite()).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"expected \[B\] and \[B\]"):
        batch_normalized(rewards, torch.ones(2, dtype=torch.bool))


def test_entropy_bonus_by_hand() -> None:
    rewards = torch.tensor([1.0, 1.0, 0.0, NAN, 0.0, 1.0, 0.0, 0.0])
    entropy = torch.tensor([2.0, 1.0, 2.0, 2.0, 5.0, 4.0, 5.0, 5.0])
    bonus = closest_entropy_bonus(rewards, entropy, torch.full((8,), 2.0), 4)
    # best of the first group: 1 / (1 + 0) and 1 / (1 + 1), mean 0.75; the second group's best is alone
    assert bonus.tolist() == pytest.approx([0.25, -0.25, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("rewards", "group_size", "match"),
    [
        (torch.zeros(4), 1, "group size is 1.*at least 2"),
        (torch.zeros(5), 2, "multiple of 2"),
        (torch.zeros(2, 2), 2, r"\(2, 2\)"),
    ],
)
def test_what_does_not_fit(rewards: Tensor, group_size: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        group_advantages(rewards, group_size)
    with pytest.raises(ValueError, match=match):
        informative_groups(rewards, group_size)


def test_unknown_scale() -> None:
    with pytest.raises(ValueError, match="std, none"):
        group_advantages(torch.zeros(4), 2, scale="mad")  # type: ignore[arg-type]
