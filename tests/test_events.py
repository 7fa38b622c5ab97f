"""Test training on events: all tokens together that the prompt favours as much as the sampled one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny_amused, training
from rewards import load
from t2i_gcpo.advantages import group_advantages
from t2i_gcpo.algorithms import TABLE, resolve, token_advantages
from t2i_gcpo.evaluation.credit_bias import THREE_TOKENS, TWO_TOKENS, bias, expected_gradient, group_gradients
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.generators.tokens.events import MOST_STEPS, _at_random_places, event_logprob, event_scores, same_event
from t2i_gcpo.generators.tokens.logprobs import token_logprob
from t2i_gcpo.records import Events, Prompt, Rollout, Sampling, ScoredRollout
from t2i_gcpo.training.rollout import collect
from t2i_gcpo.training.rule_gradients import rule_gradients

WIDE = Events(1e6)
PROMPTS = ["a red circle", "a blue square"]


# -- the event of a token ----------------------------------------------------------------------------------------------


def test_a_token_and_those_that_the_prompt_favours_alike_are_one_event_by_hand() -> None:
    """The prompt makes the first code twice as likely, halves the last, and leaves the two in between as they were."""
    positive = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    negative = torch.tensor([0.2, 0.3, 0.3, 0.2]).log()  # contrasts of ln 2, 0, ln (2 / 3), -ln 2
    same = same_event(positive.expand(4, 4), negative.expand(4, 4), positive, torch.arange(4), Events(1.0))
    # In steps of 1 nat: 0.69 -> 1, 0 -> 0, -0.41 -> 0, -0.69 -> -1.
    assert same.int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    found = event_logprob(positive.expand(4, 4), same)
    assert found.exp().tolist() == pytest.approx([0.4, 0.5, 0.5, 0.1])


def test_the_gradient_is_what_the_event_has_above_the_whole() -> None:
    probability = torch.tensor([0.4, 0.3, 0.2, 0.1])
    logits = probability.log().requires_grad_()
    event_logprob(logits, torch.tensor([False, True, True, False])).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([-0.4, 0.6 - 0.3, 0.4 - 0.2, -0.1])


def test_logits_may_have_any_offset() -> None:
    torch.manual_seed(0)
    positive, negative, tokens = torch.randn(5, 7), torch.randn(5, 7), torch.randint(7, (5,))
    plain = same_event(positive, negative, positive, tokens, Events(0.5))
    assert torch.equal(same_event(positive + 3, negative - 40, positive, tokens, Events(0.5)), plain)


@pytest.mark.parametrize("negative_given", [False, True])
@pytest.mark.parametrize("options", [{}, {"guidance": 2.0, "temperature": 0.7}, {"guidance": 1.5, "top_k": 4}])
def test_scores_are_those_of_a_slow_loop_whatever_the_chunk(options: dict[str, Any], negative_given: bool) -> None:
    torch.manual_seed(0)
    hidden, null, against = torch.randn(3, 4, 6).double(), torch.randn(3, 4, 6).double(), torch.randn(3, 4, 6).double()
    weight, tokens = torch.randn(9, 6).double(), torch.randint(9, (3, 4))
    leaf = weight.clone().requires_grad_()
    given: dict[str, Any] = {"unconditional": null, "negative": against if negative_given else None}
    found = [
        event_scores(hidden, lambda x: x @ leaf.T, tokens, events=Events(0.8), chunk=chunk, **given, **options)
        for chunk in (1, 5, 100)
    ]
    for b in range(3):
        for t in range(4):
            positive, other = weight @ hidden[b, t], weight @ null[b, t]
            contrasted = weight @ against[b, t] if negative_given else other
            steps = [round(float(d) / 0.8) for d in positive.log_softmax(dim=0) - contrasted.log_softmax(dim=0)]
            guidance = options.get("guidance", 1.0)
            mixed = (other + guidance * (positive - other)) / options.get("temperature", 1.0)
            if "top_k" in options:
                least = mixed.topk(options["top_k"]).values[-1]
                mixed = torch.where((mixed >= least) | (torch.arange(9) == tokens[b, t]), mixed, -torch.inf)
            chance = mixed.softmax(dim=0)
            total = sum(float(chance[v]) for v in range(9) if steps[v] == steps[int(tokens[b, t])])
            assert float(found[0].event[b, t].detach().exp()) == pytest.approx(total, rel=1e-5)
    own = token_logprob(
        hidden, lambda x: x @ weight.T, tokens, unconditional=null if "guidance" in options else None, **options
    )
    gradients = [torch.autograd.grad((one.event * torch.arange(12).view(3, 4)).sum(), leaf)[0] for one in found]
    for one, gradient in zip(found, gradients, strict=True):
        torch.testing.assert_close(one.token, own, check_dtype=False)
        torch.testing.assert_close(one.event, found[0].event)
        torch.testing.assert_close(gradient, gradients[0])
    assert (found[0].event >= found[0].token - 1e-6).all() and (found[0].event <= 1e-6).all()
    assert (found[0].event > found[0].token + 1e-3).any() and (found[0].event < -1e-3).any()


def test_events_of_no_width_are_the_tokens_and_very_wide_ones_have_no_gradient() -> None:
    torch.manual_seed(0)
    hidden, null, weight = torch.randn(8, 6), torch.randn(8, 6), torch.randn(9, 6, requires_grad=True)
    tokens = torch.randint(9, (8,))

    def scores(width: float) -> Tensor:
        return event_scores(hidden, lambda x: x @ weight.T, tokens, events=Events(width), unconditional=null).event

    torch.testing.assert_close(scores(1e-5), token_logprob(hidden, lambda x: x @ weight.T, tokens))
    whole = scores(1e6)
    assert whole.abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(whole.sum(), weight)
    assert gradient.abs().max() < 1e-5


def test_the_control_gives_each_token_the_contrast_of_another_code_by_the_seed() -> None:
    torch.manual_seed(0)
    positive, negative, tokens = torch.randn(50, 30), torch.randn(50, 30), torch.randint(30, (50,))
    plain = same_event(positive, negative, positive, tokens, Events(1.0))
    first, again, other = (
        same_event(positive, negative, positive, tokens, Events(1.0, "shuffled"), seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, plain)
    assert first.gather(1, tokens[:, None]).all()
    every = [
        same_event(*(logits[:1].expand(30, -1) for logits in (positive, negative, positive)), torch.arange(30), one)
        for one in (Events(1.0), Events(1.0, "shuffled"))
    ]
    assert sorted(every[0].sum(1)) == sorted(every[1].sum(1)), "as many events, of as many codes"


def test_the_matched_control_by_hand() -> None:
    """Codes of 0.4, 0.3, 0.2 and 0.1 in the order of their steps, and in the order 3, 1, 0, 2."""
    probability, step = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([-2.0, 0.0, 1.0, 3.0])
    order = torch.tensor([3, 1, 0, 2])  # the middles lie at 0.05, 0.25, 0.6 and 0.9
    found = _at_random_places(step[None], probability[None], order) - MOST_STEPS
    # By their steps the codes end at 0.4, 0.7, 0.9 and 1.
    assert found.tolist() == [[0, -2, 1, -2]]


def test_logits_that_are_not_finite_make_no_crash_of_the_matched_control() -> None:
    """The run is to end with a sentence of its own (`Updater.check_usable`)."""
    broken = torch.tensor([[0.0, torch.nan, 1.0], [0.0, -torch.inf, 1.0]])
    same = same_event(broken, torch.zeros(2, 3), broken, torch.tensor([0, 2]), Events(1.0, "matched"))
    assert same.shape == (2, 3) and same[0, 0] and same[1, 2]
    with pytest.raises(ValueError, match="codes of events are 'mached'"):
        Events(1.0, "mached")  # type: ignore[arg-type]


def test_the_matched_control_s_events_are_as_probable_and_mean_nothing() -> None:
    torch.manual_seed(0)
    negative = torch.randn(40, 2000)
    contrast = torch.where(negative > 1.0, 2.0, 0.0)  # of the likely codes: two events of about 0.8 and 0.2
    positive = negative + contrast
    tokens = positive.softmax(dim=-1).multinomial(1).squeeze(1)
    own, matched, shuffled = (
        same_event(positive, negative, positive, tokens, Events(1.0, codes), seed=3)
        for codes in ("own", "matched", "shuffled")
    )

    def masses(codes: str) -> Tensor:
        """Return the probabilities of the first row's two events, the larger first."""
        rows = (logits[:1].expand(2000, -1) for logits in (positive, negative, positive))
        events = Events(1.0, codes)  # type: ignore[arg-type]
        every = event_logprob(positive[:1].expand(2000, -1), same_event(*rows, torch.arange(2000), events, seed=3))
        return torch.stack([every.exp().max(), every.exp().min()])

    torch.testing.assert_close(masses("matched"), masses("own"), atol=0.01, rtol=0.0)
    assert (masses("shuffled") - masses("own")).abs().min() > 0.1
    assert not torch.equal(own, matched) and not torch.equal(shuffled, matched)
    inside = [(positive.softmax(dim=-1) * one) for one in (own, matched)]
    means = [(one * contrast).sum(dim=-1) / one.sum(dim=-1) for one in inside]
    assert means[0].var() > 10 * means[1].var(), "the mean contrast of an event says nothing in the control"


