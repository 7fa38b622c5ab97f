"""Checks that rewards can score prompts, before any image is drawn for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rewards.base import PromptError, Reward
from rewards.function import as_reward
from t2i_gcpo.records import Prompt


def check_scorable(prompts: Sequence[Prompt], *rewards: Reward | Callable[..., Any]) -> None:
    """Raise ValueError for the first prompt that a reward cannot score, with file and line where it has them."""
    unique = list({id(prompt): prompt for prompt in prompts}.values())  # an evaluation repeats its prompts
    for reward in rewards:
        try:
            as_reward(reward).check_prompts([prompt.text for prompt in unique], [prompt.metadata for prompt in unique])
        except PromptError as error:
            source = unique[error.index].source
            raise ValueError(f"{source}: {error}" if source else str(error)) from error
