"""Decay groups, schedules by hand numbers, clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from t2i_gcpo.training.optim import NonFiniteGuard, adamw, clip_gradients, fused, lr_factor
from t2i_gcpo.training.options import OptimConfig
from t2i_gcpo.utils.finite import all_finite


def test_decay_acts_on_trainable_matrices_only() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    optimizer = adamw(model, OptimConfig(lr=0.1, weight_decay=0.5))
    decayed, rest = optimizer.param_groups
    assert decayed["params"] == [model[0].weight] and decayed["weight_decay"] == 0.5
    assert [id(p) for p in rest["params"]] == [id(p) for p in (model[0].bias, model[1].weight, model[1].bias)]
    before = model[0].weight.clone(), model[1].weight.clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Zero gradient: only decay moves a weight, by 1 - lr * decay.
    torch.testing.assert_close(model[0].weight, before[0] * 0.95)
    assert torch.equal(model[1].weight, before[1])


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        adamw(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_schedules_by_hand() -> None:
    warm = [lr_factor(k, OptimConfig(warmup_steps=4), 10) for k in range(6)]
    assert warm == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    # 5 updates, no warm-up, floor 0.2: 1, 0.8, 0.6, 0.4, 0.2 and it stays there.
    options = OptimConfig(schedule="linear", warmup_steps=0, min_ratio=0.2)
    assert [lr_factor(k, options, 5) for k in (0, 1, 2, 3, 4, 9)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.2])
    # Warm-up 3 has its peak at update 2; half-way from 2 to 6 is 4.
    cosine = [lr_factor(k, OptimConfig(schedule="cosine", warmup_steps=3, min_ratio=0.05), 7) for k in range(7)]
    quarter = 0.05 + 0.95 * 0.5 * (1 + math.sqrt(0.5))
    assert cosine == pytest.approx([1 / 3, 2 / 3, 1, quarter, 0.525, 1.05 - quarter, 0.05])
    assert lr_factor(0, OptimConfig(schedule="cosine", warmup_steps=0), 1) == 1
    with pytest.raises(ValueError, match="cosine"):
        OptimConfig(schedule="cosin")  # type: ignore[arg-type]


def test_clipping_returns_the_norm_before_and_leaves_nonfinite_gradients() -> None:
    a, b, idle = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients([a, b, idle], 10.0).item() == pytest.approx(5.0)
    assert (a.grad.item(), b.grad.item()) == (3.0, 4.0)
    assert clip_gradients([a, b], 1.0).item() == pytest.approx(5.0)
    assert (a.grad.item(), b.grad.item()) == pytest.approx((0.6, 0.8), abs=1e-5)
    b.grad = torch.tensor([float("inf")])
    assert not all_finite(clip_gradients([a, b], 1.0))
    assert a.grad.item() == pytest.approx(0.6, abs=1e-5)


def test_guard_counts_in_a_row() -> None:
    guard, bad, good = NonFiniteGuard(3), torch.tensor(float("nan")), torch.tensor(1.0)
    assert [guard.ok(good, v) for v in (bad, bad, good, bad, bad)] == [False, False, True, False, False]
    assert guard.total == 4
    with pytest.raises(FloatingPointError, match="3 updates in a row"):
        guard.ok(good, bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype: torch.dtype) -> None:
    assert all_finite() and all_finite(torch.zeros(0, dtype=dtype), torch.zeros((), dtype=dtype))
    for size in (1, 2, 33, 1000):
        for place in {0, size // 2, size - 1}:
            for bad in (math.nan, math.inf, -math.inf):
                values = torch.linspace(-1, 1, size).to(dtype)
                assert all_finite(values, values.reshape(1, -1).T)
                values[place] = bad
                assert not all_finite(torch.zeros(3), values)


def test_adamw_is_one_kernel_on_cuda_and_torchs_choice_elsewhere() -> None:
    assert fused(torch.device("cuda", 1)) is True and fused(torch.device("cpu")) is None
