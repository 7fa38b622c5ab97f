"""Place the objects of ShapeScenes' scenes, and render them with smooth edges.

A scene is 1 to 4 objects (plus clutter, if asked for). In the plain style they stand on a plain background, and corners
and sizes lie on a lattice of a few pixels, so that a small VQ codebook can tell the patches apart. In the textured
style the backdrop has a pattern, and objects are shaded, turned a little, and a little off the lattice in place and
size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from rewards.geneval import Detection, judge
from rewards.geneval.vocabulary import BACKGROUND, CLASSES, COLORS, coverage
from t2i_gcpo.data.shapes.textured import (
    MOVED,
    RESIZED,
    TURN,
    Backdrop,
    Shading,
    draw_backdrop,
    draw_shading,
    most_off,
    paint_backdrop,
    paint_object,
    turned_box,
)

IMAGE_SIZE = 96
Style = Literal["plain", "textured"]


@dataclass(frozen=True)
class Difficulty:
    """Says what makes a scene harder to draw and to tell apart."""

    classes: int = len(CLASSES)
    """How many of the shape classes may appear."""
    max_objects: int = 4
    """The largest count that counting prompts ask for, 2 to 4."""
    sizes: tuple[float, ...] = (24, 32)
    """Side lengths of an object's box, pixels; in the textured style up to 2.5 % more or less."""
    lattice: int = 8
    """Corners lie on multiples of this many pixels; in the textured style up to 0.75 pixels off."""
    gap: int = 4
    """Least distance between two boxes, pixels."""
    clutter: int = 0
    """Up to this many objects that the prompt does not mention."""
    style: Style = "plain"
    """How scenes are painted; `of_style` has the difficulty that fits a style."""

    @classmethod
    def of_style(cls, style: Style) -> Difficulty:
        """Return the default difficulty of a style: `Difficulty()` for the plain one."""
        return cls(style=style)

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= len(CLASSES):
            raise ValueError(f"classes is {self.classes}; ShapeScenes has 2 to {len(CLASSES)}")
        if not 2 <= self.max_objects <= 4:
            raise ValueError(f"max_objects is {self.max_objects}; it must be 2, 3 or 4")
        if self.style not in get_args(Style):
            raise ValueError(f"ShapeScenes has no style {self.style!r}; allowed: {', '.join(get_args(Style))}")
        least = 1 if self.style == "plain" else 8
        if self.lattice < least:
            raise ValueError(f"lattice is {self.lattice}; the {self.style} style needs {least} pixels or more")


@dataclass(frozen=True)
class SceneObject:
    """Is a shape with its colour; `left`, `top` and `size` are in pixels, of its box before it is turned."""

    class_name: str
    color: str
    left: float
    top: float
    size: float
    angle: float = 0.0
    """How far it is turned around its middle, degrees; 0 in the plain style."""
    shading: Shading | None = None
    """How light falls on it; None in the plain style."""

    def detection(self) -> Detection:
        """Return what a perfect detector says about it (boxes are left, top, right, bottom)."""
        left, top, right, bottom = turned_box(self.class_name, self.angle) if self.angle else (0.0, 0.0, 1.0, 1.0)
        box = (
            self.left + self.size * left,
            self.top + self.size * top,
            self.left + self.size * right,
            self.top + self.size * bottom,
        )
        return Detection(self.class_name, 1.0, box, color=self.color)


