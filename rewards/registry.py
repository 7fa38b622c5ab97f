"""Loads rewards by name. A reward's module is imported when it is loaded, so `import rewards` stays quick."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rewards.base import Reward

#: Name -> import path of the class or function that builds the reward from its options.
REWARDS: dict[str, str] = {
    "aesthetic": "rewards.scorers.aesthetic:AestheticReward",
    "clip": "rewards.scorers.clip:ClipReward",
    "composite": "rewards.weighted_sum:load_composite",
    "geneval": "rewards.geneval.reward:GenEvalReward",
    "git_vqa": "rewards.scorers.git_vqa:GitVqaReward",
    "grounding_dino": "rewards.scorers.grounding_dino:GroundingDinoReward",
    "hps": "rewards.scorers.hps:HpsReward",
    "image_reward": "rewards.scorers.image_reward:ImageReward",
    "ocr": "rewards.scorers.ocr:OcrReward",
    "pickscore": "rewards.scorers.pickscore:PickScoreReward",
    "remote": "rewards.remote.client:RemoteReward",
    "unified_reward": "rewards.scorers.unified_reward:UnifiedReward",
    "vlm_judge": "rewards.scorers.vlm_judge:VlmJudge",
}


def available() -> list[str]:
    """List the names that `load` knows, sorted."""
    return sorted(REWARDS)


def load(name: str, **options: Any) -> Reward:
    """Load a reward by name, or a function of one's own as `module:callable` or `path/to/file.py:callable`.

    >>> import torch
    >>> reward = load("geneval", score="clauses")
    >>> red_ring = {"tag": "colors", "include": [{"class": "ring", "count": 1, "color": "red"}]}
    >>> reward(torch.zeros(1, 3, 96, 96, dtype=torch.uint8), ["a photo of a red ring"], [red_ring]).scores
    tensor([0.])

    ValueError for an unknown name (listing the available ones), for an option that the reward does not have, and for
    one that it needs.
    """
    if ":" in name:
        from rewards.function import load_function

        return load_function(name, **options)
    builder = find(name)
    allowed = inspect.signature(builder).parameters
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"reward {name!r} has no option {', '.join(unknown)}; allowed: {', '.join(allowed) or 'none'}")
    missing = [key for key, value in allowed.items() if value.default is value.empty and key not in options]
    if missing:
        raise ValueError(f"reward {name!r} needs the option {', '.join(missing)}; its options: {', '.join(allowed)}")
    reward = builder(**options)
    defaults = {key: value.default for key, value in allowed.items() if value.default is not value.empty}
    reward.built_with = {**defaults, **options}
    return reward


def own_functions(name: str, options: Mapping[str, Any]) -> list[str]:
    """Return the names `module:callable` that `load(name, **options)` would import and run.

    Those within a composite are included.
    """
    if ":" in name:
        return [name]
    parts = options.get("rewards") if name == "composite" else None
    found: list[str] = []
    for label, settings in (parts if isinstance(parts, Mapping) else {}).items():
        inner = dict(settings) if isinstance(settings, Mapping) else {}
        found += own_functions(str(inner.get("name", label)), inner)
    return found


def find(name: str) -> Callable[..., Reward]:
    """Return what builds the registered reward `name`. ValueError, listing the available ones, for an unknown name."""
    if name not in REWARDS:
        raise ValueError(
            f"unknown reward {name!r}; available: {', '.join(available())}, or your own as module:callable"
        )
    module, _, attribute = REWARDS[name].partition(":")
    builder: Callable[..., Reward] = getattr(importlib.import_module(module), attribute)
    return builder
