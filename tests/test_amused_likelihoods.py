"""The masked policies on a tiny random model of the real classes.

Values, exactness, gradients, and training with each.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_amused import PROMPTS, all_trajectories, as_rollout, close, sampling
from torch import Tensor

from helpers import tiny, tiny_amused, training
from helpers.messages import names
from t2i_gcpo import generators
from t2i_gcpo.bench.measure import peak_bytes
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.config import GeneratorConfig
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.amused.likelihoods import LIKELIHOODS, plan, step_gain
from t2i_gcpo.generators.tokens.sampling import behaviour_logits
from t2i_gcpo.generators.tokens.unmasking import state
from t2i_gcpo.records import Rollout, Sampling, Unmasking

NAMES = tuple(LIKELIHOODS)


@pytest.fixture(scope="module")
def made() -> dict[str, Amused]:
    """A generator for each policy, all with the same weights. Not to be trained."""
    return {name: tiny_amused.generator(masked_policy=name) for name in NAMES}


def logits_at(generator: Amused, states: Tensor, text: str) -> Tensor:
    """[T, V], from the modules alone."""
    ids = generator.parts.tokenizer(text, padding="max_length", max_length=12, return_tensors="pt").input_ids
    encoded = generator.parts.text_encoder(ids, output_hidden_states=True)
    with torch.no_grad():
        found = generator.parts.transformer(
            states.view(1, *generator.grid),
            encoder_hidden_states=encoded.hidden_states[-2],
            pooled_text_emb=encoded.text_embeds,
            micro_conds=torch.tensor([[2.0 * generator.grid[1], 2.0 * generator.grid[0], 0.0, 0.0, 6.0]]),
        )
    return found[0].flatten(1).T


# -- values ----------------------------------------------------------------------------------------------------------


def test_sampling_and_contrast_are_the_same_under_every_policy(made: dict[str, Amused]) -> None:
    plain = made["commit_step"].sample(PROMPTS, sampling())
    for name in NAMES:
        other = made[name].sample(PROMPTS, sampling())
        assert torch.equal(other.tokens, plain.tokens) and torch.equal(other.commit_step, plain.commit_step)
        assert torch.equal(other.logprob_positive, plain.logprob_positive)
        assert other.logprob_negative is not None and torch.equal(other.logprob_negative, plain.logprob_negative)  # type: ignore[arg-type]
        with torch.no_grad():
            assert close(made[name].token_logprobs(other), plain.logprob_positive)
    found = made["commit_step"].training_scores(plain, distribution="guided")
    assert found.scale is None and close(found.logprob, plain.logprob_behaviour)


@pytest.mark.parametrize("distribution", ["conditional", "guided"])
def test_transitions_are_those_of_a_slow_loop(made: dict[str, Amused], distribution: Any) -> None:
    """Both definitions, from the modules' own logits; one image of each of two prompts."""
    plain, with_remainder = made["transition"], made["transition_remask"]
    rollout = plain.sample(PROMPTS, sampling(group_size=1))
    with torch.no_grad():
        found, scale, own = plain.training_scores(rollout, distribution=distribution)
        whole, _, too = with_remainder.training_scores(rollout, distribution=distribution)
        alone = made["commit_step"].training_scores(rollout, distribution=distribution).logprob
    assert scale is not None and own is not None and too is not None
    assert close(own, alone) and close(too, alone), "the KL is that of the tokens whatever the ratio is of"
    for row, text in enumerate(PROMPTS):
        commit, tokens = rollout.commit_step[row], rollout.tokens[row]
        for step in range(5):
            seen = torch.where(commit < step, tokens, 32)
            logits = logits_at(plain, seen, text)
            if distribution == "guided":
                logits = behaviour_logits(logits, logits_at(plain, seen, ""), guidance=2.0)
            p = logits.double().softmax(-1)
            new = [t for t in range(16) if int(commit[t]) == step]
            chosen = [float(p[t, tokens[t]].log()) for t in new]
            least = min(float(p[t, tokens[t]]) for t in new)
            left = 0.0
            for t in range(16):
                if int(commit[t]) > step:
                    left += float(p[t][p[t] < least].sum().clamp(min=1e-20).log())
            for t in new:
                assert float(found[row, t]) == pytest.approx(sum(chosen), abs=1e-4)
                assert float(whole[row, t]) == pytest.approx(sum(chosen) + left, abs=1e-3)
                assert float(scale[row, t]) == pytest.approx(16 / (5 * len(new)))
            assert step == 4 or left < -1e-3, "no remainder to see"


