"""Detectors for GenEval: images -> the objects in them."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, Protocol

from rewards.geneval.rules import Detection

if TYPE_CHECKING:
    from torch import Tensor

#: Name -> import path of a class whose instances are detectors.
DETECTORS: dict[str, str] = {
    "mask2former": "rewards.geneval.detectors.mask2former:Mask2FormerDetector",
    "shapes": "rewards.geneval.detectors.shapes:ShapesDetector",
}


class Detector(Protocol):
    """May have `classes`, the names that it can find, and `names_colors`: False where its objects come without a colour."""

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """`images` [B, 3, H, W] uint8 -> per image its detections."""
        ...


def load(name: str, **options: Any) -> Detector:
    """A detector by name; ValueError for an unknown one, and for an option that it does not have."""
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; available: {', '.join(sorted(DETECTORS))}")
    module, _, attribute = DETECTORS[name].partition(":")
    builder = getattr(importlib.import_module(module), attribute)
    allowed = inspect.signature(builder).parameters
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(
            f"detector {name!r} has no option {', '.join(unknown)}; allowed: {', '.join(allowed) or 'none'}"
        )
    detector: Detector = builder(**options)
    return detector
