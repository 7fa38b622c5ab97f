"""Prompts to scored images, and DAPO's dynamic sampling: what is drawn, kept, discarded and counted."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.fake_generator import FakeGenerator, token_score
from rewards.base import Reward, RewardOutput
from rewards.function import as_reward
from t2i_gcpo.records import Prompt, Sampling, ScoredRollout
from t2i_gcpo.training.rollout import Collected, collect, collect_informative, diversity

PROMPTS = [Prompt(f"prompt {p}", {"k": p}) for p in range(40)]
TWO = Sampling(group_size=2, seed=1)


def test_each_image_is_scored_with_its_own_prompt() -> None:
    seen: dict[str, Any] = {}

    def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        seen.update(images=images, prompts=prompts, keys=[row["k"] for row in metadata])
        return torch.arange(len(images))

    generator = FakeGenerator()
    scored = collect(generator, as_reward(reward), PROMPTS[:3], TWO)
    assert seen["prompts"] == ["prompt 0", "prompt 0", "prompt 1", "prompt 1", "prompt 2", "prompt 2"]
    assert seen["keys"] == [0, 0, 1, 1, 2, 2] and scored.scores.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(seen["images"], generator.decode(scored.rollout.tokens)) and scored.images.dtype == torch.uint8


def test_the_phases_are_timed_in_their_order() -> None:
    from contextlib import nullcontext

    phases: list[str] = []
    collect(
        FakeGenerator(), as_reward(constant), PROMPTS[:1], TWO, phase=lambda name: phases.append(name) or nullcontext()
    )  # type: ignore[func-returns-value]
    assert phases == ["sample", "decode", "score"]


def constant(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    return [1.0] * len(images)


class Scorer(Reward):
    """A reward of one's own that is no function; `answer` is what it returns."""

    def __init__(self, answer: Callable[[int], Any]) -> None:
        self.answer = answer

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        return self.answer(len(images))