@pytest.mark.parametrize("name", ["remask", "key_steps"])
def test_remasked_log_probs_are_those_of_a_slow_loop(made: dict[str, Amused], name: str) -> None:
    generator = made[name]
    rollout = generator.sample(PROMPTS, sampling(group_size=1))
    with torch.no_grad():
        found, scale, _ = generator.training_scores(rollout, distribution="guided")
    row, steps = LIKELIHOODS[name], 5
    gain = None
    if name == "key_steps":
        gain = torch.stack(
            [
                torch.stack([rollout.stats["step_gain"][b][rollout.commit_step[b] == k][0] for k in range(steps)])
                for b in range(2)
            ]
        )
    asked = plan(row, rollout.commit_step, steps=steps, count=5, generator=torch.Generator().manual_seed(4), gain=gain)
    assert scale is not None and close(scale, asked.scale)
    for b, text in enumerate(PROMPTS):
        expected = torch.zeros(16)
        for item in asked.passes:
            seen = torch.where(item.visible[b], rollout.tokens[b], 32)
            logits = behaviour_logits(
                logits_at(generator, seen, text), logits_at(generator, seen, ""), guidance=2.0
            ).log_softmax(-1)
            for t in range(16):
                if item.target[b, t]:
                    expected[t] += float(item.share[b, t]) * float(logits[t, rollout.tokens[b, t]])
        assert close(found[b], expected, 1e-4)
    assert float((found - rollout.logprob_behaviour).abs().max()) > 0.05, "the trajectory's log-probs would do as well"


def test_the_gain_is_recorded_from_the_candidates_of_all_steps(made: dict[str, Amused]) -> None:
    """The same noise again, through the sampler's own loop of states.

    Each step's whole prediction, from the modules' logits.
    """
    from t2i_gcpo.generators.tokens.sampling import draw, row_noise

    generator = made["key_steps"]
    rollout = generator.sample(PROMPTS[:1], sampling(group_size=1, guidance=1.0))
    noise = row_noise(4, [(0, 0)], 2 * 5 * 16).view(5, 2, 16)
    predictions = []
    for step in range(5):
        seen = state(rollout.tokens, rollout.commit_step, step, 32)
        candidates = draw(logits_at(generator, seen[0], PROMPTS[0]), noise[step, 0])
        predictions.append(torch.where(rollout.commit_step < step, rollout.tokens, candidates))
    assert torch.equal(predictions[-1], rollout.tokens)
    gain = step_gain(torch.stack(predictions), generator.parts.vqvae.quantize.embedding.weight)
    assert close(rollout.stats["step_gain"], gain.gather(1, rollout.commit_step))
    assert len(rollout.stats["step_gain"].unique()) == 5


# -- exactness -------------------------------------------------------------------------------------------------------


