"""This room gives chain-of-thought language models the same credit, on TRL.

At home is what turns a `GRPOTrainer` into a `GCPOTrainer`, its task, its heatmap and what its commands do. Anything
about images, and any copy of TRL's code, belongs elsewhere.

TRL is an optional package (the extra `text`); `GCPOConfig` and `GCPOTrainer` are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["GCPOConfig", "GCPOTrainer", "arithmetic_reward", "math_reward", "negative_prompt"]

#: Public name -> the module that has it.
_HOMES = {
    "GCPOConfig": "t2i_gcpo.text.config",
    "GCPOTrainer": "t2i_gcpo.text.trainer",
    "arithmetic_reward": "t2i_gcpo.text.arithmetic",
    "math_reward": "t2i_gcpo.text.math_answers",
    "negative_prompt": "t2i_gcpo.text.negatives",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