def test_no_branch_to_contrast_with_is_an_error() -> None:
    with pytest.raises(ValueError, match="negative prompt"):
        event_scores(torch.zeros(2, 3), lambda x: x, torch.zeros(2, dtype=torch.long), events=WIDE)
    with pytest.raises(ValueError, match="above 0 nats"):
        Events(0.0)


# -- what it does to the expected gradient -----------------------------------------------------------------------------


@pytest.mark.parametrize("world", [TWO_TOKENS, THREE_TOKENS])
def test_tokens_without_influence_have_no_gradient_at_all_and_the_deciding_one_has_grpo_s(world: Any) -> None:
    """The contrasts of the deciding token are 0.92, 0 and -0.92; those of the second are within half a nat of 0."""
    rule = TABLE["gcpo_events"]
    for alone in (False, True):
        gradient, grpo = (expected_gradient(one, world, alone=alone) for one in (rule, TABLE["grpo"]))
        assert bias(gradient) < 1e-6
        torch.testing.assert_close(gradient[0], grpo[0], atol=1e-6, rtol=1e-5)
    each, of_grpo = group_gradients(rule, world), group_gradients(TABLE["grpo"], world)
    assert each[:, 1].abs().max() < 1e-6 < 0.1 < of_grpo[:, 1].abs().max(), "not in any group, where grpo has noise"


