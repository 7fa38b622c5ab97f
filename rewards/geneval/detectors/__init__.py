"""Detectors for GenEval: images -> the objects in them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from rewards.geneval.rules import Detection

if TYPE_CHECKING:
    from torch import Tensor

#: Name -> import path of a class whose instances are detectors.
DETECTORS: dict[str, str] = {
    "shapes": "rewards.geneval.detectors.shapes:ShapesDetector",
}


class Detector(Protocol):
    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """`images` [B, 3, H, W] uint8 -> per image its detections."""
        ...


def load(name: str, **options: Any) -> Detector:
    """A detector by name; ValueError for an unknown one."""
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; available: {', '.join(sorted(DETECTORS))}")
    module, _, attribute = DETECTORS[name].partition(":")
    detector: Detector = getattr(importlib.import_module(module), attribute)(**options)
    return detector
