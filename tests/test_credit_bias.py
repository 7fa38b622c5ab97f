"""The enumerated worlds: which rules of credit move tokens without influence on the reward, and by how much."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from helpers import pages
from t2i_gcpo import credit
from t2i_gcpo.algorithms import TABLE
from t2i_gcpo.evaluation.credit_bias import (
    RULES,
    THREE_TOKENS,
    TWO_TOKENS,
    bias,
    enumerated_rollout,
    expected_gradient,
    table,
)

STATE_ONLY = ["gcpo, exact_kl", "gcpo, exact_kl, none", "gcpo, js_full, none", "gcpo_entropy"]
UNBIASED = [
    "grpo", "stage", "gcpo_sibling", "gcpo_variance", "gcpo, exact_kl, none, over the batch",
    "gcpo, exact_kl, none, running", "gcpo_events",
]  # fmt: skip
BIASED = [name for name in RULES if name not in (*STATE_ONLY, *UNBIASED)]


def test_every_group_is_listed_once_with_its_probability() -> None:
    for world, length in ((TWO_TOKENS, 2), (THREE_TOKENS, 3)):
        rollout, rewards, probability = enumerated_rollout(world)
        assert len(torch.unique(rollout.tokens.view(-1, 2 * length), dim=0)) == 3 ** (2 * length) == len(probability)
        assert probability.sum() == pytest.approx(1.0)
        assert rewards.tolist() == (rollout.tokens[:, 0] == 0).float().tolist()


def test_dr_grpo_has_the_gradient_of_the_mean_reward() -> None:
    # P(first token is 0) = 0.5: d/dz of 0.5 is p0 (1 - p0), -p0 p1, -p0 p2; a group of two halves it, (G - 1) / G.
    expected = torch.tensor([0.25, -0.15, -0.10], dtype=torch.float64) / 2
    gradient = expected_gradient(TABLE["dr_grpo"])
    assert torch.allclose(gradient[0], expected, atol=1e-6) and gradient[1].abs().max() < 1e-7


def test_the_bias_of_the_kl_without_ranks_by_a_plain_loop() -> None:
    p, q = (0.5, 0.3, 0.2), ((0.2, 0.3, 0.5), (0.4, 0.4, 0.2))
    gradient = [0.0, 0.0, 0.0]
    for first in itertools.product(range(3), repeat=2):
        for second in itertools.product(range(3), repeat=2):
            images = ((first[0], second[0]), (first[1], second[1]))
            chance = p[first[0]] * p[first[1]] * p[second[0]] * p[second[1]]
            rewards = [float(a == 0) for a, _ in images]
            mean = sum(rewards) / 2
            deviation = (sum((r - mean) ** 2 for r in rewards)) ** 0.5
            for (a, b), reward in zip(images, rewards, strict=True):
                ratios = (q[0][a] / p[a], q[1][b] / p[b])
                k3 = [ratio - 1 - float(torch.tensor(ratio).log()) for ratio in ratios]
                weight = 2 * k3[1] / sum(k3) if sum(k3) > 1e-9 else 1.0
                for k in range(3):
                    gradient[k] += chance / 2 * (reward - mean) / (deviation + 1e-4) * weight * ((k == b) - p[k])
    found = expected_gradient(replace(TABLE["gcpo"], normalization="none", floor=0.0))[1]
    assert found.tolist() == pytest.approx(gradient, abs=1e-5)
    assert max(map(abs, gradient)) > 0.01


@pytest.mark.parametrize("name", [name for name in TABLE if name not in ("gcpo_random", "gcpo_shuffled")])
def test_every_row_is_unbiased_exactly_if_its_weights_leave_the_drawn_token_out(name: str) -> None:
    share = bias(expected_gradient(TABLE[name]))
    assert share > 0.03 if TABLE[name].credit in ("contrast", "clauses") else share < 1e-5


@pytest.mark.parametrize("name", ["gcpo_random", "gcpo_shuffled"])
def test_controls_that_draw_at_random_are_grpo_on_average(name: str) -> None:
    gradient, grpo = (expected_gradient(TABLE[row], repeats=1000) for row in (name, "grpo"))
    assert torch.allclose(gradient, grpo, atol=2e-3)


def test_rules_of_the_drawn_token_are_biased_and_rules_of_the_state_only_through_the_normalisation() -> None:
    two, three = (
        {name: bias(expected_gradient(RULES[name], world)) for name in RULES} for world in (TWO_TOKENS, THREE_TOKENS)
    )
    assert all(two[name] > 0.03 and three[name] > 0.03 for name in BIASED)
    assert all(two[name] < 1e-5 for name in STATE_ONLY)
    assert three["gcpo, exact_kl"] > 0.1 > three["gcpo, exact_kl, none"] > 0.01
    assert three["gcpo_entropy"] < 1e-5  # no state changes its weights here
    assert all(two[name] < 1e-5 and three[name] < 1e-5 for name in UNBIASED)


def test_in_a_small_batch_only_the_average_of_earlier_batches_leaves_no_bias() -> None:
    """With one group a batch, the batch's mean is made of what was drawn in the weighed images."""
    biases = {
        name: bias(expected_gradient(RULES[name], THREE_TOKENS, alone=True))
        for name in ("gcpo, exact_kl, none, over the batch", "gcpo, exact_kl, none, running", "gcpo_variance")
    }
    assert biases["gcpo, exact_kl, none, over the batch"] > 0.01
    assert max(biases["gcpo, exact_kl, none, running"], biases["gcpo_variance"]) < 1e-6


def test_the_table_of_the_method_page_is_computed() -> None:
    assert table() in (pages.ROOT / "docs" / "method.md").read_text(encoding="utf-8")


def test_half_the_tokens_at_zero_gain_get_eight_per_cent_of_the_credit_under_ranks_and_none_without() -> None:
    gain = torch.linspace(0.1, 2.0, 500)
    positive = torch.cat([gain, -gain])[None] - 5.0  # half of the tokens are made likelier, half less likely
    negative = torch.full((1, 1000), -5.0)
    shares = {}
    for normalization in ("rank", "minmax", "none"):
        weights = credit.token_weights(
            positive,
            negative,
            divergence="information_gain",
            normalization=normalization,  # type: ignore[arg-type]
        )
        shares[normalization] = float(weights[0, 500:].sum() / weights.sum())
    assert shares == {"rank": pytest.approx(0.0828, abs=0.0002), "minmax": 0.0, "none": 0.0}


def test_the_kl_estimate_is_that_kl_only_without_guidance() -> None:
    positive, negative = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    exact = float((positive.exp() * (positive - negative)).sum())
    estimate = credit.divergence(positive[None], negative[None])[0]
    guided = (negative + 2.0 * (positive - negative)).softmax(dim=0)
    assert float((positive.exp() * estimate).sum()) == pytest.approx(exact, abs=1e-6)
    assert abs(float((guided * estimate).sum()) - exact) > 0.1
