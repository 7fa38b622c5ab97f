"""Weights that keep the size of the contrast, the variance of the contrast, and another image's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_algorithms import REWARDS, B, G, T, make_rollout, row
from torch import Tensor

from t2i_gcpo import credit
from t2i_gcpo.algorithms import TABLE, RunningMean, loss, token_advantages, token_weights
from t2i_gcpo.generators.tokens.sampling import contrast_variance

SIZES = torch.tensor([[0.0, 1.0, 2.0, 9.0], [4.0, 4.0, 0.0, 0.0]])


def looped(values: Tensor, cap: float, over: str, mask: Tensor) -> Tensor:
    """The same as `by_size`, token by token."""
    weights = torch.zeros_like(values)
    for rows in [[b] for b in range(len(values))] if over == "image" else [list(range(len(values)))]:
        places = [(b, t) for b in rows for t in range(values.shape[1]) if mask[b, t]]
        kept = {place: float(values[place]) for place in places}
        if cap:
            most = cap * sum(kept.values()) / len(kept)
            kept = {place: min(value, most) for place, value in kept.items()}
        mean = sum(kept.values()) / len(kept)
        for place, value in kept.items():
            weights[place] = value / mean if mean else 1.0
    return weights


def test_sizes_by_hand() -> None:
    assert torch.allclose(credit.by_size(SIZES)[0], torch.tensor([0.0, 1 / 3, 2 / 3, 3.0]))  # mean 3
    # Cut to 2 * 3 = 6: the mean is 9 / 4.
    assert torch.allclose(credit.by_size(SIZES, cap=2.0)[0], torch.tensor([0.0, 4 / 9, 8 / 9, 24 / 9]))
    assert torch.allclose(credit.by_size(SIZES, over="batch"), SIZES / 2.5)  # 20 over 8 tokens
    assert credit.by_size(torch.zeros(1, 3)).tolist() == [[1.0, 1.0, 1.0]]
    with pytest.raises(ValueError, match=r"cap is 0\.5; it must be at least 1"):
        credit.by_size(SIZES, cap=0.5)


def test_the_running_mean_is_that_of_the_batches_before() -> None:
    """By hand: means 2, 4 and 6; the first batch is divided by its own."""
    algorithm, running = row("gcpo_variance", cap=3.0), RunningMean()
    found = []
    for mean in (2.0, 4.0, 6.0):
        values = torch.tensor([0.5, 1.5]).repeat(B, T // 2) * mean
        values[0, 0] = 100.0  # cut to three times the average
        found.append(token_weights(algorithm, make_rollout(stats={"variance": values}), running=running))
    own = (2.0 * B * T - 1.0 + 100.0) / (B * T)  # the first batch's mean, with the large value
    assert found[0][1, 1] == pytest.approx(3.0 / own) and found[0][0, 0] == 3
    assert found[1][1, 1] == pytest.approx(6.0 / own)
    second = 0.9 * own + 0.1 * (4.0 * B * T - 2.0 + 100.0) / (B * T)
    assert found[2][1, 1] == pytest.approx(9.0 / second)
    alone = token_weights(row("gcpo_variance"), make_rollout(stats={"variance": torch.full((B, T), 3.0)}))
    assert (alone == 1).all()  # nothing was before: the batch's own
    none = torch.zeros(B, T)
    assert (token_weights(algorithm, make_rollout(stats={"variance": none}), running=RunningMean()) == 1).all()


@pytest.mark.parametrize("over", ["image", "batch"])
@pytest.mark.parametrize("cap", [0.0, 1.5])
def test_sizes_are_those_of_a_plain_loop(over: Any, cap: float) -> None:
    rng = torch.Generator().manual_seed(0)
    values, mask = torch.rand(5, 9, generator=rng).pow(4), torch.rand(5, 9, generator=rng) > 0.3
    weights = credit.by_size(values, cap=cap, over=over, mask=mask)
    assert torch.allclose(weights, looped(values, cap, over, mask), atol=1e-5)
    assert float(weights[mask].mean()) == pytest.approx(1.0, abs=1e-5)


def test_small_contrasts_weigh_nothing_and_large_ones_at_most_ten_times_the_mean() -> None:
    positive = torch.full((B, T), -2.0)
    difference = torch.full((B, T), 5e-4)
    difference[:, 0], difference[:, 1] = 4.0, 0.1
    rollout = make_rollout(logprob_positive=positive, logprob_negative=positive + difference)
    weights = token_weights(row("gcpo_magnitude"), rollout)
    assert (weights[:, 2:] == 0).all() and (weights[:, 1] > 0).all()
    k3 = difference.exp() - 1 - difference
    values = torch.minimum(torch.where(difference < 1e-3, 0.0, k3).clamp(max=10.0), torch.tensor(1e9))
    assert torch.allclose(weights, looped(values, 10.0, "image", torch.ones(B, T, dtype=torch.bool)), atol=1e-4)
    half = token_weights(row("gcpo_magnitude", cap=2.0), rollout)
    assert float(half[0, 0] / half[0, 1]) < float(weights[0, 0] / weights[0, 1])


@pytest.mark.parametrize("divergence", ["exact_kl", "js_full"])
def test_the_floor_of_a_token_is_in_nats_of_contrast_for_every_divergence(divergence: Any) -> None:
    curvature = {"exact_kl": 2.0, "js_full": 8.0}[divergence]
    contrast = torch.tensor([0.05, 0.2]).repeat(B, T // 2)
    stats = dict.fromkeys(("exact_kl", "js"), contrast.square() / curvature)
    algorithm = row("gcpo_magnitude", divergence=divergence, token_floor=0.1)
    weights = token_weights(algorithm, make_rollout(stats=stats))
    assert weights[0, :4].tolist() == [0.0, 2.0, 0.0, 2.0]


def test_the_variance_by_hand_and_by_a_plain_loop() -> None:
    # The prompt makes token 0 e times as likely as before, and token 1 less likely: d = (-1, ln(.632 / .264)).
    positive, negative = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.8, 0.2]).log()
    d = (torch.tensor(0.8 / 0.5).log(), torch.tensor(0.2 / 0.5).log())
    assert float(contrast_variance(positive, positive, negative)) == pytest.approx(float((d[0] - d[1]) ** 2 / 4))
    rng = torch.Generator().manual_seed(1)
    behaviour, positive, negative = 4 * torch.randn(3, 6, 20, generator=rng)
    found = contrast_variance(behaviour, positive, negative)
    for k in range(6):
        chance = behaviour[k].softmax(0)
        d = (negative[k].log_softmax(0) - positive[k].log_softmax(0)).clamp(-5, 5)  # type: ignore[assignment]
        mean = sum(chance[v] * d[v] for v in range(20))
        assert float(found[k]) == pytest.approx(float(sum(chance[v] * (d[v] - mean) ** 2 for v in range(20))), rel=1e-4)


def test_the_variance_is_zero_where_nothing_is_undecided_and_where_the_prompts_agree() -> None:
    spread, peak = torch.zeros(4), torch.tensor([60.0, 0.0, 0.0, 0.0])
    other = torch.tensor([1.0, 0.0, -1.0, 2.0])
    assert float(contrast_variance(peak, spread, other)) == pytest.approx(0.0, abs=1e-6)
    assert float(contrast_variance(spread, other, other)) == 0.0
    assert float(contrast_variance(spread, spread, other)) > 1.0
    cut = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])  # truncated tokens are never drawn
    assert float(contrast_variance(cut, spread, other)) == pytest.approx(0.25)


def test_a_sibling_s_weights_are_those_of_the_next_image_of_the_prompt() -> None:
    rollout = make_rollout()
    own, others = (token_weights(row(name), rollout) for name in ("gcpo", "gcpo_sibling"))
    for b in range(B):
        following = b + 1 if (b + 1) % G else b + 1 - G
        assert torch.allclose(others[b], own[following], atol=1e-5)
    mask = torch.rand(B, T, generator=torch.Generator().manual_seed(2)) > 0.4
    masked = credit.of_siblings(own, G, mask=mask)
    assert (masked[~mask] == 0).all() and torch.allclose(masked.sum(1), mask.sum(1).float(), atol=1e-4)
    with pytest.raises(ValueError, match="groups of 1 have no siblings"):
        credit.of_siblings(own, 1)


@pytest.mark.parametrize("name", ["gcpo_magnitude", "gcpo_variance", "gcpo_sibling"])
def test_descent_makes_the_better_images_tokens_likelier_by_their_weight(name: str) -> None:
    algorithm, rollout = replace(row(name), kl_coef=0.0), make_rollout()
    targets = token_advantages(algorithm, rollout, REWARDS)
    logprob = rollout.logprob_positive.clone().requires_grad_()
    loss(algorithm, logprob, rollout.logprob_positive, targets).loss.backward()
    assert logprob.grad is not None
    expected = -targets.sequence_advantages[:, None] * targets.weights / (B * T)
    assert torch.allclose(logprob.grad, expected, atol=1e-7)
    better = targets.sequence_advantages > 0
    assert (logprob.grad[better] <= 0).all() and (logprob.grad[better] < 0).any()


def test_a_generator_records_the_variance_of_the_distribution_that_it_samples() -> None:
    from helpers import training
    from t2i_gcpo.records import Sampling

    generator = training.generator()
    drawn = Sampling(group_size=2, guidance=3.0, stats=("variance", "exact_kl"))
    rollout = generator.sample(["a red circle", "a blue square"], drawn)
    variance = rollout.stats["variance"]
    assert variance.shape == rollout.tokens.shape and (variance > 0).all()
    weights = token_weights(row("gcpo_variance"), rollout)
    assert torch.allclose(weights, variance / variance.mean(), rtol=1e-4)
    plain = generator.sample(["a red circle"], replace(drawn, guidance=1.0))
    p = plain.stats["variance"][:, 0]  # the same state for both images, whatever they draw
    assert torch.allclose(p[0], p[1])


def test_a_heatmap_says_which_weights_it_shows() -> None:
    from t2i_gcpo.heatmap.recipe import Recipe

    said = {name: Recipe.of(TABLE[name]).words() for name in ("gcpo", "gcpo_magnitude", "gcpo_variance")}
    assert said["gcpo_magnitude"] == "contrast kl, by size (tokens below 0.001 nats 0, at most 10 means)"
    assert said["gcpo_variance"] == "variance, by size (over the batches before)"
    for name in said:
        recipe = Recipe.of(TABLE[name])
        assert Recipe.loads(recipe.dumps()) == recipe
        assert torch.equal(
            token_weights(recipe.algorithm(), make_rollout()), token_weights(TABLE[name], make_rollout())
        )


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("gcpo_variance", {"stats": {}}, "needs the statistic 'variance'"),
        ("gcpo_magnitude", {"logprob_negative": None}, "needs the log-probs under the negative prompt"),
        ("gcpo_sibling", {"logprob_negative": None}, "needs the log-probs under the negative prompt"),
    ],
)
def test_what_a_rollout_lacks_is_named(name: str, missing: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_weights(TABLE[name], make_rollout(**missing))
