"""One rollout's optimiser updates, against the formula written out in plain PyTorch and against each other."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.training import PROMPTS, distance, generator, same, weights
from t2i_gcpo.algorithms import TokenAdvantages, resolve, token_advantages
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.records import Rollout, Sampling
from t2i_gcpo.training import updater as update_module
from t2i_gcpo.training.master_weights import MasterWeights
from t2i_gcpo.training.options import LoopOptions, OptimConfig, with_options
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils.clock import Clock

SCORES = torch.tensor([0.1, 0.9, 0.4, 0.2, 1.0, 0.0, 0.0, 1.0])
NAN = math.nan
#: AdamW's eps is of the size of the gradients, so that rounding noise is not blown up to a step of the learning rate.
OPTIM = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-2}


def updater(policy: Janus, name: str = "gcpo", **changes: Any) -> Updater:
    """`changes` are options of the loop or of the optimiser by their names, `max_nonfinite` among them."""
    optim = {**OPTIM, "warmup_steps": 0, "min_ratio": 1.0, "max_grad_norm": 0.5}
    algorithm = changes.pop("algorithm", None) or resolve(name, group_size=4, kl_coef=0.5)
    groups = {"loop": LoopOptions(steps=100, micro_batch=8), "optim": OptimConfig(**optim)}
    return Updater(policy, algorithm, **with_options(groups, changes))


def moved(policy: Janus) -> Janus:
    """A policy that has left its reference, so that the KL counts."""
    policy.keep_reference()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    return policy


def draw(
    policy: Janus, scores: Tensor = SCORES, name: str = "gcpo", **sampling: Any
) -> tuple[Rollout, TokenAdvantages]:
    """Two prompts, four images of each."""
    rollout = policy.sample(PROMPTS[:2], Sampling(**{"group_size": 4, "guidance": 2.0, "seed": 7, **sampling}))
    return rollout, token_advantages(resolve(name, group_size=4), rollout, scores, generator=torch.Generator())


def run(target: Updater, rollout: Rollout, targets: TokenAdvantages, seed: int = 0) -> dict[str, float]:
    return target.update(rollout, targets, Clock(torch.device("cpu")), torch.Generator().manual_seed(seed))


# -- the formula -------------------------------------------------------------------------------------------------------


def plain_logprobs(model: Any, policy: Janus, rollout: Rollout) -> Tensor:
    """Log-probs of the guided distribution at guidance 2, written out.

    One prompt after the other, no padding shared.
    """
    rows = []
    for row in range(rollout.batch):
        encoded = policy.prompts.encode([rollout.prompts[row // rollout.sampling.group_size].text])
        logits = []
        for ids in (encoded.ids, policy.prompts.null(encoded).ids):
            image = model.prepare_embeddings_for_image_generation(rollout.tokens[row : row + 1, :-1])
            embeds = torch.cat([model.model.language_model.get_input_embeddings()(ids), image], dim=1)
            hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state
            logits.append(model.model.generation_head(hidden[0, ids.shape[1] - 1 :]))
        guided = logits[1] + 2 * (logits[0] - logits[1])
        rows.append(guided.log_softmax(dim=-1)[torch.arange(16), rollout.tokens[row]])
    return torch.stack(rows)


def plain_weights(rollout: Rollout, row: int) -> list[float]:
    """GCPO's: rank of expm1(d) - d over 16 tokens, to the power that gives the top 40 % 80 % of the credit, mean 1."""
    assert rollout.logprob_negative is not None
    d = [float(n) - float(p) for n, p in zip(rollout.logprob_negative[row], rollout.logprob_positive[row], strict=True)]
    divergence = [min(math.expm1(x) - x, 10.0) for x in d]
    rank = [sum(other <= own for other in divergence) for own in divergence]
    raw = [(r / 16) ** (math.log(0.2) / math.log(0.6) - 1) for r in rank]
    return [w * 16 / sum(raw) for w in raw]