def test_transition_with_remainder_is_exact_without_noise_on_the_confidence() -> None:
    """The trajectories' probabilities add up to 1 whatever the weights, so their gradients to 0.

    And sampling has the mean they say.
    """
    small = tiny_amused.generator(grid=2, codebook=3, width=16, masked_policy="transition_remask")
    how = sampling(unmasking=Unmasking(steps=4, schedule="linear", temperature=0.0), guidance=2.0)
    tokens, commit = all_trajectories()
    weight = small.parts.transformer.mlm_layer.conv2.weight
    rollout = as_rollout(tokens, commit, how)
    # One token a step: each token's value is its step's log-prob.
    logprob = small.training_scores(rollout, distribution="guided").logprob.sum(dim=1)
    total = logprob.exp().sum()
    assert float(total.detach()) == pytest.approx(1.0, abs=1e-4)
    value = (tokens.float() * torch.tensor([1.0, -2.0, 0.5, 1.5])).sum(dim=1).sin()
    zero, one = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (total, (logprob.exp() * value).sum()))
    assert float(zero.norm()) < 1e-3 * float(one.norm())
    expected, count = float((logprob.detach().exp() * value).sum()), 1500
    drawn = small.sample([PROMPTS[0]], replace(how, group_size=count))
    reward = (drawn.tokens.float() * torch.tensor([1.0, -2.0, 0.5, 1.5])).sum(dim=1).sin()
    error = float(reward.std()) / count**0.5
    assert abs(float(reward.mean()) - expected) < 5 * error
    # Without the remainder the same sum is not a probability.
    small.scorer.likelihood = LIKELIHOODS["transition"]
    with torch.no_grad():
        bare = small.training_scores(rollout, distribution="guided").logprob.sum(dim=1).exp().sum()
    assert float(bare) > 2


# -- gradients -------------------------------------------------------------------------------------------------------


def gradients(generator: Amused, rollout: Rollout) -> list[Tensor]:
    found, scale, _ = generator.training_scores(rollout, distribution="guided")
    loss = (found * (1.0 if scale is None else scale) * torch.linspace(-1, 1, 16)).sum()
    parameters = generator.trainable_parameters()
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
    ]