def test_a_wrong_number_of_scores_names_the_reward_and_the_prompts() -> None:
    def beauty(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [1.0, 2.0]

    for reward, name in ((as_reward(beauty), "'beauty'"), (Scorer(lambda n: RewardOutput(torch.ones(2))), "'Scorer'")):
        with pytest.raises(ValueError, match=r"shape \(2,\) for 4 images") as caught:
            collect(FakeGenerator(), reward, PROMPTS[:2], TWO)
        assert name in str(caught.value) and "'prompt 0'" in str(caught.value)


def test_a_class_returns_a_reward_output_and_may_mark_failures() -> None:
    with pytest.raises(ValueError, match="reward 'Scorer' returned list"):
        collect(FakeGenerator(), Scorer(lambda n: [1.0] * n), PROMPTS[:2], TWO)
    marked = Scorer(lambda n: RewardOutput(torch.tensor([1.0, math.inf, math.nan, 2.0])))
    scores = collect(FakeGenerator(), marked, PROMPTS[:2], TWO).scores
    assert scores.isnan().tolist() == [False, True, True, False]


def test_functions_become_rewards_and_rewards_stay() -> None:
    scorer = Scorer(lambda n: RewardOutput(torch.ones(n)))
    assert as_reward(scorer) is scorer
    for function in (constant, functools.partial(constant), lambda images, prompts, metadata: [1] * len(images)):
        assert collect(FakeGenerator(), as_reward(function), PROMPTS[:1], TWO).scores.tolist() == [1, 1]
    with pytest.raises(ValueError, match="not finite"):
        collect(FakeGenerator(), as_reward(lambda images, prompts, metadata: [math.nan] * 2), PROMPTS[:1], TWO)


# -- dynamic sampling --------------------------------------------------------------------------------------------------


class World:
    """Prompt k's group has spread where k is in `useful`; counts what is drawn."""

    def __init__(self, useful: set[int]) -> None:
        self.useful = useful
        self.asked: list[int] = []

    def draw(self, n: int) -> list[Prompt]:
        first = sum(self.asked)
        self.asked.append(n)
        return PROMPTS[first : first + n]

    def collect(self, prompts: Sequence[Prompt], first: int) -> ScoredRollout:
        scores = torch.tensor(
            [[float(p.metadata["k"]), p.metadata["k"] + (p.metadata["k"] in self.useful)] for p in prompts]
        )
        rollout = FakeGenerator().sample(prompts, TWO)
        return ScoredRollout(
            rollout, FakeGenerator().decode(rollout.tokens), scores.flatten(), {"part": scores.flatten()}
        )


def test_prompts_are_drawn_until_enough_groups_have_spread() -> None:
    world = World({1, 2, 5, 6, 9})
    found = collect_informative(world.draw, world.collect, wanted=4, limit=9)
    assert world.asked == [4, 2, 1], "each round draws what is missing"
    assert found.scored is not None and [p.text for p in found.scored.rollout.prompts] == [
        f"prompt {k}" for k in (1, 2, 5, 6)
    ]
    assert found.scored.scores.tolist() == [1, 2, 2, 3, 5, 6, 6, 7] == found.scored.parts["part"].tolist()
    assert found.groups_discarded == 3 and len(found.scores) == 14 and found.scored.rollout.batch == 8
    # The mean is that of all 14 images: without the discarded ones it would be 4.
    assert (
        found.metrics()["reward/mean"]
        == pytest.approx((2 * sum(range(7)) + 4) / 14)
        == found.metrics()["reward/part/part"]
    )
    assert found.metrics()["groups/discarded"] == 3


@pytest.mark.parametrize(("limit", "asked"), [(1, [4]), (3, [4, 3, 3])])
def test_the_limit_ends_the_search(limit: int, asked: list[int]) -> None:
    world = World({2})
    found = collect_informative(world.draw, world.collect, wanted=4, limit=limit)
    assert world.asked == asked and found.groups_discarded == sum(asked) - 1
    assert found.scored is not None and found.scored.rollout.batch == 2


def test_no_group_with_spread_is_no_rollout_but_counts() -> None:
    world = World(set())
    found = collect_informative(world.draw, world.collect, wanted=3, limit=2)
    assert found.scored is None and len(found.scores) == 12 and found.groups_discarded == 6


def test_metrics_leave_failed_images_out() -> None:
    nan = math.nan
    metrics = Collected(None, torch.tensor([1.0, nan, 3.0]), {"a": torch.tensor([nan, nan, 5.0])}).metrics()
    assert metrics["reward/mean"] == 2 and metrics["reward/std"] == pytest.approx(2**0.5)
    assert metrics["reward/part/a"] == 5 and metrics["reward/failed"] == 1
    assert math.isnan(Collected(None, torch.tensor([nan])).metrics()["reward/mean"])


def test_a_collected_reward_sees_the_present_weights() -> None:
    first = collect(FakeGenerator(), as_reward(lambda images, p, m: token_score(images)), PROMPTS[:2], TWO)
    shifted = collect(FakeGenerator(shift=4), as_reward(lambda images, p, m: token_score(images)), PROMPTS[:2], TWO)
    assert torch.allclose(shifted.scores - first.scores, torch.full((4,), 4 / 32))


def test_diversity_is_the_share_of_tokens_in_which_siblings_differ() -> None:
    generator = FakeGenerator()
    rollout = generator.sample(PROMPTS[:2], Sampling(group_size=3, seed=1))
    tokens = torch.zeros_like(rollout.tokens)
    tokens[0, :2] = 1  # 2 tokens in which 2 of prompt 0's 3 pairs differ; prompt 1's images are alike
    count = tokens.shape[1]
    assert diversity(replace(rollout, tokens=tokens)) == pytest.approx((2 / 3 * 2 / count + 0) / 2)
    tokens[0] = torch.arange(count)  # of another prompt than the rest: what is apart is never compared
    tokens[1:3] = tokens[0]
    assert diversity(replace(rollout, tokens=tokens)) == 0
