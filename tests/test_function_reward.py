"""What functions of one's own may return: any numbers, in whatever container, and None for no opinion."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rewards
from rewards.base import PromptError, RewardOutput
from rewards.function import FunctionReward, as_reward
from rewards.weighted_sum import Composite

IMAGES = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)


def scores(result: Any, **options: Any) -> torch.Tensor:
    return FunctionReward(lambda *_: result, name="mine", **options)(IMAGES, ["a", "b", "c"], [{}] * 3).scores


read_only = np.array([1.0, 2.0, 3.0])
read_only.setflags(write=False)


@pytest.mark.parametrize(
    "result",
    [
        np.array([3.0, 2.0, 1.0])[::-1],
        np.arange(1, 7)[::2] / 2 + 0.5,
        np.array([1.0, 2.0, 3.0], dtype=">f8"),
        np.array([1, 2, 3], dtype=">i2"),
        np.array([1, 2, 3], dtype=np.uint64),
        np.array([1, 2, 3], dtype=np.float16),
        np.array([1, 2, 3], dtype=object),
        np.longdouble([1, 2, 3]),
        read_only,
        [np.float32(1), np.int64(2), np.array(3.0)],
        [torch.tensor(1.0), torch.tensor([2]), 3],
        [Decimal(1), 2, 3.0],
        torch.tensor([1.0, 2, 3], requires_grad=True) * 1,
        torch.tensor([1, 2, 3], dtype=torch.bfloat16),
        torch.tensor([3, 2, 1]).flip(0),
        RewardOutput([1, 2, 3]),  # type: ignore[arg-type]
        RewardOutput(np.array([3.0, 2.0, 1.0])[::-1]),  # type: ignore[arg-type]
    ],
)
def test_numbers_of_any_kind(result: Any) -> None:
    output = scores(result)
    assert output.tolist() == [1, 2, 3] and output.dtype == torch.float32 and not output.requires_grad


@pytest.mark.parametrize(
    "result",
    [
        [1.0, None, 3.0],
        (1.0, None, 3.0),
        np.array([1.0, None, 3.0], dtype=object),
        np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False]),
        RewardOutput([1.0, None, 3.0]),  # type: ignore[arg-type, list-item]
    ],
)
def test_none_is_no_opinion(result: Any) -> None:
    marked = scores(result, failure="mark")
    assert marked[[0, 2]].tolist() == [1, 3] and marked[1].isnan()
    with pytest.raises(ValueError, match=r"'mine' gave 1 of 3 images a score that is not finite \(prompts: 'b'\)"):
        scores(result)


def test_no_opinion_of_one_is_no_score_of_the_sum() -> None:
    both = Composite({"a": lambda *_: [1.0, None, 3.0], "b": lambda *_: [1, 1, 1]}, failure="mark")  # type: ignore[dict-item]
    output = both(IMAGES, ["a", "b", "c"], [{}] * 3)
    assert output.scores.isnan().tolist() == [False, True, False] and output.parts["b"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "result",
    [
        "abc",
        ["1", "2", "3"],
        [1.0, "x", 3.0],
        np.array(["1", "2", "3"]),
        [b"1", None, 3],
        {"a": 1},
        {1, 2, 3},
        (x for x in [1, 2, 3]),
        None,
        np.array([1j, 2, 3]),
        torch.tensor([1j, 2, 3]),
        np.array(["2020-01-01"] * 3, dtype="datetime64[D]"),
        [[1], [2, 3]],
        [object()] * 3,
        [10**400, 1, 2],
    ],
)
def test_what_is_no_number_is_refused_by_name(result: Any) -> None:
    with pytest.raises(ValueError, match="'mine' returned"):
        scores(result)


@pytest.mark.parametrize("result", [[1.0, 2.0], [[1.0], [2.0], [3.0]], 1.0, np.zeros((3, 1)), []])
def test_other_shapes_are_refused(result: Any) -> None:
    with pytest.raises(ValueError, match=r"'mine' returned scores of shape .* for 3 images"):
        scores(result)


def test_parts_are_numbers_too() -> None:
    output = RewardOutput([1, 2, 3], {"sharp": np.array([3, 2, 1])[::-1], "no": [None, 1, 2]})  # type: ignore[arg-type, dict-item]
    parts = FunctionReward(lambda *_: output)(IMAGES, ["a", "b", "c"], [{}] * 3).parts
    assert parts["sharp"].tolist() == [1, 2, 3] and math.isnan(parts["no"][0])


def test_an_object_that_is_called_brings_its_weights_and_its_check() -> None:
    class Sum:
        weights = {"a": 0.5}

        def __call__(self, images: Any, prompts: Any, metadata: Any) -> RewardOutput:
            return RewardOutput(torch.tensor([1.0, math.nan, 3.0]), {"a": torch.ones(3)})

        def check_prompts(self, prompts: Any, metadata: Any) -> None:
            raise PromptError(1, "never")

    reward = as_reward(Sum())
    assert reward.weights == {"a": 0.5} and reward(IMAGES, ["a", "b", "c"], [{}] * 3).scores.isnan().sum() == 1
    with pytest.raises(PromptError, match="never"):
        reward.check_prompts(["a"], [{}])


def _swapped(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder())


def _read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("view", [lambda a: a[::-1][::-1][::-1], lambda a: a[:], _swapped, _read_only])
def test_views_that_torch_takes_no_memory_of(kind: type, view: Any, recwarn: pytest.WarningsRecorder) -> None:
    """NumPy's negative strides, the other byte order, and memory that may not be written to."""
    values = view(np.array([3, 1, 2], dtype=kind))
    given = values.astype(float).tolist()
    scores = as_reward(lambda *_: values)(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), ["", "", ""], [{}] * 3).scores
    assert scores.tolist() == given and not recwarn
    if values.flags.writeable:
        values[0] = 7
        assert scores.tolist() == given, "a copy"


