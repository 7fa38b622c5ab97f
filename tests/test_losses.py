"""Clipped surrogate, KL estimators and reductions: by hand, against slow loops, gradients, micro-batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from t2i_gcpo import losses

REDUCTIONS = ["token", "sequence", "constant"]


def make_batch(rows: int = 6, tokens: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logprob, logprob_old, advantages, a ragged mask with one row that is out altogether."""
    generator = torch.Generator().manual_seed(0)
    old = -4 * torch.rand(rows, tokens, generator=generator)
    new = old + 0.3 * torch.randn(rows, tokens, generator=generator)
    lengths = torch.tensor([9, 1, 0, 4, 7, 2])[:rows]
    return new, old, torch.randn(rows, tokens, generator=generator), torch.arange(tokens) < lengths[:, None]


def slow_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float, kind: str) -> float:
    rows: list[list[float]] = []
    for b in range(len(new)):
        row = []
        for t in range(new.shape[1]):
            if mask[b, t]:
                ratio, advantage = math.exp(new[b, t] - old[b, t]), float(advantages[b, t])
                row.append(-min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage))
        rows.append(row)
    filled = [row for row in rows if row]
    if kind == "sequence":
        return sum(sum(row) / len(row) for row in filled) / len(filled)
    total = sum(sum(row) for row in filled)
    return total / (sum(len(row) for row in filled) if kind == "token" else mask.numel())


def surrogate(ratio: float, advantage: float) -> tuple[float, float, dict[str, Any]]:
    """Loss, its gradient by the log-prob, and the metrics, for one token."""
    logprob = torch.tensor([[math.log(ratio)]], requires_grad=True)
    output = losses.policy_loss(
        logprob, torch.zeros(1, 1), torch.tensor([[advantage]]), clip_low=0.2, clip_high=0.28, reduction="token"
    )
    output.loss.backward()
    assert logprob.grad is not None
    return output.loss.item(), logprob.grad.item(), {name: value.item() for name, value in output.metrics.items()}


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient", "low", "high"),
    [
        (1.0, 2.0, -2.0, -2.0, 0, 0),  # descent raises the log-prob of what went well
        (1.0, -2.0, 2.0, 2.0, 0, 0),  # ... and lowers that of what went badly
        (1.27, 2.0, -2.54, -2.54, 0, 0),  # below 1 + 0.28
        (1.29, 2.0, -2.56, 0.0, 0, 1),  # above: value and gradient stop
        (1.5, -2.0, 3.0, 3.0, 0, 0),  # too likely and bad: never clipped
        (0.79, -2.0, 1.6, 0.0, 1, 0),  # below 1 - 0.2
        (0.81, -2.0, 1.62, 1.62, 0, 0),
        (0.5, 2.0, -1.0, -1.0, 0, 0),  # too unlikely and good: never clipped
    ],
)
def test_surrogate_by_hand(
    ratio: float, advantage: float, value: float, gradient: float, low: float, high: float
) -> None:
    loss, slope, metrics = surrogate(ratio, advantage)
    assert (loss, slope) == pytest.approx((value, gradient), rel=1e-5)
    assert (metrics["clip_fraction_low"], metrics["clip_fraction_high"]) == (low, high)
    assert metrics["ratio_mean"] == pytest.approx(ratio)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_parity_with_a_loop(reduction: str) -> None:
    new, old, advantages, mask = make_batch()
    output = losses.policy_loss(new, old, advantages, mask=mask, clip_low=0.1, clip_high=0.3, reduction=reduction)  # type: ignore[arg-type]
    assert output.loss.item() == pytest.approx(slow_loss(new, old, advantages, mask, 0.1, 0.3, reduction), abs=1e-5)


