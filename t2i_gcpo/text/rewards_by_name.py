"""Find a reward for text by its name: one of the two that come with it, or a user's function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rewards.function import load_callable
from t2i_gcpo.text.arithmetic import arithmetic_reward
from t2i_gcpo.text.math_answers import math_reward

TextReward = Callable[..., Sequence[float | None]]

REWARDS: dict[str, TextReward] = {"arithmetic": arithmetic_reward, "math": math_reward}


def check_scores(scores: Any, name: str) -> None:
    """Raise a ValueError for what is no list of scores: None, where a `return` is missing, a number, or a text."""
    if scores is None or isinstance(scores, (str, bytes, Mapping)) or not isinstance(scores, Iterable):
        raise ValueError(
            f"the reward function {name!r} returned {str(scores)[:80]!r}; it must return a list with one number, or "
            "None, for each completion"
        )


def load_reward(name: str) -> TextReward:
    """Return the function `reward(completions=..., answer=..., ...)`, which gives a number or None for each.

    ValueError: no reward of that name.
    """
    if name in REWARDS:
        return REWARDS[name]
    if ":" not in name:
        raise ValueError(
            f"reward is {name!r}; allowed: {', '.join(REWARDS)}, or your own as module:callable or file.py:callable"
        )
    return load_callable(name)
