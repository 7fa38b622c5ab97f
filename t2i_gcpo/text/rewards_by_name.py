"""Rewards for text by name: the two that come with it, or a function of one's own in the form that TRL calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rewards.function import load_function
from t2i_gcpo.text.arithmetic import arithmetic_reward
from t2i_gcpo.text.math_answers import math_reward

TextReward = Callable[..., Sequence[float | None]]

REWARDS: dict[str, TextReward] = {"arithmetic": arithmetic_reward, "math": math_reward}


def load_reward(name: str) -> TextReward:
    """The function `reward(completions=..., answer=..., ...)` that returns a number (or None) each.

    ValueError: no reward of that name.
    """
    if name in REWARDS:
        return REWARDS[name]
    if ":" not in name:
        raise ValueError(
            f"reward is {name!r}; allowed: {', '.join(REWARDS)}, or your own as module:callable or file.py:callable"
        )
    reward: Any = load_function(name)  # its wrapper is for images
    function: TextReward = reward.function
    return function
