"""Rows and groups of rollouts keep what belongs together; cat puts them back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.fake_generator import FakeGenerator
from t2i_gcpo.records import Prompt, Rollout, Sampling, ScoredRollout, cat_parts

TENSORS = ("tokens", "logprob_positive", "logprob_negative", "logprob_behaviour", "commit_step")


def rollout(prompts: int = 3, group: int = 2, *, negatives: bool = True) -> Rollout:
    """Every tensor has a value of its own at every place."""
    texts = [Prompt(f"prompt {p}") for p in range(prompts)]
    drawn = FakeGenerator().sample(texts, Sampling(group_size=group, stats=("entropy", "js"), seed=4))
    size = drawn.tokens.numel()
    values = {name: torch.arange(size).view_as(drawn.tokens) + k * size for k, name in enumerate(TENSORS)}
    stats = {name: values["tokens"] * 0.5 + k for k, name in enumerate(drawn.stats)}
    return replace(
        drawn, **values, stats=stats, negative_prompts=tuple(f"no {p}" for p in range(prompts)) if negatives else None
    )


def equal(a: Rollout, b: Rollout) -> bool:
    def same(x: Tensor | None, y: Tensor | None) -> bool:
        return x is y is None or (x is not None and y is not None and torch.equal(x, y))

    plain = ("prompts", "negative_prompts", "grid", "sampling")
    return (
        all(same(getattr(a, name), getattr(b, name)) for name in TENSORS)
        and all(getattr(a, name) == getattr(b, name) for name in plain)
        and a.stats.keys() == b.stats.keys()
        and all(torch.equal(a.stats[name], b.stats[name]) for name in a.stats)
    )


@pytest.mark.parametrize("negatives", [True, False])
def test_rows_bring_their_own_prompts(negatives: bool) -> None:
    whole = rollout(negatives=negatives)
    part = whole.rows(torch.tensor([5, 0, 3]))
    assert [prompt.text for prompt in part.prompts] == ["prompt 2", "prompt 0", "prompt 1"]
    assert part.negative_prompts == (("no 2", "no 0", "no 1") if negatives else None)
    assert part.sampling == replace(whole.sampling, group_size=1) and part.batch == 3
    for name in TENSORS:
        assert torch.equal(getattr(part, name), torch.stack([getattr(whole, name)[row] for row in (5, 0, 3)])), name
    assert torch.equal(part.stats["js"], torch.stack([whole.stats["js"][row] for row in (5, 0, 3)]))
    assert equal(part.rows(torch.tensor([2])), whole.rows(torch.tensor([3]))), "rows of rows"


def test_each_row_has_its_prompt() -> None:
    whole = rollout(prompts=2, group=3)
    assert [prompt.text for prompt in whole.row_prompts] == ["prompt 0"] * 3 + ["prompt 1"] * 3
    assert whole.row_prompts == list(whole.rows(torch.arange(6)).prompts)
    assert whole.per_row(whole.negative_prompts or ()) == list(whole.rows(torch.arange(6)).negative_prompts or ())
    with pytest.raises(ValueError, match="6 values for 2 prompts"):
        whole.per_row(whole.row_prompts)


def test_rows_without_negative_logprobs() -> None:
    assert replace(rollout(), logprob_negative=None).rows(torch.tensor([1])).logprob_negative is None


@pytest.mark.parametrize("negatives", [True, False])
def test_groups_are_whole_prompts_and_cat_is_their_inverse(negatives: bool) -> None:
    whole = rollout(negatives=negatives)
    part = whole.groups(torch.tensor([2, 0]))
    assert [prompt.text for prompt in part.prompts] == ["prompt 2", "prompt 0"]
    assert part.sampling == whole.sampling and part.batch == 4
    assert torch.equal(part.tokens, whole.tokens[[4, 5, 0, 1]])
    assert equal(Rollout.cat([whole.groups(torch.tensor([0])), whole.groups(torch.tensor([1, 2]))]), whole)
    assert not equal(part, whole.groups(torch.tensor([0, 2]))), "the comparison sees the order"


def scored(whole: Rollout, **parts: list[float]) -> ScoredRollout:
    images = torch.arange(whole.batch, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return ScoredRollout(
        whole, images, torch.arange(whole.batch).float(), {k: torch.tensor(v) for k, v in parts.items()}
    )


def test_scored_groups_take_images_scores_and_parts_along() -> None:
    whole = scored(rollout(), a=[0.0, 10.0, 20.0, 30.0, 40.0, 50.0])
    part = whole.groups(torch.tensor([1]))
    assert part.scores.tolist() == [2, 3] and part.parts["a"].tolist() == [20, 30]
    assert part.images[:, 0, 0, 0].tolist() == [2, 3] and part.rollout.prompts[0].text == "prompt 1"
    back = ScoredRollout.cat([whole.groups(torch.tensor([0, 1])), whole.groups(torch.tensor([2]))])
    assert equal(back.rollout, whole.rollout) and torch.equal(back.images, whole.images)
    assert torch.equal(back.scores, whole.scores) and torch.equal(back.parts["a"], whole.parts["a"])


def test_a_part_that_a_batch_lacks_is_nan_there() -> None:
    one, two = (torch.zeros(2), {"a": torch.ones(2)}), (torch.zeros(1), {"b": torch.full((1,), 3.0)})
    joined = cat_parts([one, two])
    assert joined["a"].tolist()[:2] == [1, 1] and joined["a"].isnan().tolist() == [False, False, True]
    assert joined["b"][2] == 3 and joined["b"].isnan().tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "group_size is 0"),
        ({"guidance": -1}, "guidance is -1"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, r"top_p is 0.0; it must be in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"stats": ("median",)}, "unknown sampling stats"),
    ],
)
def test_sampling_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_a_prompt_knows_its_task() -> None:
    assert (
        Prompt("x", {"tag": "counting"}).task == "counting"
        and Prompt("x").task == Prompt("x", {"tag": ""}).task == "all"
    )
