"""Paint ShapeScenes' textured style: muted, patterned backdrops behind shaded, slightly turned objects.

A backdrop is a pattern (gradient, stripes, grain or clouds) between two muted colours. No prompt names a backdrop, so
its pixels, and the tokens that stand for them, are undecided by the prompt.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from rewards.geneval.vocabulary import BACKGROUND, COLORS, OUTLINES

Pattern = Literal["gradient", "stripes", "grain", "clouds"]

#: The largest distance (Euclidean RGB) of a backdrop's two colours from the plain background. The colours that prompts
#: name are at least 100 away from it, so a muted backdrop is never nearer to one of them.
MUTED = 34.0
#: The least distance between a backdrop's two colours, so that its pattern can be seen.
LEAST_CONTRAST = 24.0
#: Standard deviation of the pixel noise: on every backdrop, and on the pattern that is noise.
FINE_GRAIN, COARSE_GRAIN = 2.0, 7.0
#: The largest turn of an object to either side, degrees.
TURN = 3.0
#: How far the corners of a square that is turned so far leave its box on each side, as a share of its side.
TURNED_MARGIN = (math.cos(math.radians(TURN)) + math.sin(math.radians(TURN)) - 1) / 2
#: The largest change of an object's colour by shading, RGB units, from its middle to its lit and its dark side.
SHADE = 22.0
#: How far an object is moved off its place at most, to each side, pixels; and its side made longer or shorter, a share.
MOVED, RESIZED = 0.75, 0.025
#: Sub-pixels a pixel on each side, for smooth edges.
SUPERSAMPLE = 4


def most_off(side: float) -> float:
    """Return how far an object of a side reaches outside of its place at most: moved, resized and turned, pixels."""
    return MOVED + side * (RESIZED / 2 + (1 + RESIZED) * TURNED_MARGIN)


@dataclass(frozen=True)
class Backdrop:
    """Describes the picture behind the objects; `seed` fixes its noise."""

    pattern: Pattern
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    """The two muted RGB colours that the pattern mixes."""
    angle: float
    """Direction of a gradient or of stripes, radians."""
    period: float
    """Width of a stripe and its gap, or the size of a cloud, pixels."""
    seed: int


@dataclass(frozen=True)
class Shading:
    """Describes how light falls on an object: brighter towards `angle` (radians), by `strength` RGB units."""

    strength: float
    angle: float


def _muted(rng: random.Random) -> tuple[float, float, float]:
    """Draw a colour from the ball of radius `MUTED` around the plain background."""
    while True:
        offset = [rng.uniform(-MUTED, MUTED) for _ in BACKGROUND]
        if math.hypot(*offset) <= MUTED:
            red, green, blue = (base + change for base, change in zip(BACKGROUND, offset, strict=True))
            return red, green, blue


def draw_backdrop(rng: random.Random) -> Backdrop:
    """Draw a backdrop: its pattern, two muted colours that differ visibly, direction, period and noise."""
    first, second = _muted(rng), _muted(rng)
    while math.dist(first, second) < LEAST_CONTRAST:
        second = _muted(rng)
    pattern = rng.choice(get_args(Pattern))
    return Backdrop(pattern, first, second, rng.uniform(0, math.pi), rng.uniform(9, 26), rng.getrandbits(32))


def draw_shading(rng: random.Random) -> Shading:
    return Shading(rng.uniform(0.3, 1.0) * SHADE, rng.uniform(0, 2 * math.pi))


def paint_backdrop(backdrop: Backdrop, size: int) -> np.ndarray:
    """Return the backdrop's picture, [size, size, 3] float32 RGB."""
    noise = np.random.default_rng(backdrop.seed)
    share = _mixture(backdrop, size, noise)[..., None]
    first, second = np.array(backdrop.first, dtype=np.float32), np.array(backdrop.second, dtype=np.float32)
    deviation = COARSE_GRAIN if backdrop.pattern == "grain" else FINE_GRAIN
    grain = deviation * noise.standard_normal((size, size, 1), dtype=np.float32).clip(-2, 2)
    picture: np.ndarray = first + share * (second - first) + grain
    return picture


def _mixture(backdrop: Backdrop, size: int, noise: np.random.Generator) -> np.ndarray:
    """Return the second colour's share of each pixel, [size, size] float32 in [0, 1]."""
    if backdrop.pattern == "clouds":
        cells = max(2, round(size / backdrop.period) + 1)
        coarse = Image.fromarray(noise.random((cells, cells), dtype=np.float32))
        return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)
    places = np.arange(size, dtype=np.float32) - (size - 1) / 2
    across, down = math.cos(backdrop.angle), math.sin(backdrop.angle)
    along = across * places + down * places[:, None]
    if backdrop.pattern == "stripes":
        phase = noise.uniform(0, 2 * math.pi)
        return (0.5 + 1.5 * np.sin(2 * math.pi / backdrop.period * along + phase)).clip(0, 1)
    return (0.5 + along / (size * (abs(across) + abs(down)))).clip(0, 1)


def turned_outline(class_name: str, angle: float) -> list[np.ndarray]:
    """Return the class's polygons, [N, 2] as (x, y) in units of the untouched box, turned by `angle` degrees."""
    turn = math.radians(angle)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return [(np.array(polygon) - 0.5) @ matrix.T + 0.5 for polygon in OUTLINES[class_name]]


def turned_box(class_name: str, angle: float) -> tuple[float, float, float, float]:
    """Return the turned outline's box (left, top, right, bottom), in units of the untouched box."""
    outline = turned_outline(class_name, angle)[0]
    (left, top), (right, bottom) = outline.min(axis=0), outline.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def paint_object(
    canvas: np.ndarray,
    class_name: str,
    color: str,
    corner: tuple[float, float],
    size: float,
    angle: float,
    light: Shading,
) -> None:
    """Paint a turned, shaded object onto `canvas` [H, W, 3] in place; `corner` is its untouched box's, in pixels."""
    outlines = [np.array(corner) + size * outline for outline in turned_outline(class_name, angle)]
    first = np.floor(outlines[0].min(axis=0)).astype(int)
    width, height = np.ceil(outlines[0].max(axis=0)).astype(int) - first
    picture = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE), 0)
    draw = ImageDraw.Draw(picture)
    for index, outline in enumerate(outlines):
        # PIL's corners are pixel centres: the centre of the first sub-pixel lies half a sub-pixel from the edge.
        draw.polygon(((outline - first) * SUPERSAMPLE - 0.5).ravel().tolist(), fill=0 if index else 1)
    fine = np.asarray(picture).reshape(height, SUPERSAMPLE, width, SUPERSAMPLE)
    alpha = fine.sum(axis=(1, 3), dtype=np.float32)[..., None] / SUPERSAMPLE**2
    middle = np.array(corner) + size / 2 - first - 0.5
    toward = math.cos(light.angle) * (np.arange(width) - middle[0])
    toward = toward + math.sin(light.angle) * (np.arange(height)[:, None] - middle[1])
    change = (toward / (size / 2)).clip(-1, 1)[..., None] * light.strength
    paint = (np.array(COLORS[color]) + change).clip(0, 255)
    window = canvas[first[1] : first[1] + height, first[0] : first[0] + width]
    window += (alpha * (paint - window)).astype(np.float32)