def same(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-4) -> bool:
    return all(close(x, y, tolerance * (1 + float(y.abs().max()))) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_passes_in_one_batch_or_one_by_one_give_the_same(made: dict[str, Amused], name: str) -> None:
    one_by_one = made[name]
    rollout = one_by_one.sample(PROMPTS, sampling(group_size=1))
    batch = tiny_amused.generator(masked_policy=name, fold_passes=True, gradient_checkpointing=False)
    a, b = (g.training_scores(rollout, distribution="guided") for g in (one_by_one, batch))
    assert close(a.logprob, b.logprob, 1e-4)
    assert same(gradients(one_by_one, rollout), gradients(batch, rollout))


@pytest.mark.parametrize("name", ["commit_step", "transition"])
def test_random_steps_have_the_full_gradient_on_average(name: str) -> None:
    """Over all pairs of four steps; a seed that draws each pair is looked for."""
    plan_of_4 = Unmasking(steps=4)
    full = tiny_amused.generator(masked_policy=name)
    some = tiny_amused.generator(masked_policy=name, masked_passes=2)
    rollout = full.sample(PROMPTS, sampling(unmasking=plan_of_4, group_size=1))
    seeds: dict[tuple[int, ...], int] = {}
    for seed in range(200):
        rng = torch.Generator().manual_seed(seed)
        drawn = plan(LIKELIHOODS[name], rollout.commit_step, steps=4, count=2, generator=rng)
        seeds.setdefault(tuple(int(rollout.commit_step[0][item.target[0]][0]) for item in drawn.passes), seed)
    assert sorted(seeds) == list(itertools.combinations(range(4), 2))
    parts = [
        gradients(some, replace(rollout, sampling=replace(rollout.sampling, seed=seed))) for seed in seeds.values()
    ]
    mean = [torch.stack(column).mean(dim=0) for column in zip(*parts, strict=True)]
    whole = gradients(full, rollout)
    assert same(mean, whole)
    assert not same(parts[0], whole, 1e-2), "any two steps would do"


@pytest.mark.parametrize("name", NAMES)
def test_training_raises_what_it_rewards(name: str) -> None:
    policy = tiny_amused.generator(masked_policy=name)
    rollout = policy.sample(PROMPTS, sampling(group_size=1))

    def objective() -> Tensor:
        found, scale, _ = policy.training_scores(rollout, distribution="guided")
        return (found if scale is None else found * scale).mean()

    before = objective()
    before.neg().backward()
    torch.optim.SGD(policy.trainable_parameters(), lr=1e-4).step()
    assert float(objective().detach()) > float(before.detach())


@pytest.mark.parametrize(("checkpointing", "most", "least"), [(True, 1.3, 0.0), (False, 20.0, 5.0)])
def test_activations_of_one_pass_at_a_time(checkpointing: bool, most: float, least: float) -> None:
    """Peak bytes of a forward and backward pass at 12 steps against 1 step; without checkpointing all 12 are held."""
    policy = tiny_amused.generator(gradient_checkpointing=checkpointing)
    peaks = []
    for steps in (1, 12):
        rollout = policy.sample(PROMPTS, sampling(group_size=8, unmasking=Unmasking(steps=steps)))

        def side(rollout: Rollout = rollout) -> object:
            scores = policy.training_scores(rollout).logprob.sum()
            return torch.autograd.grad(scores, policy.trainable_parameters(), allow_unused=True)

        side()
        peaks.append(peak_bytes(side, torch.device("cpu")))
    assert least < peaks[1] / peaks[0] < most


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_ratio_is_1_on_policy_and_rows_do_not_depend_on_the_batch(made: dict[str, Amused], name: str) -> None:
    rollout = made[name].sample(PROMPTS, sampling())
    first, second = (made[name].training_scores(rollout, distribution="guided") for _ in range(2))
    assert torch.equal((first.logprob - second.logprob).exp(), torch.ones(6, 16))
    parts = [made[name].training_scores(rollout.rows(part), distribution="guided") for part in torch.arange(6).split(4)]
    assert close(torch.cat([part.logprob for part in parts]), first.logprob, 1e-4)
    if first.scale is not None:
        assert torch.equal(torch.cat([part.scale for part in parts if part.scale is not None]), first.scale)


@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_trains_every_policy(name: str, tmp_path: Path) -> None:
    """Two passes over a rollout: the first one's ratio is 1, so the old log-probs are those of the same states."""
    records = []
    how = Sampling(guidance=2.0, unmasking=Unmasking(steps=4))
    policy = tiny_amused.generator(masked_policy=name, masked_passes=3)
    run = training.trainer(
        tmp_path,
        policy=policy,
        sampling=how,
        steps=1,
        epochs=2,  # type: ignore[arg-type]
        callbacks=[lambda trainer, record: records.append(record)],
    )
    before = training.weights(policy)  # type: ignore[arg-type]
    real = run.updater._accumulate
    ratios: list[float] = []

    def accumulate(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        metrics = real(*args, **kwargs)
        ratios.append(float(metrics["ratio_max"]))
        return metrics

    run.updater._accumulate = accumulate  # type: ignore[method-assign]
    run.train()
    assert ratios[0] == pytest.approx(1.0, abs=1e-4) and ratios[1] != pytest.approx(1.0, abs=1e-4)
    assert training.distance(before, training.weights(policy)) > 1e-3  # type: ignore[arg-type]
    assert records[0].metrics["kl"] > 0
    assert "logprob_drift" not in records[0].metrics, "sampling recorded other log-probs than those trained"


def test_the_kl_of_a_transition_is_that_of_its_tokens(tmp_path: Path) -> None:
    """A step's log-prob moves by tens of nats, of which k3 takes the exponent; its tokens' do not."""
    how = Sampling(guidance=2.0, unmasking=Unmasking(steps=4, temperature=6.0))
    found = {}
    for name in ("commit_step", "transition_remask"):
        policy = tiny_amused.generator(masked_policy=name)
        run = training.trainer(tmp_path / name, policy=policy, sampling=how, steps=1)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in policy.trainable_parameters():
                parameter.mul_(1.5)  # far from the reference
        record = run.step()
        assert record.scored is not None
        with torch.no_grad():
            scores = policy.training_scores(record.scored.rollout, distribution="guided")
            with policy.reference():
                reference = policy.training_scores(record.scored.rollout, distribution="guided")
        assert name == "commit_step" or float((reference.logprob - scores.logprob).max()) > 10
        found[name] = record.metrics["kl"], record.metrics["kl_k1"]
    assert found["transition_remask"] == pytest.approx(found["commit_step"], rel=1e-3)


def test_factors_reach_the_loss_and_the_metrics(tmp_path: Path) -> None:
    """With one of four steps a token in four is scored: the metrics are of those alone."""
    policy = tiny_amused.generator(masked_passes=1)
    run = training.trainer(
        tmp_path, policy=policy, sampling=Sampling(guidance=2.0, unmasking=Unmasking(steps=4)), steps=1
    )  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.1)  # away from the reference
    record = run.step()
    assert record.scored is not None and record.targets is not None
    rollout = record.scored.rollout
    rng = torch.Generator().manual_seed(rollout.sampling.seed)
    asked = plan(LIKELIHOODS["commit_step"], rollout.commit_step, steps=4, count=1, generator=rng)
    sizes = (asked.scale > 0).sum(dim=1)
    assert 0 < int(sizes[0]) < 16 and asked.scale.max() == 4
    assert record.metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    values = -(record.targets.advantages * asked.scale).mean()
    assert record.metrics["policy_loss"] == pytest.approx(float(values), abs=1e-5)
    assert record.metrics["kl"] > 0


def test_metrics_do_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    """Each image has key steps of its own, so that the rows differ in how many tokens are scored.

    Each of these counts once.
    """
    found = []
    for size in (1, 16):
        policy = tiny_amused.generator(masked_policy="key_steps", masked_passes=1)
        how = Sampling(guidance=2.0, unmasking=Unmasking(steps=4))
        run = training.trainer(tmp_path / str(size), policy=policy, sampling=how, steps=1, micro_batch=size)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in policy.trainable_parameters():
                parameter.mul_(1.1)  # away from the reference
        record = run.step()
        assert record.scored is not None
        scale = policy.training_scores(record.scored.rollout, distribution="guided").scale
        assert scale is not None and len((scale > 0).sum(dim=1).unique()) > 1
        found.append({name: record.metrics[name] for name in ("kl", "kl_k1", "ratio_mean", "policy_loss")})
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_mistakes_are_named(made: dict[str, Amused], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=names("'grpo'", "commit_step", "transition_r")):
        tiny_amused.generator(masked_policy="grpo")
    with pytest.raises(ValueError, match="order is 'random'"):
        made["transition_remask"].sample(PROMPTS, sampling(unmasking=Unmasking(steps=5, order="random")))
    with pytest.raises(ValueError, match="masked_passes is 9, but there are 5 sampling steps"):
        tiny_amused.generator(masked_passes=9).sample(PROMPTS, sampling())
    plain = made["commit_step"].sample(PROMPTS, sampling())
    with pytest.raises(ValueError, match=names("key_steps", "'step_gain'")):
        made["key_steps"].training_scores(plain)
    with pytest.raises(ValueError, match="masked_passes is -1; it must be at least 0"):
        GeneratorConfig(masked_passes=-1)
    with pytest.raises(ValueError, match=names("fold_passes", "gradient_checkpointing")):
        tiny_amused.generator(fold_passes=True, gradient_checkpointing=True)
    janus = tiny.checkpoint(tmp_path / "janus")
    with pytest.raises(
        ValueError, match=r"generator.masked_policy: for masked generators, and .* is a janus checkpoint"
    ):
        build.generator(GeneratorConfig(checkpoint=str(janus), masked_policy="remask", device="cpu"), seed=0)
    with pytest.raises(ValueError, match=r"generator.fold_passes: for masked generators"):
        generators.load(str(janus), fold_passes=True)
    masked = tiny_amused.checkpoint(tmp_path / "amused")
    options = GeneratorConfig(checkpoint=str(masked), masked_policy="remask", masked_passes=2, fold_passes=True)
    loaded = build.generator(replace(options, device="cpu"), seed=0)
    assert isinstance(loaded, Amused)
    assert (loaded.likelihood.name, loaded.masked_passes, loaded.scorer.fold_passes) == ("remask", 2, True)