def test_the_code_of_ones_own_reward_is_told_by_the_file_that_holds_it(tmp_path: Path) -> None:
    def hashes(body: str, name: str = "score") -> dict[str, str]:
        (tmp_path / "own.py").write_text(f"{body}\nclass Judge:\n    __call__ = score\nshort = partial(score)\n")
        return rewards.load(f"{tmp_path / 'own.py'}:{name}").own_code()

    one, other = (
        f"from functools import partial\ndef score(*given): return [{number}] * len(given[-1])" for number in (0, 1)
    )
    for name in ("score", "Judge", "short"):
        key = f"{tmp_path / 'own.py'}:{name}"
        assert set(hashes(one, name)) == {key} and hashes(one, name) == hashes(one, name) != hashes(other, name)
    parts = {"own": 1.0, "geneval": 1.0}
    summed = Composite({"own": rewards.load(key), "geneval": rewards.load("geneval")}, parts)
    assert summed.own_code() == {key: next(iter(hashes(other, "short").values()))}
    assert rewards.load("geneval").own_code() == {} == as_reward(max).own_code()


def test_what_cannot_be_called_with_a_batch_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def score(images, texts): ...\nclass Judge:\n    def __init__(self, size): ...\n")
    for name, options, sentence in (
        ("score", {}, r"takes \(images, texts\), and is called with \(images, prompts, metadata\): too many"),
        ("score", {"scale": 2}, r"is called with \(images, prompts, metadata, scale=...\)"),
        ("Judge", {"sise": 3}, r"takes \(size\), and is called with \(sise=...\): missing a required argument: 'size'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            rewards.load(f"{file}:{name}", **options)
    with pytest.raises(ValueError, match=r"reward 'Sum' takes .*called with \(images, prompts, metadata\)"):
        as_reward(type("Sum", (), {"__init__": lambda self: None}))
