"""Rewards by name. A reward's module is imported when it is loaded, so `import rewards` stays quick."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from rewards.base import Reward

#: Name -> import path of the class or function that builds the reward from its options.
REWARDS: dict[str, str] = {
    "composite": "rewards.composite:load_composite",
    "geneval": "rewards.geneval.reward:GenEvalReward",
}


def available() -> list[str]:
    """The names that `load` knows, sorted."""
    return sorted(REWARDS)


def load(name: str, **options: Any) -> Reward:
    """A reward by name, or a function of one's own as `module:callable` or `path/to/file.py:callable`.

    ValueError for an unknown name (listing the available ones) and for an option that the reward does not have.
    """
    if ":" in name:
        from rewards.function import load_function

        return load_function(name, **options)
    if name not in REWARDS:
        raise ValueError(
            f"unknown reward {name!r}; available: {', '.join(available())}, or your own as module:callable"
        )
    module, _, attribute = REWARDS[name].partition(":")
    builder = getattr(importlib.import_module(module), attribute)
    allowed = inspect.signature(builder).parameters
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"reward {name!r} has no option {', '.join(unknown)}; allowed: {', '.join(allowed) or 'none'}")
    reward: Reward = builder(**options)
    return reward