def test_a_width_that_joins_what_the_reward_tells_apart_loses_that_part_of_the_gradient() -> None:
    gradient = expected_gradient(replace(TABLE["gcpo_events"], event_width=10.0))
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize(("width", "kept"), [(1.0, 0.0), (0.5, 0.0), (0.25, 1.0), (0.1, 1.0)])
def test_a_prompt_that_decides_by_less_than_the_width_is_not_learnt_from(width: float, kept: float) -> None:
    """The deciding token's contrasts are +0.22, -0.15 and -0.22."""
    faint = torch.tensor([0.5, 0.3, 0.2]) * torch.tensor([-0.22, 0.15, 0.22]).exp()
    world = replace(TWO_TOKENS, negative=(faint / faint.sum(), TWO_TOKENS.negative[1]))
    rule, grpo = replace(TABLE["gcpo_events"], event_width=width), TABLE["grpo"]
    deciding, of_grpo = (expected_gradient(one, world)[0] for one in (rule, grpo))
    assert float(deciding.norm() / of_grpo.norm()) == pytest.approx(kept, abs=0.02)


def test_the_matched_control_leaves_the_deciding_token_less_and_the_other_none() -> None:
    """Its events join codes at random, so it keeps of what decides what chance keeps; it is never biased either."""
    matched, grpo = (expected_gradient(TABLE[name], repeats=60) for name in ("gcpo_events_matched", "grpo"))
    assert matched[1].abs().max() < 1e-6 and 0.05 < float(matched[0].norm() / grpo[0].norm()) < 0.95


@pytest.mark.parametrize(("chance", "lower"), [(0.9, False), (0.1, True)])
def test_the_variance_of_the_sum_may_go_either_way(chance: float, lower: bool) -> None:
    """Two tokens, one parameter: the first is one event and decides nothing; the second, which is the reward, moves
    with the parameter up after one code of the first and down after the other."""
    tokens = torch.tensor([(a, b) for a in (0, 1) for b in (0, 1)])
    probability = torch.where(tokens[:, 1] == 1, chance, 1 - chance) / 2
    sign = 1.0 - 2.0 * tokens[:, 0]
    second = 4 * sign * (tokens[:, 1] - chance)  # d log p(x2 | x1) / d theta
    groups = torch.cartesian_prod(*[torch.arange(4)] * 4)
    weight = probability[groups].prod(dim=1)
    advantages = group_advantages(tokens[groups, 1].float().flatten(), 4).view_as(groups)
    spread = []
    logits = torch.zeros(4, 2, requires_grad=True)
    event_logprob(logits, torch.ones(4, 2, dtype=torch.bool)).sum().backward()
    assert logits.grad is not None
    of_event = logits.grad.gather(1, tokens[:, :1]).squeeze(1)
    for first in (0.5 * sign, of_event):  # the token's own score, and that of its event
        gradient = (advantages * (first + second)[groups]).mean(dim=1)
        assert abs(float((weight * gradient).sum())) < 1e-6
        spread.append(float((weight * gradient.square()).sum()))
    assert (spread[1] < spread[0]) is lower


