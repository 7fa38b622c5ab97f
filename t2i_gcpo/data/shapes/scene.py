"""Place the objects of ShapeScenes' scenes, and render them with smooth edges.

A scene is 1 to 4 objects (plus clutter, if asked for) on a plain background. Corners and sizes lie on a lattice of a
few pixels, so that a small VQ codebook can tell the patches apart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewards.geneval import Detection, judge
from rewards.geneval.vocabulary import BACKGROUND, CLASSES, COLORS, coverage

IMAGE_SIZE = 96


@dataclass(frozen=True)
class Difficulty:
    """Says what makes a scene harder to draw and to tell apart."""

    classes: int = len(CLASSES)
    """How many of the shape classes may appear."""
    max_objects: int = 4
    """The largest count that counting prompts ask for, 2 to 4."""
    sizes: tuple[int, ...] = (24, 32)
    """Side lengths of an object's box, pixels."""
    lattice: int = 8
    """Corners lie on multiples of this many pixels."""
    gap: int = 4
    """Least distance between two boxes, pixels."""
    clutter: int = 0
    """Up to this many objects that the prompt does not mention."""

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= len(CLASSES):
            raise ValueError(f"classes is {self.classes}; ShapeScenes has 2 to {len(CLASSES)}")
        if not 2 <= self.max_objects <= 4:
            raise ValueError(f"max_objects is {self.max_objects}; it must be 2, 3 or 4")


@dataclass(frozen=True)
class SceneObject:
    """Is a shape with its colour; `left`, `top` and `size` are in pixels."""

    class_name: str
    color: str
    left: int
    top: int
    size: int

    def detection(self) -> Detection:
        """Return what a perfect detector says about it (boxes are left, top, right, bottom)."""
        box = (float(self.left), float(self.top), float(self.left + self.size), float(self.top + self.size))
        return Detection(self.class_name, 1.0, box, color=self.color)


@dataclass(frozen=True)
class Scene:
    objects: tuple[SceneObject, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def render(self) -> np.ndarray:
        """Return the picture, `[IMAGE_SIZE, IMAGE_SIZE, 3]` uint8."""
        canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
        canvas[:] = BACKGROUND
        for thing in self.objects:
            alpha = coverage(thing.class_name, thing.size)[..., None]
            window = canvas[thing.top : thing.top + thing.size, thing.left : thing.left + thing.size]
            window += alpha * (np.asarray(COLORS[thing.color], dtype=np.float32) - window)
        return np.rint(canvas).astype(np.uint8)


def wanted_objects(metadata: dict[str, Any], rng: random.Random, difficulty: Difficulty) -> list[tuple[str, str]]:
    """Return (class, colour) of each object that the prompt asks for; open colours are drawn, one a clause."""
    wanted = []
    for clause in metadata["include"]:
        color = clause.get("color") or rng.choice(list(COLORS))
        wanted += [(clause["class"], color)] * clause["count"]
    named = {name for name, _ in wanted}
    others = [name for name in CLASSES[: difficulty.classes] if name not in named]
    for _ in range(rng.randint(0, difficulty.clutter)):
        wanted.append((rng.choice(others), rng.choice(list(COLORS))))
    return wanted


def _place(
    size: int, taken: Sequence[SceneObject], rng: random.Random, difficulty: Difficulty
) -> tuple[int, int] | None:
    steps = (IMAGE_SIZE - size) // difficulty.lattice
    gap = difficulty.gap
    for _ in range(60):
        left, top = (rng.randint(0, steps) * difficulty.lattice for _ in range(2))
        if all(
            left + size + gap <= other.left
            or other.left + other.size + gap <= left
            or top + size + gap <= other.top
            or other.top + other.size + gap <= top
            for other in taken
        ):
            return left, top
    return None


def random_scene(rng: random.Random, difficulty: Difficulty | None = None) -> Scene:
    """Draw a scene that answers no prompt: 1 to 4 objects of any class and colour, for the VQ model."""
    difficulty = difficulty or Difficulty()
    placed: list[SceneObject] = []
    for _ in range(rng.randint(1, 4)):
        size = rng.choice(difficulty.sizes)
        corner = _place(size, placed, rng, difficulty)
        if corner is not None:
            class_name = rng.choice(CLASSES[: difficulty.classes])
            placed.append(SceneObject(class_name, rng.choice(list(COLORS)), *corner, size))
    return Scene(tuple(placed))


def sample_scene(metadata: dict[str, Any], rng: random.Random, difficulty: Difficulty | None = None) -> Scene:
    """Draw scenes until GenEval's verdict of one is true, and return that one.

    `metadata` is a GenEval row. Raises RuntimeError if no scene is found in 1,000 tries (too many or too large
    objects).
    """
    difficulty = difficulty or Difficulty()
    for _ in range(1000):
        placed: list[SceneObject] = []
        for class_name, color in wanted_objects(metadata, rng, difficulty):
            size = rng.choice(difficulty.sizes)
            corner = _place(size, placed, rng, difficulty)
            if corner is None:
                break
            placed.append(SceneObject(class_name, color, *corner, size))
        else:
            if judge([thing.detection() for thing in placed], metadata).correct:
                rng.shuffle(placed)
                return Scene(tuple(placed), metadata)
    raise RuntimeError(f"no scene fits {metadata.get('prompt')!r} with {difficulty}")