@dataclass(frozen=True)
class Scene:
    objects: tuple[SceneObject, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    backdrop: Backdrop | None = None
    """What is behind the objects in the textured style; None: the scene is painted in the plain one."""

    def render(self) -> np.ndarray:
        """Return the picture, `[IMAGE_SIZE, IMAGE_SIZE, 3]` uint8."""
        canvas = self._plain() if self.backdrop is None else self._textured(self.backdrop)
        return np.rint(canvas).astype(np.uint8)

    def _plain(self) -> np.ndarray:
        canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
        canvas[:] = BACKGROUND
        for thing in self.objects:
            left, top, size = int(thing.left), int(thing.top), int(thing.size)
            alpha = coverage(thing.class_name, size)[..., None]
            window = canvas[top : top + size, left : left + size]
            window += alpha * (np.asarray(COLORS[thing.color], dtype=np.float32) - window)
        return canvas

    def _textured(self, backdrop: Backdrop) -> np.ndarray:
        canvas = paint_backdrop(backdrop, IMAGE_SIZE)
        for thing in self.objects:
            corner, light = (thing.left, thing.top), thing.shading or Shading(0.0, 0.0)
            paint_object(canvas, thing.class_name, thing.color, corner, thing.size, thing.angle, light)
        return canvas.clip(0, 255)


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


#: A place for an object: left, top and size.
_Place = tuple[float, float, float]


def _is_apart(place: _Place, taken: Sequence[_Place], gap: float) -> bool:
    left, top, size = place
    return all(
        left + size + gap <= other_left
        or other_left + other_size + gap <= left
        or top + size + gap <= other_top
        or other_top + other_size + gap <= top
        for other_left, other_top, other_size in taken
    )


def _place(taken: Sequence[_Place], rng: random.Random, difficulty: Difficulty) -> _Place | None:
    """Draw a size, and a place on the lattice that keeps its distance from the others; None where 60 tries find none.

    In the textured style the outermost places stay free: what is put there leaves the lattice, not the picture.
    """
    textured = difficulty.style == "textured"
    size = rng.choice(difficulty.sizes)
    first, last = int(textured), int(IMAGE_SIZE - size) // difficulty.lattice - int(textured)
    gap = difficulty.gap + (2 * most_off(max(difficulty.sizes)) if textured else 0)
    for _ in range(60):
        left, top = (rng.randint(first, last) * difficulty.lattice for _ in range(2))
        if _is_apart((left, top, size), taken, gap):
            return left, top, size
    return None


def _object(class_name: str, color: str, place: _Place, rng: random.Random, difficulty: Difficulty) -> SceneObject:
    """Put an object at a place; in the textured style a little off it, resized, turned and shaded."""
    if difficulty.style == "plain":
        return SceneObject(class_name, color, *place)
    side = place[2]
    size = side * rng.uniform(1 - RESIZED, 1 + RESIZED)
    left, top = (corner + (side - size) / 2 + rng.uniform(-MOVED, MOVED) for corner in place[:2])
    return SceneObject(class_name, color, left, top, size, rng.uniform(-TURN, TURN), draw_shading(rng))


def _backdrop(rng: random.Random, difficulty: Difficulty) -> Backdrop | None:
    return draw_backdrop(rng) if difficulty.style == "textured" else None


def random_scene(rng: random.Random, difficulty: Difficulty | None = None) -> Scene:
    """Draw a scene that answers no prompt: 1 to 4 objects of any class and colour, for the VQ model."""
    difficulty = difficulty or Difficulty()
    taken: list[_Place] = []
    placed = []
    for _ in range(rng.randint(1, 4)):
        place = _place(taken, rng, difficulty)
        if place is not None:
            taken.append(place)
            class_name = rng.choice(CLASSES[: difficulty.classes])
            placed.append(_object(class_name, rng.choice(list(COLORS)), place, rng, difficulty))
    return Scene(tuple(placed), backdrop=_backdrop(rng, difficulty))


def sample_scene(metadata: dict[str, Any], rng: random.Random, difficulty: Difficulty | None = None) -> Scene:
    """Draw scenes until GenEval's verdict of one is true, and return that one.

    `metadata` is a GenEval row. Raises RuntimeError if no scene is found in 1,000 tries (too many or too large
    objects).
    """
    difficulty = difficulty or Difficulty()
    for _ in range(1000):
        taken: list[_Place] = []
        placed = []
        for class_name, color in wanted_objects(metadata, rng, difficulty):
            place = _place(taken, rng, difficulty)
            if place is None:
                break
            taken.append(place)
            placed.append(_object(class_name, color, place, rng, difficulty))
        else:
            if judge([thing.detection() for thing in placed], metadata).correct:
                rng.shuffle(placed)
                return Scene(tuple(placed), metadata, _backdrop(rng, difficulty))
    raise RuntimeError(f"no scene fits {metadata.get('prompt')!r} with {difficulty}")