def test_reductions_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0], [100.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert losses.reduce(values, mask, "token").item() == pytest.approx(9 / 3)
    assert losses.reduce(values, mask, "sequence").item() == pytest.approx((1.5 + 6) / 2)
    assert losses.reduce(values, mask, "constant").item() == pytest.approx(9 / 9)
    for reduction in REDUCTIONS:
        assert losses.reduce(values, torch.zeros_like(mask), reduction).item() == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sizes", [[1] * 6, [2, 2, 2], [5, 1], [3, 1, 2]])
def test_micro_batches_add_up_to_the_batch(reduction: Any, sizes: list[int]) -> None:
    new, old, advantages, mask = make_batch()
    denominator = losses.reduction_denominator(mask, reduction)

    def gradient(pieces: list[int], denominator: Tensor | None) -> Tensor:
        leaf = new.clone().requires_grad_()
        parts = zip(*(tensor.split(pieces) for tensor in (leaf, old, advantages, mask)), strict=True)
        for part_new, part_old, part_advantages, part_mask in parts:
            losses.policy_loss(
                part_new,
                part_old,
                part_advantages,
                mask=part_mask,
                reduction=reduction,
                denominator=denominator,
            ).loss.backward(retain_graph=True)
        assert leaf.grad is not None
        return leaf.grad

    whole = gradient([6], None)
    torch.testing.assert_close(gradient(sizes, denominator), whole)
    assert whole[~mask].abs().max() == 0 and whole[mask].abs().max() > 0


def test_masked_tokens_may_be_anything() -> None:
    new, old, advantages, mask = make_batch()
    clean = new.clone().requires_grad_()
    expected = losses.policy_loss(clean, old, advantages, mask=mask)
    expected.loss.backward()
    dirty = torch.where(mask, new, 1e4).requires_grad_()
    got = losses.policy_loss(dirty, old, torch.where(mask, advantages, torch.nan), mask=mask)
    got.loss.backward()
    assert clean.grad is not None and dirty.grad is not None
    torch.testing.assert_close(dirty.grad, clean.grad)
    for name, value in expected.metrics.items():
        torch.testing.assert_close(got.metrics[name], value)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_factors_of_tokens(reduction: Any) -> None:
    """Each token's loss is multiplied; denominators stay; the metrics are of the tokens that have a factor."""
    new, old, advantages, mask = make_batch()
    new[0, 0] = old[0, 0] + 1.0  # the largest ratio of all is not counted
    scale = torch.tensor([0.0, 2.0, 0.5]).repeat(6, 3)
    output = losses.policy_loss(
        new.requires_grad_(), old, advantages, mask=mask, scale=scale, reduction=reduction, clip_low=0.2, clip_high=0.28
    )
    # A factor is as good as a larger advantage.
    assert output.loss.item() == pytest.approx(
        slow_loss(new.detach(), old, advantages * scale, mask, 0.2, 0.28, reduction), abs=1e-6
    )
    (gradient,) = torch.autograd.grad(output.loss, new)
    assert not bool(gradient[scale == 0].any()) and bool(gradient[scale > 0].any())
    counted = mask & (scale > 0)
    ratio = (new - old).exp()[counted]
    assert output.metrics["ratio_mean"].item() == pytest.approx(ratio.mean().item(), abs=1e-6)
    assert output.metrics["ratio_max"].item() == pytest.approx(ratio.max().item(), abs=1e-6)


def test_one_advantage_a_row_is_the_same_for_all_its_tokens() -> None:
    new, old, advantages, mask = make_batch()
    row = advantages[:, 0]
    spread = losses.policy_loss(new, old, row[:, None].expand_as(new), mask=mask).loss
    assert losses.policy_loss(new, old, row, mask=mask).loss.item() == spread.item()


def test_at_ratio_1_weights_of_mean_1_change_gradients_not_the_value() -> None:
    old = make_batch()[1]
    weights = torch.rand(6, 9, generator=torch.Generator().manual_seed(1))
    weights = weights / weights.mean(dim=1, keepdim=True)
    advantage = torch.tensor([1.0, -1.0, 0.5, 2.0, -3.0, 0.1])
    values, gradients = [], []
    for token_advantages in (advantage[:, None].expand(6, 9), advantage[:, None] * weights):
        leaf = old.clone().requires_grad_()
        loss = losses.policy_loss(leaf, old, token_advantages, reduction="sequence").loss
        loss.backward()
        assert leaf.grad is not None
        values.append(loss.item())
        gradients.append(leaf.grad)
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0] * weights)


def test_kl_to_old_by_hand() -> None:
    output = losses.policy_loss(torch.tensor([[math.log(0.5), 0.0]]), torch.zeros(1, 2), torch.ones(1, 2))
    assert output.metrics["kl_old_k1"].item() == pytest.approx(math.log(2) / 2)
    assert output.metrics["kl_old_k3"].item() == pytest.approx((0.5 - 1 + math.log(2)) / 2)
    assert output.metrics["ratio_max"].item() == 1.0