def plain_loss(logprob: Tensor, reference: Tensor, rollout: Rollout, *, gcpo: bool) -> Tensor:
    """At ratio 1: -A w ratio + 0.5 KL, mean over an image's tokens, then over the images."""
    total = torch.zeros(())
    for row in range(8):
        group = SCORES[row // 4 * 4 : row // 4 * 4 + 4]
        advantage = float((SCORES[row] - group.mean()) / (group.std() + 1e-4))
        credit = plain_weights(rollout, row) if gcpo else [1.0] * 16
        for t in range(16):
            ratio = (logprob[row, t] - logprob[row, t].detach()).exp()
            d = reference[row, t] - logprob[row, t]
            held = 0.5 + 0.5 * min(max(2 - 2 * credit[t], 0.0), 1.0) if gcpo else 1.0
            total = total - advantage * credit[t] * ratio / 16 + 0.5 * held * (d.exp() - d - 1) / 16
    return total / 8


@pytest.mark.parametrize("name", ["gcpo", "grpo"])
def test_a_step_is_the_formula_written_out(name: str) -> None:
    policy = moved(generator())
    before = weights(policy)
    model = copy.deepcopy(policy.model)
    original = copy.deepcopy(policy.model)
    with policy.reference():
        original.model.language_model.load_state_dict(policy.weights.module.state_dict())
    rollout, targets = draw(policy, name=name)
    metrics = run(updater(policy, name), rollout, targets)

    with torch.no_grad():
        reference = plain_logprobs(original, policy, rollout)
    loss = plain_loss(plain_logprobs(model, policy, rollout), reference, rollout, gcpo=name == "gcpo")
    parameters = list(model.model.language_model.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))
    assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-5) and metrics["grad_norm"] == pytest.approx(
        norm, rel=1e-4
    )
    assert norm > 0.5, "the clipping of the gradient is part of the test"
    expected = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:  # the word embeddings are used, but a word that is in no prompt has gradient 0
            expected.append(parameter.detach())
            continue
        g = gradient * 0.5 / norm
        decay = 0.1 if parameter.ndim >= 2 else 0.0  # AdamW's first step: both moments, unbiased, are g and g^2
        expected.append((parameter * (1 - 1e-2 * decay) - 1e-2 * g / (g.abs() + 1e-2)).detach())
    assert distance(weights(policy), expected) < 1e-6
    assert distance(weights(policy), before) > 1e-4


@pytest.mark.parametrize("reduction", ["sequence", "token", "constant"])
def test_the_micro_batch_changes_nothing(reduction: str) -> None:
    """Gradients accumulate to those of the whole, also with an image that failed."""
    results, losses = [], []
    for micro_batch in (1, 3, 8):
        policy = moved(generator())
        rollout, targets = draw(policy, torch.tensor([0.1, 0.9, 0.4, NAN, 1.0, 0.0, 0.0, 1.0]))
        algorithm = resolve("gcpo", group_size=4, reduction=reduction, kl_coef=0.5)
        metrics = run(updater(policy, algorithm=algorithm, micro_batch=micro_batch), rollout, targets)
        results.append(weights(policy))
        losses.append(metrics["loss"])
    assert distance(results[0], results[2]) < 1e-6 and distance(results[1], results[2]) < 1e-6
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)
    assert distance(results[0], weights(moved(generator()))) > 1e-4


def test_a_failed_image_is_not_in_the_update() -> None:
    """Neither in the policy term nor in the KL: whatever its tokens were."""
    results = []
    for noise in (False, True):
        policy = moved(generator())
        rollout, targets = draw(policy, torch.tensor([0.1, 0.9, 0.4, NAN, 1.0, 0.0, 0.0, 1.0]))
        if noise:
            tokens = rollout.tokens.clone()
            tokens[3] = (tokens[3] + 1) % 32
            rollout = replace(rollout, tokens=tokens)
        run(updater(policy), rollout, targets)
        results.append(weights(policy))
    assert distance(*results) < 1e-7


