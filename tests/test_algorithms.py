"""The table's rows, and what they make of a rollout: advantages for each token, and the loss."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from t2i_gcpo import credit, losses
from t2i_gcpo.advantages import group_advantages
from t2i_gcpo.algorithms import (
    ALL_STATS,
    TABLE,
    Algorithm,
    TokenAdvantages,
    loss,
    loss_denominator,
    resolve,
    token_advantages,
    token_weights,
)
from t2i_gcpo.records import Prompt, Rollout, Sampling

P, G, ROWS, COLUMNS = 2, 4, 3, 4
B, T = P * G, ROWS * COLUMNS
REWARDS = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.2, 0.2, 0.2, 0.9])


def make_rollout(**changes: Any) -> Rollout:
    generator = torch.Generator().manual_seed(0)
    positive = -5 * torch.rand(B, T, generator=generator)
    values: dict[str, Any] = {
        "tokens": torch.randint(9, (B, T), generator=torch.Generator().manual_seed(3)),
        "logprob_positive": positive,
        "logprob_negative": positive + torch.randn(B, T, generator=generator),
        "logprob_behaviour": positive,
        "commit_step": torch.arange(T).expand(B, T),
        "prompts": (Prompt("a"), Prompt("b")),
        "grid": (ROWS, COLUMNS),
        "sampling": Sampling(group_size=G),
        "stats": {name: torch.rand(B, T, generator=generator) for name in ALL_STATS},
    }
    return Rollout(**(values | changes))


def row(name: str, **overrides: Any) -> Algorithm:
    return resolve(name, group_size=G, **overrides)


def make_targets(algorithm: Algorithm, rewards: Tensor = REWARDS) -> TokenAdvantages:
    return token_advantages(algorithm, make_rollout(), rewards, **besides(), generator=torch.Generator().manual_seed(1))


def besides() -> dict[str, Any]:
    """Return what some rows want besides the rollout."""
    generator = torch.Generator().manual_seed(4)
    return {
        "code_vectors": torch.randn(9, 3, generator=generator),
        "reference_entropy": torch.rand(B, T, generator=generator),
        "clause_logprobs": -5 * torch.rand(2, B, T, generator=generator),
        "parts": {f"clause/{k}": (torch.rand(B, generator=generator) < 0.5).float() for k in range(2)},
    }


# --- the table ------------------------------------------------------------------------------------------------------


def differences(one: str, other: str) -> dict[str, tuple[Any, Any]]:
    pairs = {f.name: (getattr(TABLE[one], f.name), getattr(TABLE[other], f.name)) for f in fields(Algorithm)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name != "name"}


def test_rows_differ_in_what_their_papers_say() -> None:
    assert differences("grpo", "gcpo") == {"credit": ("uniform", "contrast"), "kl_weighting": (False, True)}
    assert differences("grpo", "dapo") == {
        "dynamic_sampling": (False, True),
        "clip_high": (0.2, 0.28),
        "reduction": ("sequence", "token"),
        "kl_estimator": ("k3", "none"),
    }
    assert differences("grpo", "dr_grpo") == {
        "advantage_scale": ("std", "none"),
        "reduction": ("sequence", "constant"),
        "kl_estimator": ("k3", "none"),
    }
    assert differences("dapo", "gcpo_dapo") == {"credit": ("uniform", "contrast"), "kl_weighting": (False, True)}
    for control in ("entropy", "clauses", "random", "shuffled", "sibling"):
        assert differences("gcpo", f"gcpo_{control}") == {"credit": ("contrast", control)}
    by_size = ("rank", "none")
    assert differences("gcpo", "gcpo_magnitude") == {
        "normalization": by_size, "cap": (0.0, 10.0), "token_floor": (0.0, 1e-3)
    }  # fmt: skip
    assert differences("gcpo", "gcpo_variance") == {
        "credit": ("contrast", "variance"), "normalization": by_size, "normalize_over": ("image", "running")
    }  # fmt: skip
    assert differences("gcpo", "stage") == {
        "credit": ("contrast", "dissimilar"), "entropy_reward_coef": (0.0, 0.4)
    }  # fmt: skip
    assert differences("gcpo", "critical_tokens") == {
        "credit": ("contrast", "critical"), "ratio_bound": (0.0, 0.5)
    }  # fmt: skip
    gcpo = TABLE["gcpo"]
    assert (gcpo.divergence, gcpo.normalization, gcpo.top, gcpo.mass, gcpo.group_size) == ("kl", "rank", 0.4, 0.8, 8)
    assert all(name == algorithm.name for name, algorithm in TABLE.items())
    assert Algorithm() == gcpo


def test_resolve() -> None:
    assert resolve("grpo", group_size=16) == replace(TABLE["grpo"], group_size=16)
    with pytest.raises(ValueError, match=r"'ppo'.*grpo, dr_grpo, dapo, gcpo"):
        resolve("ppo")
    with pytest.raises(ValueError, match=r"groupsize.*group_size"):
        resolve("grpo", groupsize=4)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ({"group_size": 1}, r"group_size is 1; it must be at least 2"),
        (
            {"credit": "prompt"},
            "uniform, contrast, entropy, variance, clauses, dissimilar, critical, random, shuffled, sibling",
        ),
        ({"ratio_bound": -1.0}, "ratio_bound is -1.0; it must be at least 0"),
        ({"divergence": "stats:js"}, "exact_kl, js_full"),
        ({"reduction": "mean"}, "token, sequence, constant"),
        ({"kl_estimator": "k1"}, "none, k2, k3"),
        ({"top": 0.9, "mass": 0.8}, "mass.*at least algorithm.top"),
        ({"top": 0.0}, "top is 0.0"),
        ({"clip_low": 2.0}, "clip_low"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"dynamic_sampling_limit": 0}, "dynamic_sampling_limit"),
        ({"normalize_parts": True, "entropy_reward_coef": 0.4}, "normalize_parts"),
        ({"normalize_batch": True}, "set both, or neither"),
        ({"cap": 0.5, "normalization": "none"}, "cap is 0.5; it must be at least 1, or 0"),
        ({"token_floor": -1.0}, "token_floor is -1.0"),
        ({"cap": 5.0}, "normalization is rank; set normalization to none"),
        ({"normalize_over": "batch"}, "normalization is rank; set normalization to none"),
    ],
)
def test_values_that_are_not_allowed(override: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        resolve("gcpo", **override)


def test_every_field_has_a_help_text() -> None:
    import ast
    import inspect

    body = ast.parse(inspect.getsource(Algorithm)).body[0].body  # type: ignore[attr-defined]
    declared = [index for index, node in enumerate(body) if isinstance(node, ast.AnnAssign)]
    assert len(declared) == len(fields(Algorithm))
    for index in declared:
        node = body[index + 1]
        assert isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant), ast.unparse(body[index])


@pytest.mark.parametrize(
    ("name", "overrides", "contrast", "stats", "reference"),
    [
        ("grpo", {}, False, (), True),
        ("grpo", {"kl_coef": 0.0}, False, (), False),
        ("dapo", {}, False, (), False),
        ("gcpo", {}, True, (), True),
        ("gcpo", {"divergence": "exact_kl"}, True, ("exact_kl",), True),
        ("gcpo_shuffled", {"divergence": "js_full", "entropy_reward_coef": 0.4}, True, ("entropy", "js"), True),
        ("gcpo_entropy", {"divergence": "exact_kl"}, False, ("entropy",), True),
        ("gcpo_random", {}, False, (), True),
        ("gcpo_variance", {}, False, ("variance",), True),
        ("gcpo_magnitude", {"divergence": "js_full"}, True, ("js",), True),
        ("gcpo_sibling", {}, True, (), True),
        ("gcpo_clauses", {}, True, (), True),
        ("stage", {}, False, ("entropy",), True),
        ("critical_tokens", {}, False, ("behaviour_entropy",), True),
        ("critical_tokens", {"kl_estimator": "none"}, False, ("behaviour_entropy",), True),
    ],
)
def test_what_a_row_needs(
    name: str, overrides: dict[str, Any], contrast: bool, stats: tuple[str, ...], reference: bool
) -> None:
    algorithm = resolve(name, **overrides)
    assert (algorithm.needs_contrast, algorithm.needed_stats, algorithm.needs_reference) == (contrast, stats, reference)
    bare = make_rollout(stats={key: torch.rand(B, T) for key in stats})
    if not contrast:
        bare = replace(bare, logprob_negative=None)
    found = token_advantages(replace(algorithm, group_size=G), bare, REWARDS, **besides())
    assert found.weights.shape == (B, T)  # and nothing more is asked for
    for missing in stats:
        without = replace(bare, stats={key: value for key, value in bare.stats.items() if key != missing})
        with pytest.raises(ValueError, match=f"'{missing}'.*sampling.stats"):
            token_advantages(replace(algorithm, group_size=G), without, REWARDS, **besides())


def test_a_rollout_without_contrast_is_refused() -> None:
    with pytest.raises(ValueError, match="'gcpo' needs the log-probs under the negative prompt"):
        token_advantages(row("gcpo"), make_rollout(logprob_negative=None), REWARDS)


# --- token weights and advantages -----------------------------------------------------------------------------------


def over_the_batch(name: str) -> bool:
    return TABLE[name].normalize_over != "image" or TABLE[name].credit == "dissimilar"


def test_weights_of_each_row() -> None:
    rollout = make_rollout()
    assert rollout.logprob_negative is not None
    weights = {name: make_targets(row(name)).weights for name in TABLE}
    for name, value in weights.items():
        # The batch's mean is 1 where it is what weights are divided by, else each image's.
        means = value.mean().expand(B) if over_the_batch(name) else value.mean(dim=1)
        torch.testing.assert_close(means, torch.ones(B), msg=name)
    assert torch.equal(weights["grpo"], torch.ones(B, T)) and torch.equal(weights["dapo"], torch.ones(B, T))
    assert torch.equal(weights["gcpo"], credit.token_weights(rollout.logprob_positive, rollout.logprob_negative))
    assert torch.equal(weights["gcpo_entropy"], credit.normalize(rollout.stats["entropy"]))
    torch.testing.assert_close(weights["gcpo_shuffled"].sort().values, weights["gcpo"].sort().values)
    torch.testing.assert_close(weights["gcpo_random"].sort().values, weights["gcpo"].sort().values)
    assert not torch.allclose(weights["gcpo_shuffled"], weights["gcpo"])
    exact = token_weights(row("gcpo", divergence="exact_kl", normalization="none"), rollout)
    torch.testing.assert_close(exact, rollout.stats["exact_kl"] / rollout.stats["exact_kl"].mean(dim=1, keepdim=True))
    full = token_weights(row("gcpo", divergence="js_full"), rollout)
    assert torch.equal(full, credit.normalize(rollout.stats["js"]))


def test_options_reach_the_credit() -> None:
    rollout = make_rollout()
    options = {"divergence": "abs", "normalization": "minmax"}
    assert rollout.logprob_negative is not None
    expected = credit.token_weights(rollout.logprob_positive, rollout.logprob_negative, **options)  # type: ignore[arg-type]
    assert torch.equal(token_weights(row("gcpo", **options), rollout), expected)
    assert torch.equal(token_weights(row("gcpo", floor=100.0), rollout), torch.ones(B, T))
    assert torch.equal(token_weights(row("gcpo", floor=100.0, divergence="exact_kl"), rollout), torch.ones(B, T))
    sharper = token_weights(row("gcpo", top=0.2, mass=0.9), rollout)
    assert sharper.max() > token_weights(row("gcpo"), rollout).max()


def test_token_advantages_are_advantage_times_weight() -> None:
    targets = make_targets(row("gcpo"))
    torch.testing.assert_close(targets.sequence_advantages, group_advantages(REWARDS, G))
    for b in range(B):
        for t in range(T):
            expected = targets.sequence_advantages[b].item() * targets.weights[b, t].item()
            assert targets.advantages[b, t].item() == pytest.approx(expected)
    assert targets.mask.all() and targets.valid.all()
    assert targets.metrics["groups/informative"] == 1.0
    assert targets.metrics["rows/failed"] == 0.0
    assert targets.metrics["credit/contrast"] > 0.5
    assert targets.metrics["credit/below_floor"] == 0.0
    assert targets.metrics["credit/top_share"] == pytest.approx(0.8, abs=0.05)


def test_a_failed_image_is_out_of_everything() -> None:
    rewards = REWARDS.clone()
    rewards[2] = torch.nan
    targets = make_targets(row("gcpo"), rewards)
    assert targets.valid.tolist() == [True, True, False] + [True] * 5
    assert targets.metrics["rows/failed"] == 1.0
    for tensor in (targets.advantages[2], targets.weights[2], targets.sequence_advantages[2], targets.mask[2].float()):
        assert (tensor == 0).all()
    others = torch.tensor([0, 1, 3])
    three = rewards[others]
    torch.testing.assert_close(targets.sequence_advantages[others], (three - three.mean()) / (three.std() + 1e-4))
    leaf = make_rollout().logprob_positive.clone().requires_grad_()
    reference = leaf.detach() + 0.3
    loss(row("gcpo"), leaf, leaf.detach(), targets, logprob_reference=reference).loss.backward()
    assert leaf.grad is not None
    assert leaf.grad[2].abs().max() == 0 and leaf.grad[others].abs().min() > 0


def test_a_mask_leaves_tokens_out() -> None:
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[:, :3] = False
    for name in TABLE:
        targets = token_advantages(row(name), make_rollout(), REWARDS, mask=mask, **besides())
        assert torch.equal(targets.mask, mask)
        assert (targets.weights[~mask] == 0).all() and (targets.advantages[~mask] == 0).all()
        sums = targets.weights.sum(dim=1)
        sums = sums.mean().expand(B) if over_the_batch(name) else sums
        torch.testing.assert_close(sums, torch.full((B,), T - 3.0), msg=name)


def test_controls_draw_from_the_generator_they_are_given() -> None:
    for name in ("gcpo_random", "gcpo_shuffled"):
        first, again = make_targets(row(name)), make_targets(row(name))
        assert torch.equal(first.weights, again.weights)
        other = token_advantages(row(name), make_rollout(), REWARDS, generator=torch.Generator().manual_seed(2))
        assert not torch.equal(first.weights, other.weights)


def test_parts_are_normalised_on_their_own_when_asked() -> None:
    parts = {"a": REWARDS, "b": 100 * REWARDS.flip(0)}
    algorithm = row("grpo", normalize_parts=True)
    targets = token_advantages(algorithm, make_rollout(), REWARDS, parts=parts, part_weights={"a": 1.0, "b": 0.5})
    expected = group_advantages(parts["a"], G) + 0.5 * group_advantages(parts["b"], G)
    torch.testing.assert_close(targets.sequence_advantages, expected)
    with pytest.raises(ValueError, match="normalize_parts"):
        token_advantages(algorithm, make_rollout(), REWARDS)


def test_gdpo_normalises_the_sum_of_parts_over_the_batch() -> None:
    parts = {"a": REWARDS, "b": 100 * REWARDS.flip(0)}
    parts["b"][1] = torch.nan
    given: dict[str, Any] = {"parts": parts, "part_weights": {"a": 1.0, "b": 0.5}}
    plain = token_advantages(row("grpo", normalize_parts=True), make_rollout(), REWARDS, **given).sequence_advantages
    whole = REWARDS.isfinite() & parts["b"].isfinite()
    assert 1 < int(whole.sum()) < B
    targets = token_advantages(
        row("grpo", normalize_parts=True, normalize_batch=True), make_rollout(), REWARDS, **given
    )
    got = targets.sequence_advantages
    assert got[whole].mean().abs() < 1e-6 and float(got[whole].std()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(got[whole] * (plain[whole].std() + 1e-4) + plain[whole].mean(), plain[whole])
    assert not got[~whole].any()


def test_entropy_reward_ranks_the_best_by_how_near_their_entropy_stayed() -> None:
    algorithm = row("grpo", entropy_reward_coef=0.4)
    entropy = torch.full((B, T), 2.0)
    entropy[3] = 3.0  # rows 0 and 3 share the first group's highest reward
    rollout = make_rollout(stats={"entropy": entropy})
    targets = token_advantages(algorithm, rollout, REWARDS, reference_entropy=torch.full((B, T), 2.0))
    rewards = REWARDS.clone()
    rewards[0] += 0.4 * (1 - 0.75)
    rewards[3] += 0.4 * (0.5 - 0.75)
    torch.testing.assert_close(targets.sequence_advantages, group_advantages(rewards, G))
    with pytest.raises(ValueError, match="reference_entropy"):
        token_advantages(algorithm, rollout, REWARDS)


def test_entropy_reward_of_groups_that_score_alike_is_an_option() -> None:
    """A group of zeros has advantages by its entropy.

    As in STAGE, unless only groups with different scores get the reward.
    """
    entropy = torch.full((B, T), 2.0)
    entropy[1] = 3.0
    rollout, zeros, reference = make_rollout(stats={"entropy": entropy}), torch.zeros(B), torch.full((B, T), 2.0)
    as_stage = token_advantages(row("grpo", entropy_reward_coef=0.4), rollout, zeros, reference_entropy=reference)
    assert as_stage.sequence_advantages[0] > 0 > as_stage.sequence_advantages[1]
    algorithm = row("grpo", entropy_reward_coef=0.4, entropy_reward_groups="informative")
    alone = token_advantages(algorithm, rollout, zeros, reference_entropy=reference)
    assert bool((alone.sequence_advantages == 0).all())
    different = token_advantages(algorithm, rollout, REWARDS, reference_entropy=reference)
    same = token_advantages(row("grpo", entropy_reward_coef=0.4), rollout, REWARDS, reference_entropy=reference)
    assert torch.equal(different.sequence_advantages, same.sequence_advantages)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"group size is 4, the algorithm's 8"):
        token_advantages(TABLE["gcpo"], make_rollout(), REWARDS)
    with pytest.raises(ValueError, match=r"rewards have shape \(7,\)"):
        token_advantages(row("gcpo"), make_rollout(), REWARDS[1:])


# --- the loss -------------------------------------------------------------------------------------------------------


def make_logprobs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    old = make_rollout().logprob_positive
    new, reference = (old + 0.2 * torch.randn(B, T, generator=generator) for _ in range(2))
    return new, old, reference


def test_importance_weighs_the_policy_loss_and_not_the_kl() -> None:
    new, old, reference = make_logprobs()
    algorithm = row("gcpo", kl_coef=0.5, importance_cap=2.0)
    targets = make_targets(algorithm)
    sampled = old + torch.tensor([math.log(2.0), -math.log(4.0)]).repeat(B, T // 2)
    given = {"logprob_reference": reference, "logprob_sampled": sampled}
    output = loss(algorithm, new, old, targets, **given)
    plain = loss(replace(algorithm, importance_cap=0.0), new, old, targets, **given)
    torch.testing.assert_close(output.metrics["kl_loss"], plain.metrics["kl_loss"])
    ratio = (new - old).exp()
    surrogate = -torch.minimum(ratio * targets.advantages, ratio.clamp(0.8, 1.2) * targets.advantages)
    weights = torch.tensor([0.5, 2.0]).repeat(B, T // 2)  # 4 is above the cap
    torch.testing.assert_close(output.metrics["policy_loss"], (surrogate * weights).mean())
    assert output.metrics["importance_mean"].item() == pytest.approx(1.25)
    assert output.metrics["importance_capped"].item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="set algorithm.importance_cap to 0"):
        loss(algorithm, new, old, targets, logprob_reference=reference)


def test_loss_is_policy_loss_plus_weighted_kl() -> None:
    new, old, reference = make_logprobs()
    algorithm = row("gcpo", kl_coef=0.5)
    targets = make_targets(algorithm)
    output = loss(algorithm, new, old, targets, logprob_reference=reference)
    policy = losses.policy_loss(new, old, targets.advantages, clip_low=0.2, clip_high=0.2, reduction="sequence").loss
    d = reference - new
    term = 0.5 * ((torch.expm1(d) - d) * (0.5 + 0.5 * (2 - 2 * targets.weights).clamp(0, 1))).mean()
    torch.testing.assert_close(output.loss, policy + term)
    torch.testing.assert_close(output.metrics["kl_loss"], term)
    torch.testing.assert_close(output.metrics["policy_loss"], policy)
    torch.testing.assert_close(output.metrics["kl_k1"], (new - reference).mean())
    unweighted = loss(row("gcpo", kl_coef=0.5, kl_weighting=False), new, old, targets, logprob_reference=reference)
    torch.testing.assert_close(unweighted.loss, policy + 0.5 * (torch.expm1(d) - d).mean())


def test_the_kl_is_of_other_log_probs_where_they_are_given() -> None:
    new, old, reference = make_logprobs()
    algorithm = row("gcpo", kl_coef=0.5)
    targets = make_targets(algorithm)
    summed = (30 * new).requires_grad_()  # the ratio's, whose difference from the reference has no finite exponent
    own = new.clone().requires_grad_()
    output = loss(algorithm, summed, summed.detach(), targets, logprob_reference=reference, token_logprob=own)
    plain = loss(algorithm, new, old, targets, logprob_reference=reference)
    for name in ("kl_loss", "kl_k1", "kl_k3"):
        assert output.metrics[name].item() == plain.metrics[name].item()
    term = 0.5 * (losses.kl(own, reference, "k3") * losses.kl_weights(targets.weights)).mean()
    (expected,) = torch.autograd.grad(term, own)
    output.loss.backward()
    torch.testing.assert_close(own.grad, expected)
    torch.testing.assert_close(summed.grad, -targets.advantages / new.numel())


def test_factors_of_tokens_reach_both_terms_and_no_metric() -> None:
    new, old, reference = make_logprobs()
    algorithm = row("gcpo", kl_coef=0.5)
    targets = make_targets(algorithm)
    scale = torch.ones_like(new)
    scale[:, ::2] = 0.0
    scale[:, 1::2] = 3.0
    output = loss(algorithm, new, old, targets, logprob_reference=reference, scale=scale)
    values = losses.kl(new, reference, "k3")
    expected = 0.5 * (values * losses.kl_weights(targets.weights) * scale).mean()
    assert output.metrics["kl_loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert output.metrics["kl_k3"].item() == pytest.approx(values[:, 1::2].mean().item(), abs=1e-6)
    policy = losses.policy_loss(new, old, targets.advantages * scale, mask=targets.mask, reduction="sequence")
    assert output.metrics["policy_loss"].item() == pytest.approx(policy.loss.item(), abs=1e-6)
    ones = loss(algorithm, new, old, targets, logprob_reference=reference, scale=torch.ones_like(new))
    plain = loss(algorithm, new, old, targets, logprob_reference=reference)
    assert ones.loss.item() == plain.loss.item()


def test_clip_bounds_and_reduction_come_from_the_row() -> None:
    new, old, _ = make_logprobs()
    algorithm = row("dapo", clip_low=0.05, clip_high=0.4)
    targets = make_targets(algorithm)
    expected = losses.policy_loss(new, old, targets.advantages, clip_low=0.05, clip_high=0.4, reduction="token")
    got = loss(algorithm, new, old, targets)
    torch.testing.assert_close(got.loss, expected.loss)
    assert got.metrics["clip_fraction_low"] > 0
    assert "kl_loss" not in loss(algorithm, new, old, targets, logprob_reference=new + 0.1).metrics


def test_a_missing_reference_is_refused_where_it_is_needed() -> None:
    new, old, _ = make_logprobs()
    with pytest.raises(ValueError, match="'gcpo' has a KL term"):
        loss(row("gcpo"), new, old, make_targets(row("gcpo")))


@pytest.mark.parametrize("name", list(TABLE))
def test_micro_batches_add_up(name: str) -> None:
    new, old, reference = make_logprobs()
    algorithm = row(name)
    rewards = REWARDS.clone()
    rewards[1] = torch.nan
    targets = make_targets(algorithm, rewards)
    given = {"logprob_reference": reference} if algorithm.needs_reference else {}

    def gradient(pieces: list[Tensor]) -> Tensor:
        leaf = new.clone().requires_grad_()
        for index in pieces:
            loss(
                algorithm,
                leaf[index],
                old[index],
                targets.rows(index),
                denominator=loss_denominator(algorithm, targets),
                **{key: value[index] for key, value in given.items()},
            ).loss.backward()
        assert leaf.grad is not None
        return leaf.grad

    whole = new.clone().requires_grad_()
    loss(algorithm, whole, old, targets, **given).loss.backward()
    permutation = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gradient(list(permutation.split(3))), whole.grad)


def test_gcpo_moves_the_tokens_that_the_prompt_drives_most() -> None:
    """On-policy the loss values of GRPO and GCPO agree.

    The gradients differ by the weights, and point the right way.
    """
    old = make_rollout().logprob_positive
    outcomes = {}
    for name in ("grpo", "gcpo"):
        algorithm = row(name, kl_estimator="none")
        targets = make_targets(algorithm)
        leaf = old.clone().requires_grad_()
        value = loss(algorithm, leaf, old, targets).loss
        value.backward()
        outcomes[name] = (value.item(), leaf.grad, targets)
    assert outcomes["grpo"][0] == pytest.approx(outcomes["gcpo"][0], abs=1e-6)
    gradient, targets = outcomes["gcpo"][1], outcomes["gcpo"][2]
    plain = outcomes["grpo"][1]
    assert gradient is not None and plain is not None
    torch.testing.assert_close(gradient, plain * targets.weights)
    assert (gradient[0] < 0).all() and (gradient[1] > 0).all()  # row 0 did well: descent raises its log-probs
