"""Finds the objects in images for GenEval: each detector is at home here, and no rule that judges what was found."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rewards.geneval.rules import Detection

if TYPE_CHECKING:
    from torch import Tensor

#: Name -> import path of a class whose instances are detectors.
DETECTORS: dict[str, str] = {
    "mask2former": "rewards.geneval.detectors.mask2former:Mask2FormerDetector",
    "shapes": "rewards.geneval.detectors.shapes:ShapesDetector",
}


@runtime_checkable
class Detector(Protocol):
    """Finds objects in images. A class that inherits from it needs `__call__` alone; everything else has a default."""

    classes: Sequence[str] | None = None
    """The names that it can find; None: it does not say."""
    names_colors: bool = True
    """False where its objects come without a colour, so that something else has to name it."""
    color_names: Sequence[str] | None = None
    """What it may call its objects' colours; None: it does not say, or names none."""

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """Return the detections of each of `images` [B, 3, H, W] uint8."""
        ...


class PlainDetector(Detector):
    """Makes a detector of a function of one's own; its `classes` and `names_colors` count where it has them."""

    def __init__(self, function: Callable[[Tensor], list[list[Detection]]]) -> None:
        self.function = function
        self.classes = getattr(function, "classes", None)
        self.names_colors = getattr(function, "names_colors", True)

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        return self.function(images)


def as_detector(detector: Detector | Callable[[Tensor], list[list[Detection]]]) -> Detector:
    """Return a detector as it is, and make one of a function images -> detections."""
    return detector if isinstance(detector, Detector) else PlainDetector(detector)


def load(name: str, **options: Any) -> Detector:
    """Load a detector by name; ValueError for an unknown one, and for an option that it does not have."""
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