def test_the_trained_distribution_is_a_choice() -> None:
    results = []
    for distribution in ("conditional", "guided", "guided_detached"):
        policy = moved(generator())
        rollout, targets = draw(policy)
        metrics = run(updater(policy, distribution=distribution), rollout, targets)
        assert metrics["logprob_drift"] < 1e-5, "what sampling recorded is what the training forward gives"
        results.append(weights(policy))
    assert min(distance(results[a], results[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-5


# -- several updates from one rollout ----------------------------------------------------------------------------------


def olds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """(log-probs, old log-probs) of every call of the loss from here on."""
    seen: list[tuple[Tensor, Tensor]] = []
    real = update_module.loss

    def spy(algorithm: Any, logprob: Tensor, old: Tensor, *args: Any, **options: Any) -> Any:
        seen.append((logprob.detach().clone(), old.clone()))
        return real(algorithm, logprob, old, *args, **options)

    monkeypatch.setattr(update_module, "loss", spy)
    return seen


def test_the_ratio_of_a_single_update_is_one_whatever_was_recorded() -> None:
    policy = moved(generator())
    rollout, targets = draw(policy)
    off = replace(rollout, logprob_behaviour=rollout.logprob_behaviour + 1.0)
    metrics = run(updater(policy, "grpo"), off, targets)
    assert metrics["ratio_mean"] == metrics["ratio_max"] == 1.0 and metrics["clip_fraction"] == 0.0
    assert metrics["logprob_drift"] == pytest.approx(1.0, abs=1e-4)


def test_tokens_that_sampling_found_twice_as_likely_count_half() -> None:
    norms = []
    for cap, shift in ((0.0, math.log(2.0)), (2.0, math.log(2.0)), (2.0, 0.0), (0.25, 0.0)):
        policy = moved(generator())
        rollout, targets = draw(policy, name="dr_grpo")
        off = replace(rollout, logprob_behaviour=rollout.logprob_behaviour + shift)
        algorithm = resolve("dr_grpo", group_size=4, importance_cap=cap)
        metrics = run(updater(policy, algorithm=algorithm), off, targets)
        norms.append(metrics["grad_norm"])
        if cap:
            expected = min(math.exp(-shift), cap)
            assert metrics["importance_mean"] == pytest.approx(expected, rel=1e-3)
            assert metrics["importance_capped"] == (1.0 if cap < 1 else 0.0)
        assert metrics["logprob_drift_max"] == pytest.approx(shift, abs=1e-4)
    assert [norm / norms[0] for norm in norms[1:]] == pytest.approx([0.5, 1.0, 0.25], rel=1e-3)


def test_over_several_passes_old_logprobs_stay_the_rollouts_and_clipping_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = olds(monkeypatch)
    policy = moved(generator())
    rollout, targets = draw(policy)
    metrics = run(updater(policy, epochs=3, lr=3e-2), rollout, targets)
    assert len(seen) == 3 and all(torch.equal(old, rollout.logprob_behaviour) for _, old in seen)
    assert float((seen[0][0] - seen[0][1]).abs().max()) < 1e-4, "the first pass is on-policy"
    assert float((seen[2][0] - seen[2][1]).abs().max()) > 0.3
    assert metrics["clip_fraction"] > 0.02 and metrics["ratio_max"] > 1.2 and metrics["logprob_drift"] < 1e-5
    assert metrics["clip_fraction"] == pytest.approx(metrics["clip_fraction_low"] + metrics["clip_fraction_high"])


def test_recorded_logprobs_that_the_training_forward_does_not_give_are_computed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = olds(monkeypatch)
    policy = moved(generator())
    rollout, targets = draw(policy)
    with torch.no_grad():
        fresh = policy.token_logprobs(rollout, distribution="guided")
    off = replace(rollout, logprob_behaviour=rollout.logprob_behaviour + 0.01)
    metrics = run(updater(policy, epochs=2, micro_batch=3), off, targets)
    assert metrics["logprob_drift"] == pytest.approx(0.01, rel=0.05)
    old = torch.cat([old for _, old in seen[:3]])
    assert float((old - fresh).abs().max()) < 1e-5 and torch.equal(torch.cat([old for _, old in seen[3:]]), old)


def test_minibatches_deal_every_image_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = moved(generator())
    rollout, targets = draw(policy)
    target = updater(policy, epochs=2, minibatches=4, micro_batch=1)
    dealt = [part.tolist() for part in target._minibatches(8, torch.Generator().manual_seed(0))]
    assert [len(part) for part in dealt] == [2] * 8
    assert sorted(chain(*dealt[:4])) == sorted(chain(*dealt[4:])) == list(range(8)) and dealt[:4] != dealt[4:]
    steps = []
    monkeypatch.setattr(target.optimizer, "step", lambda: steps.append(1))
    run(target, rollout, targets)
    assert len(steps) == 8
    one = updater(policy)
    assert [part.tolist() for part in one._minibatches(8, torch.Generator())] == [list(range(8))]


def test_a_minibatch_is_a_step_of_its_own_with_its_own_denominator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two mini-batches are two updates of four images each: those of two rollouts, given the same old log-probs."""
    monkeypatch.setattr(update_module, "DRIFT_TOLERANCE", math.inf)  # else the second rollout would be scored anew
    whole, split = moved(generator()), moved(generator())
    rollout, targets = draw(whole, name="grpo")
    one, two = updater(whole, "grpo", minibatches=2), updater(split, "grpo", epochs=2)
    parts = list(one._minibatches(8, torch.Generator().manual_seed(3)))
    run(one, rollout, targets, seed=3)
    two._minibatches = lambda batch, rng: iter([torch.arange(batch)])  # type: ignore[method-assign]
    for part in parts:
        run(two, rollout.rows(part), targets.rows(part))
    assert distance(weights(whole), weights(split)) < 1e-6
    assert distance(weights(whole), weights(moved(generator()))) > 1e-4


def test_an_update_starts_from_no_gradients() -> None:
    policy, fresh = moved(generator()), moved(generator())
    rollout, targets = draw(policy)
    target = updater(policy)
    run(target, rollout, targets)
    other = updater(fresh)
    other.weights.load_values(target.weights.values())
    expected = run(other, rollout, targets)["grad_norm"]
    assert run(target, rollout, targets)["grad_norm"] == pytest.approx(expected, rel=1e-5)


def test_a_minibatch_of_failed_images_is_passed_over() -> None:
    policy = moved(generator())
    rollout, targets = draw(policy, torch.tensor([0.1, 0.9, 0.4, 0.2, NAN, NAN, NAN, NAN]))
    target = updater(policy, minibatches=8)
    target._minibatches = lambda batch, rng: iter([torch.arange(4), torch.arange(4, 8)])  # type: ignore[method-assign]
    metrics = run(target, rollout, targets)
    assert int(next(iter(target.optimizer.state.values()))["step"]) == 1 and metrics["updates/skipped"] == 0


# -- what is not finite ------------------------------------------------------------------------------------------------


def broken(policy: Janus, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next `times` forward passes with gradient give a log-prob that is not finite."""
    real, left = policy.token_logprobs, [times]

    def token_logprobs(*args: Any, **options: Any) -> Tensor:
        result = real(*args, **options)
        if torch.is_grad_enabled() and left[0]:
            left[0] -= 1
            return result * NAN
        return result

    monkeypatch.setattr(policy, "token_logprobs", token_logprobs)


@pytest.mark.parametrize("micro_batch", [4, 8])
def test_an_update_that_is_not_finite_is_skipped_and_counted(micro_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = moved(generator())
    rollout, targets = draw(policy)
    target = updater(policy, micro_batch=micro_batch)
    before = weights(policy)
    broken(policy, 1, monkeypatch)
    metrics = run(target, rollout, targets)
    assert metrics["updates/skipped"] == 1 and not math.isfinite(metrics["loss"])
    assert same(weights(policy), before) and not target.optimizer.state and target.guard.in_a_row == 1
    metrics = run(target, rollout, targets)
    assert metrics["updates/skipped"] == 0 and target.guard.in_a_row == 0 and target.guard.total == 1
    assert distance(weights(policy), before) > 1e-4 and all(bool(w.isfinite().all()) for w in weights(policy))


def test_a_gradient_that_is_not_finite_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = moved(generator())
    rollout, targets = draw(policy)
    before = weights(policy)
    handle = policy.trainable_parameters()[3].register_hook(lambda gradient: gradient * math.inf)
    metrics = run(updater(policy), rollout, targets)
    handle.remove()
    assert (
        metrics["updates/skipped"] == 1 and math.isfinite(metrics["loss"]) and not math.isfinite(metrics["grad_norm"])
    )
    assert same(weights(policy), before)


def test_it_gives_up_after_a_stated_number_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = moved(generator())
    rollout, targets = draw(policy)
    target = updater(policy, max_nonfinite=3)
    broken(policy, 3, monkeypatch)
    for _ in range(2):
        run(target, rollout, targets)
    with pytest.raises(FloatingPointError, match=r"3 updates in a row; lower the learning rate"):
        run(target, rollout, targets)


# -- adapters and low precision ----------------------------------------------------------------------------------------


def test_lora_trains_the_adapters_alone_and_its_reference_is_the_model_without() -> None:
    plain, policy = generator(), generator()
    policy.add_lora(rank=4, alpha=8.0, seed=2)
    policy.keep_reference()
    trained = {id(parameter) for parameter in policy.trainable_parameters()}
    frozen = [p for p in policy.model.parameters() if id(p) not in trained]
    before, base = weights(policy), [p.detach().clone() for p in frozen]
    rollout, targets = draw(policy)
    target = updater(policy)
    for _ in range(2):  # in the first update only the half of the adapters that is not behind a zero moves
        run(target, rollout, targets)
    assert same([p.detach() for p in frozen], base)
    assert all(not torch.equal(a, b) for a, b in zip(weights(policy), before, strict=True))
    with policy.reference(), torch.no_grad():
        reference = policy.token_logprobs(rollout, distribution="guided")
    with torch.no_grad():
        assert torch.allclose(reference, plain.token_logprobs(rollout, distribution="guided"), atol=1e-6)
        assert float((reference - policy.token_logprobs(rollout, distribution="guided")).abs().max()) > 1e-3
    metrics = run(target, rollout, targets)
    assert metrics["kl"] > 1e-6


def test_masters_gather_updates_that_bf16_would_lose() -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))  # the next bf16 number below 1 is 0.99609
    masters = MasterWeights([parameter])
    optimizer = torch.optim.AdamW(masters.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(1, 7):
        masters.clear_gradients()
        (parameter.float().sum() * 2).backward()
        masters.add_gradients()
        optimizer.step()
        masters.write_back()
        assert torch.allclose(masters.values()[0], torch.full((3,), 1 - step * 1e-3), atol=1e-6)
        assert (parameter == 1).all() if step == 1 else True
    assert parameter.dtype == torch.bfloat16 and (parameter < 1).all()
    lost = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    direct = torch.optim.AdamW([lost], lr=1e-3, weight_decay=0.0)
    for _ in range(6):
        lost.grad = torch.full_like(lost, 2.0)
        direct.step()
    assert (lost == 1).all(), "without masters nothing moves"


def test_masters_add_the_gradients_of_micro_batches_in_fp32() -> None:
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    masters = MasterWeights([parameter])
    for share in (1.0, 2.0**-9, 2.0**-9):
        parameter.grad = torch.full_like(parameter, share)
        masters.add_gradients()
    assert float(masters.masters[0].grad) == 1 + 2.0**-8  # type: ignore[arg-type]
    masters.clear_gradients()
    assert masters.masters[0].grad is None
    whole = nn.Parameter(torch.ones(1))
    assert MasterWeights([whole]).masters[0] is whole, "fp32 is its own master"


def test_a_bf16_policy_is_trained() -> None:
    policy = generator()
    policy.model.to(torch.bfloat16)
    policy.keep_reference()
    rollout, targets = draw(policy)
    target = updater(policy, lr=1e-5, eps=1e-8)
    before, masters = weights(policy), [w.clone() for w in target.weights.values()]
    metrics = run(target, rollout, targets)
    steps = [float((a - b).abs().max()) for a, b in zip(target.weights.values(), masters, strict=True)]
    assert max(steps) > 1e-6 and all(w.dtype == torch.bfloat16 for w in weights(policy))
    assert metrics["ratio_max"] == 1.0, "bf16 drift is no ratio"
    large = [
        (a == b)[a.abs() > 0.1].float().mean()
        for a, b in zip(weights(policy), before, strict=True)
        if (a.abs() > 0.1).any()
    ]
    assert min(large) > 0.9, "a step of 1e-5 is below bf16's resolution there"
    for _ in range(3):
        run(target, rollout, targets)
    assert not same(weights(policy), before), "several of them add up in the masters, and reach the policy"
    assert same(weights(policy), [w.to(torch.bfloat16) for w in target.weights.values()])
    assert target.state_dict()["weights"][0].dtype == torch.float32
    other = updater(policy)
    other.load_state_dict(copy.deepcopy(target.state_dict()))
    assert same([w.clone() for w in other.weights.values()], [w.clone() for w in target.weights.values()])


def test_weights_of_another_shape_are_refused() -> None:
    target = updater(moved(generator()))
    state = target.state_dict()
    with pytest.raises(ValueError, match="generator and the LoRA rank that the run began with"):
        target.load_state_dict({**state, "weights": state["weights"][:-1]})


def test_a_micro_batch_without_a_score_has_no_say_in_a_mean() -> None:
    """The second half of the rows failed; the ratio of the others is 1."""
    policy = generator()
    rollout, targets = draw(policy, torch.tensor([0.1, 0.9, 0.4, 0.2, NAN, NAN, NAN, NAN]))
    metrics = run(
        updater(policy, algorithm=resolve("grpo", group_size=4, kl_coef=0.0), micro_batch=4, kl_every=0),
        rollout,
        targets,
    )
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
