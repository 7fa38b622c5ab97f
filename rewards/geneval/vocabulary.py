"""Lists ShapeScenes' classes, outlines and colours: the one table that the renderer and the detector share.

Outlines are polygons in the unit square, x to the right and y downwards, both in [0, 1]; each touches all four sides,
so that an outline's bounding box is the object's box. A class with a hole lists the hole as a second polygon.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

#: GenEval's ten colours (2310.11513, `geneval/evaluation`), as the RGB values that ShapeScenes paints them in.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (252, 140, 18),
    "yellow": (250, 226, 40),
    "green": (30, 148, 62),
    "blue": (32, 84, 220),
    "purple": (124, 40, 168),
    "pink": (252, 150, 204),
    "brown": (116, 70, 30),
    "black": (16, 16, 18),
    "white": (252, 252, 252),
}

#: The plain background of a scene. Farther than 100 (Euclidean RGB) from every colour above.
BACKGROUND: tuple[int, int, int] = (156, 162, 168)

#: Numbers as words, for counting prompts.
NUMBERS: dict[int, str] = {1: "one", 2: "two", 3: "three", 4: "four"}

#: GenEval's four relations.
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")

Polygon = list[tuple[float, float]]


def _circle(radius: float = 0.5, points: int = 96) -> Polygon:
    return [
        (0.5 + radius * math.cos(2 * math.pi * k / points), 0.5 + radius * math.sin(2 * math.pi * k / points))
        for k in range(points)
    ]


def _stretched(points: Polygon) -> Polygon:
    """Stretch a polygon to touch all four sides of the unit square."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, top, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    return [((x - left) / width, (y - top) / height) for x, y in points]


def _star() -> Polygon:
    corners = []
    for k in range(10):
        radius = 0.5 if k % 2 == 0 else 0.5 * 0.42
        angle = -math.pi / 2 + k * math.pi / 5
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return _stretched(corners)


def _heart(points: int = 96) -> Polygon:
    curve = []
    for k in range(points):
        t = 2 * math.pi * k / points
        x = 16 * math.sin(t) ** 3
        y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
        curve.append((x, y))
    return _stretched(curve)


def _cross(arm: float = 0.34) -> Polygon:
    low, high = (1 - arm) / 2, (1 + arm) / 2
    return [
        (low, 0), (high, 0), (high, low), (1, low), (1, high), (high, high),
        (high, 1), (low, 1), (low, high), (0, high), (0, low), (low, low),
    ]  # fmt: skip


#: Class name -> its filled polygon, then its hole if it has one.
OUTLINES: dict[str, list[Polygon]] = {
    "circle": [_circle()],
    "square": [[(0, 0), (1, 0), (1, 1), (0, 1)]],
    "triangle": [[(0.5, 0), (1, 1), (0, 1)]],
    "diamond": [[(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)]],
    "star": [_star()],
    "heart": [_heart()],
    "cross": [_cross()],
    "ring": [_circle(), _circle(0.27)],
}

CLASSES: tuple[str, ...] = tuple(OUTLINES)

PLURALS: dict[str, str] = {name: f"{name}es" if name.endswith("s") else f"{name}s" for name in CLASSES}


@functools.lru_cache(maxsize=256)
def coverage(class_name: str, size: int, supersample: int = 8) -> np.ndarray:
    """Return the share of each pixel that the outline covers, `[size, size]` float32 in [0, 1] (anti-aliased).
    Read-only."""
    big = size * supersample
    canvas = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(canvas)
    for index, polygon in enumerate(OUTLINES[class_name]):
        # Polygon corners are pixel centres in PIL, so a side at 1.0 falls on the last pixel.
        draw.polygon([(x * (big - 1), y * (big - 1)) for x, y in polygon], fill=0 if index else 255)
    fine = np.asarray(canvas, dtype=np.float32) / 255.0
    result = fine.reshape(size, supersample, size, supersample).mean(axis=(1, 3))
    result.setflags(write=False)
    return result