# -- generators --------------------------------------------------------------------------------------------------------


def amused(policy: str = "commit_step", **options: Any) -> Amused:
    return Amused(tiny_amused.parts(), compile=False, masked_policy=policy, **options)


def drawn(generator: Any, **options: Any) -> Rollout:
    return generator.sample(PROMPTS, Sampling(group_size=2, guidance=2.0, seed=1), **options)


@pytest.mark.parametrize("make", [training.generator, amused])
@pytest.mark.parametrize("distribution", ["guided", "conditional", "guided_detached"])
@pytest.mark.parametrize("negative", [None, "a green circle"])
def test_a_generator_scores_events_of_its_own_contrast(make: Any, distribution: Any, negative: str | None) -> None:
    generator = make()
    rollout = drawn(generator, negative_prompts=negative)
    whole = generator.training_scores(rollout, distribution=distribution)
    narrow, events, wide = (
        generator.training_scores(rollout, distribution=distribution, events=Events(width))
        for width in (1e-5, 1.0, 1e6)
    )
    torch.testing.assert_close(narrow.logprob, whole.logprob, atol=1e-5, rtol=1e-4)
    assert wide.logprob.abs().max() < 1e-5
    assert (events.logprob >= whole.logprob - 1e-5).all() and (events.logprob > whole.logprob + 1e-3).any()
    for one in (narrow, events, wide):
        torch.testing.assert_close(one.own, whole.own, atol=1e-5, rtol=1e-4)
    # Another prompt to contrast with makes other events.
    other = drawn(generator, negative_prompts="a blue circle")
    assert torch.equal(other.tokens, rollout.tokens)
    changed = generator.training_scores(other, distribution=distribution, events=Events(1.0)).logprob
    assert not torch.allclose(changed, events.logprob, atol=1e-3)


@pytest.mark.parametrize("make", [training.generator, amused])
@pytest.mark.parametrize("negative", [None, "a green circle"])
def test_the_surprisal_of_an_event_that_sampling_records_is_what_training_scores(
    make: Any, negative: str | None
) -> None:
    generator = make()
    sampling = Sampling(group_size=2, guidance=2.0, seed=1, stats=("event",))
    rollout = generator.sample(PROMPTS, sampling, negative_prompts=negative)
    scores = generator.training_scores(rollout, distribution="guided", events=Events())
    torch.testing.assert_close(-rollout.stats["event"], scores.logprob.detach(), atol=1e-4, rtol=1e-4)
    assert (rollout.stats["event"] <= -rollout.logprob_behaviour + 1e-5).all() and rollout.stats["event"].max() > 0.01


@pytest.mark.parametrize("make", [training.generator, amused])
def test_rows_have_the_events_that_they_have_in_the_whole(make: Any) -> None:
    generator = make()
    rollout = drawn(generator)
    for events in (Events(1.0), Events(1.0, "shuffled"), Events(1.0, "matched")):
        whole = generator.training_scores(rollout, distribution="guided", events=events).logprob
        parts = [
            generator.training_scores(rollout.rows(torch.tensor([row])), distribution="guided", events=events).logprob
            for row in range(rollout.batch)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-4)


def test_folded_passes_score_events_as_single_ones() -> None:
    single, folded = amused(), amused(fold_passes=True, gradient_checkpointing=False)
    rollout = drawn(single, negative_prompts="a green circle")
    a, b = (one.training_scores(rollout, distribution="guided", events=Events(1.0)) for one in (single, folded))
    torch.testing.assert_close(a.logprob, b.logprob, atol=1e-5, rtol=1e-4)


def test_a_likelihood_of_whole_steps_has_no_events() -> None:
    generator = amused("transition")
    with pytest.raises(ValueError, match="commit_step"):
        generator.training_scores(drawn(generator), events=WIDE)


def test_a_run_without_events_ends_before_anything_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = amused("transition")
    monkeypatch.setattr(generator, "sample", None)
    with pytest.raises(ValueError, match="commit_step"):
        training.trainer(tmp_path, policy=generator, name="gcpo_events").train()  # type: ignore[arg-type]