def test_kl_estimators_by_hand() -> None:
    logprob, reference = torch.tensor([[0.4]]).log(), torch.tensor([[0.1]]).log()
    ln4 = math.log(4)
    values = [losses.kl(logprob, reference, kind).item() for kind in ("k1", "k2", "k3")]  # type: ignore[arg-type]
    assert values == pytest.approx([ln4, ln4**2 / 2, 0.25 - 1 + ln4])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_over_the_vocabulary(estimator: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    log_p, log_q = (torch.randn(12, generator=generator).log_softmax(-1) for _ in range(2))
    exact = (log_p.exp() * (log_p - log_q)).sum().item()
    assert (log_p.exp() * losses.kl(log_p, log_q, estimator)).sum().item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(("estimator", "same"), [("k1", False), ("k2", True), ("k3", False)])
def test_expected_on_policy_gradients(estimator: Any, same: bool) -> None:
    """k2's gradient is that of KL(policy || reference); k1's is 0; k3's is that of KL(reference || policy)."""
    generator = torch.Generator().manual_seed(3)
    logits, reference = (torch.randn(6, generator=generator).double() for _ in range(2))

    def gradient(expected_of: Any) -> Tensor:
        leaf = logits.clone().requires_grad_()
        expected_of(leaf.log_softmax(-1)).backward()
        assert leaf.grad is not None
        return leaf.grad

    log_q = reference.log_softmax(-1)
    true = gradient(lambda log_p: (log_p.exp() * (log_p - log_q)).sum())
    reverse = gradient(lambda log_p: (log_q.exp() * (log_q - log_p)).sum())
    sampled = gradient(lambda log_p: (log_p.detach().exp() * losses.kl(log_p, log_q, estimator)).sum())
    assert torch.allclose(sampled, true, atol=1e-5) == same
    if estimator == "k1":
        assert sampled.abs().max() < 1e-6
    if estimator == "k3":
        torch.testing.assert_close(sampled, reverse, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_descent_on_the_kl_goes_towards_the_reference(estimator: Any) -> None:
    logprob = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    losses.kl(logprob, torch.tensor([[-2.0, -2.0]]), estimator).sum().backward()
    assert logprob.grad is not None
    assert logprob.grad[0, 0] > 0 > logprob.grad[0, 1]


def test_k3_of_small_differences_is_no_rounding_noise() -> None:
    d = torch.tensor([[1e-5, -1e-5, 1e-4]])
    torch.testing.assert_close(losses.kl(torch.zeros(1, 3), d), d.square() / 2, rtol=1e-3, atol=0.0)


def test_kl_weights_by_hand() -> None:
    weights = torch.tensor([[0.0, 0.5, 0.75, 1.0, 3.0]])
    assert losses.kl_weights(weights)[0].tolist() == [1.0, 1.0, 0.75, 0.5, 0.5]


def test_what_is_not_allowed() -> None:
    new, old, advantages, mask = make_batch()
    with pytest.raises(ValueError, match="token, sequence, constant"):
        losses.policy_loss(new, old, advantages, reduction="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token, sequence, constant"):
        losses.reduce(new, mask, "batch", 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip_low"):
        losses.policy_loss(new, old, advantages, clip_low=1.5)
    with pytest.raises(ValueError, match=r"mask.*\(6, 8\)"):
        losses.policy_loss(new, old, advantages, mask=mask[:, 1:])
    with pytest.raises(ValueError, match="shapes are"):
        losses.policy_loss(new, old[:1], advantages)
    with pytest.raises(ValueError, match="k1, k2, k3"):
        losses.kl(new, old, "k4")  # type: ignore[arg-type]


# -- truncated importance weights --------------------------------------------------------------------------------------


def test_truncated_importance_by_hand() -> None:
    trained = torch.tensor([[0.5, 0.2, 0.9, 1e-30]]).log()
    drawn = torch.tensor([[0.25, 0.4, 0.1, 1e-30]]).log()
    found = losses.truncated_importance(trained, drawn, 3.0)
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.5, 3.0, 1.0]]))
    assert not losses.truncated_importance(trained.requires_grad_(), drawn, 3.0).requires_grad
    assert losses.truncated_importance(torch.zeros(1, 1), torch.full((1, 1), -1e4), 2.0).item() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="cap is 0"):
        losses.truncated_importance(trained, drawn, 0.0)


def test_importance_multiplies_each_tokens_gradient_and_keeps_its_sign() -> None:
    logprob = torch.full((2, 3), -1.0, requires_grad=True)
    advantages = torch.tensor([[1.0, -2.0, 0.5], [1.0, 1.0, 1.0]])
    importance = torch.tensor([[2.0, 0.5, 1.0], [0.25, 1.0, 3.0]])
    output = losses.policy_loss(logprob, logprob.detach(), advantages, importance=importance)
    output.loss.backward()
    assert logprob.grad is not None
    slow = [[-a * w / 6 for a, w in zip(*rows, strict=True)]
            for rows in zip(advantages.tolist(), importance.tolist(), strict=True)]  # fmt: skip
    torch.testing.assert_close(logprob.grad, torch.tensor(slow))
    assert output.loss.item() == pytest.approx(sum(map(sum, slow)))
    assert torch.equal(logprob.grad.sign(), -advantages.sign())