def test_a_generator_that_has_none_says_so() -> None:
    class Plain(Amused):
        def training_scores(self, rollout: Rollout, **options: Any) -> Any:
            return super(Amused, self).training_scores(rollout, **options)

        def check_events(self) -> None:
            super(Amused, self).check_events()

    generator = Plain(tiny_amused.parts(), compile=False)
    with pytest.raises(ValueError, match=r"Plain does not say .*event_width"):
        generator.training_scores(drawn(generator), events=WIDE)


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_raises_the_probability_of_what_was_rewarded_and_of_what_is_alike() -> None:
    """One step up the gradient: events with a positive advantage become likelier, those with a negative one less."""
    generator = training.generator()
    rule = resolve("gcpo_events", group_size=4, event_width=0.5, kl_coef=0.0)
    scored = collect(
        generator,
        load(f"{__name__}:redness"),
        [Prompt(text) for text in PROMPTS],
        Sampling(group_size=4, guidance=2.0, seed=3),
    )
    gradients = rule_gradients(generator, scored, {"events": rule})["events"]
    before = generator.training_scores(scored.rollout, distribution="guided", events=rule.events).logprob.detach()
    with torch.no_grad():
        for parameter, gradient in zip(generator.trainable_parameters(), gradients, strict=True):
            parameter.sub_(1e-3 * gradient / torch.cat([g.flatten() for g in gradients]).norm())
    after = generator.training_scores(scored.rollout, distribution="guided", events=rule.events).logprob.detach()
    advantages = token_advantages(rule, scored.rollout, scored.scores).advantages
    assert float((advantages * (after - before)).sum()) > 0


def test_rules_with_and_without_events_have_each_its_own_gradient_in_one_call() -> None:
    generator = training.generator()
    scored = collect(
        generator,
        load(f"{__name__}:redness"),
        [Prompt(text) for text in PROMPTS],
        Sampling(group_size=4, guidance=2.0, seed=3),
    )
    rules = {name: resolve(name, group_size=4) for name in ("grpo", "gcpo_events", "gcpo_events_matched", "dr_grpo")}
    together = rule_gradients(generator, scored, rules)
    for name, rule in rules.items():
        alone = rule_gradients(generator, scored, {name: rule})[name]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(together[name], alone, strict=True))
    assert not torch.allclose(together["gcpo_events"][0], together["grpo"][0])
    assert not torch.allclose(together["gcpo_events"][0], together["gcpo_events_matched"][0])


def test_events_of_no_width_train_as_grpo_does(tmp_path: Path) -> None:
    ends, drift = {}, {}
    for name, algorithm in {
        "grpo": resolve("grpo", group_size=4),
        "narrow": resolve("gcpo_events", group_size=4, event_width=1e-6),
        "middle": resolve("gcpo_events", group_size=4, event_width=0.5),
    }.items():
        policy = training.generator()
        training.trainer(tmp_path / name, policy=policy, algorithm=algorithm).train()
        ends[name] = training.weights(policy)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        drift[name] = max(row["logprob_drift_max"] for row in rows)
    assert training.distance(ends["narrow"], ends["grpo"]) < 1e-4
    assert training.distance(ends["middle"], ends["grpo"]) > 1e-3
    assert max(drift.values()) < 1e-4, "the tokens' own log-probs are compared with what sampling recorded"


@pytest.mark.parametrize("changes", [{"epochs": 2}, {"minibatches": 2}])
def test_a_rollout_serves_one_update(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"event_width is 1.0.*one update"):
        training.trainer(tmp_path, name="gcpo_events", **changes)


def test_what_does_not_go_with_events_is_refused() -> None:
    with pytest.raises(ValueError, match="importance_cap"):
        resolve("gcpo_events", importance_cap=2.0)
    with pytest.raises(ValueError, match="event_codes is matched"):
        resolve("grpo", event_codes="matched")
    with pytest.raises(ValueError, match="ratio_bound"):
        resolve("critical_tokens", event_width=1.0)
    with pytest.raises(ValueError, match="event_width is -1"):
        resolve("gcpo_events", event_width=-1.0)


def rewarded(generator: Janus) -> ScoredRollout:
    prompts = [Prompt(text) for text in PROMPTS]
    return collect(generator, load(f"{__name__}:redness"), prompts, Sampling(group_size=4, guidance=2.0, seed=3))


def redness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    return training.redness(images, prompts, metadata)
