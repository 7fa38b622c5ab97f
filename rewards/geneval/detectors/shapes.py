"""Finds ShapeScenes' objects: coloured shapes on the plain background, drawn cleanly or by a generator.

How: (1) the nearest palette colour of every pixel; (2) per colour, blobs that survive a 3x3 opening, so that the fringe
of an edge (orange over grey looks brown) is no object; (3) per blob, how much of each pixel its colour covers, which
puts the anti-aliased edge back; (4) each class's outline, laid over the blob by area and centre of mass, and compared
(IoU).

B images, H, W their sides, h, w a blob's window, C classes, N the side of the grid on which shapes are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from rewards.geneval.detectors import Detector
from rewards.geneval.rules import Detection
from rewards.geneval.vocabulary import BACKGROUND, CLASSES, COLORS, OUTLINES, coverage

if TYPE_CHECKING:
    from torch import Tensor

#: A shape's side, as a share of the image's shorter side: ShapeScenes paints 0.25 and 0.33. Others are specks or
#: backdrops.
SIDES = (0.14, 0.6)
#: Blobs below a third of the smallest star (the class that fills least of its box) are not looked at.
LEAST_FILL = 0.36 / 3
#: RGB distance from the line background-colour beyond which a pixel is of another colour. Palette colours are at least
#: 65 off each other's lines.
OFF_COLOR = 50.0
#: Thin parts that the opening cuts off (a star's tips) lie within so many pixels of what is left.
TIP = 5
#: Width of an edge's fringe, pixels.
FRINGE = 2
#: Side of the grid on which an outline fills its box, and the margin around it.
GRID, MARGIN = 40, 6
#: Likeness to the best class (its IoU, eased for thin outlines) -> score. On rendered shapes it is 0.95 at least when
#: clean, blurred (sigma 1) or noisy (sigma 8), 0.86 at least with edges that wobble by half a pixel, and 0.82 at most
#: with a quarter missing.
LIKENESS_TO_SCORE = ((0.60, 0.0), (0.80, 0.3), (0.88, 0.92), (0.95, 1.0))
#: Lead over the second-best class's IoU -> factor on the score.
LEAD_TO_FACTOR = ((0.0, 0.0), (0.06, 1.0))
#: A mismatch that holds a square of so many grid cells is a lump (a hole, a bump), not a wobbly edge: about 3 pixels.
LUMP = 5
#: Lumps' share of the outline's area -> factor on the score.
LUMPS_TO_FACTOR = ((0.02, 1.0), (0.08, 0.0))
#: Share of the surrounding ring that shows another colour -> factor on the score.
TOUCHING_TO_FACTOR = ((0.10, 1.0), (0.30, 0.0))

_CROSS_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_CROSS_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)
_SQUARE = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class _Blob:
    """Holds one opened, connected patch of one colour."""

    image: int
    color: str
    top: int
    left: int
    region: np.ndarray
    """[h, w] bool, the pixels that may belong to it, fringe included; `top`, `left` place the window in the image."""


class ShapesDetector(Detector):
    """Finds the objects of ShapeScenes, with class, colour, box, mask and a score.

    A cleanly drawn shape scores above 0.95 and a slightly garbled one above 0.9; one with a piece missing or added,
    with a hole, or in two colours stays below 0.9, and what resembles no class below 0.3.
    """

    classes = CLASSES
    color_names = tuple(COLORS)

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """Return the detections of each of `images` [B, 3, H, W] uint8, most confident first.

        ValueError for other input.
        """
        if images.ndim != 4 or images.shape[1] != 3 or str(images.dtype) != "torch.uint8":
            raise ValueError(f"images must be uint8 [B, 3, H, W]; got {images.dtype} {list(images.shape)}")
        pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy().astype(np.float32)
        detections: list[list[Detection]] = [[] for _ in pixels]
        for blob in _blobs(nearest_colors(pixels)):
            detection = _describe(blob, pixels[blob.image])
            if detection is not None:
                detections[blob.image].append(detection)
        for of_image in detections:
            of_image.sort(key=lambda one: one.score, reverse=True)
        return detections


def nearest_colors(pixels: np.ndarray) -> np.ndarray:
    """Return the nearest colour [B, H, W] of pixels [B, H, W, 3] float32 RGB.

    0 is the background, k + 1 the k-th of `COLORS`.
    """
    palette = np.array([BACKGROUND, *COLORS.values()], dtype=np.float32)
    best = np.full(pixels.shape[:-1], np.inf, dtype=np.float32)
    index = np.zeros(pixels.shape[:-1], dtype=np.uint8)
    for k, color in enumerate(palette):
        # |x - c|^2 without |x|^2, which is the same for all colours.
        distance = color @ color - pixels @ (2 * color)
        nearer = distance < best
        best[nearer] = distance[nearer]
        index[nearer] = k
    return index


def _opened(mask: np.ndarray) -> np.ndarray:
    """Open every plane of [B, H, W] by 3x3; outside the image counts as empty."""
    for combine in (np.logical_and, np.logical_or):
        for axis in (1, 2):
            width = [(0, 0), (0, 0), (0, 0)]
            width[axis] = (1, 1)
            padded = np.pad(mask, width)
            size = mask.shape[axis]
            one, two, three = (padded.take(range(k, k + size), axis=axis) for k in range(3))
            mask = combine(combine(one, two), three)
    return mask


def _blobs(nearest: np.ndarray) -> Iterator[_Blob]:
    """Yield the blobs of colour indices [B, H, W] that are large enough to be a shape."""
    height, width = nearest.shape[1:]
    least_area = LEAST_FILL * (SIDES[0] * min(height, width)) ** 2
    reach = TIP + FRINGE
    for k, color in enumerate(COLORS, start=1):
        mask = nearest == k
        images = np.flatnonzero(mask.sum(axis=(1, 2)) >= least_area)
        if not len(images):
            continue
        mask = mask[images]
        labels, _ = ndimage.label(_opened(mask), structure=_CROSS_IN_PLANE)
        for label, window in enumerate(ndimage.find_objects(labels), start=1):
            if np.count_nonzero(labels[window] == label) < least_area:
                continue
            plane, rows, columns = window
            rows = slice(max(rows.start - reach, 0), rows.stop + reach)
            columns = slice(max(columns.start - reach, 0), columns.stop + reach)
            near = labels[plane.start, rows, columns]
            same_color = mask[plane.start, rows, columns]
            region = ndimage.binary_dilation(near == label, _SQUARE, iterations=TIP, mask=same_color)
            region = ndimage.binary_dilation(region, _SQUARE, iterations=FRINGE)
            region &= (near == label) | (near == 0)  # not into another blob
            yield _Blob(int(images[plane.start]), color, rows.start, columns.start, region)


def _describe(blob: _Blob, pixels: np.ndarray) -> Detection | None:
    """Say what a blob is, from its image's pixels [H, W, 3]; None where it is too small, too large or like no shape."""
    height, width = blob.region.shape
    window = pixels[blob.top : blob.top + height, blob.left : blob.left + width]
    cover, foreign = _cover(window, blob.color)
    cover = np.where(blob.region, cover, 0)
    solid = cover >= 0.5
    least, most = (share * min(pixels.shape[:2]) for share in SIDES)
    if not solid.any() or not least**2 * _templates().areas.min() <= cover.sum() <= most**2:
        return None
    around = ndimage.binary_dilation(solid, _SQUARE, iterations=FRINGE) & ~solid
    score = _ramp(np.count_nonzero(around & foreign) / np.count_nonzero(around), TOUCHING_TO_FACTOR)
    if score == 0:
        return None
    match = _compare(cover)
    score *= _ramp(match.likeness, LIKENESS_TO_SCORE)
    score *= _ramp(match.lead, LEAD_TO_FACTOR) * _ramp(match.lumps, LUMPS_TO_FACTOR)
    if score == 0 or not least <= match.side <= most:
        return None
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    mask[blob.top : blob.top + height, blob.left : blob.left + width] = solid
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    box = (float(blob.left + left), float(blob.top + top), float(blob.left + right), float(blob.top + bottom))
    return Detection(match.class_name, score, box, mask, blob.color)


def _ramp(value: float, knots: tuple[tuple[float, float], ...]) -> float:
    """Interpolate by straight lines between the knots (x, y), constant beyond them."""
    return float(np.interp(value, [x for x, _ in knots], [y for _, y in knots]))


def _cover(window: np.ndarray, color: str) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of each pixel of [h, w, 3] RGB `color` covers, and which pixels show yet another colour.

    A pixel of an anti-aliased edge is `background + cover * (color - background)`. The cover's ramp is made twice as
    steep around 0.5: an edge keeps its area, while noise outside and pale paint inside saturate.
    """
    background = np.array(BACKGROUND, dtype=np.float32)
    direction = np.array(COLORS[color], dtype=np.float32) - background
    offset = window - background
    share = np.clip(offset @ direction / (direction @ direction), 0, 1)
    foreign = np.linalg.norm(offset - share[..., None] * direction, axis=-1) > OFF_COLOR
    return np.where(foreign, 0, np.clip(2 * share - 0.5, 0, 1)), foreign


@dataclass(frozen=True)
class _Templates:
    """Holds the outline, the area and the centre of mass of each class.

    Outlines are [C, N, N] bool, areas shares of the box [C], centres [C, 2] in the box, as (y, x).
    """

    outlines: np.ndarray
    areas: np.ndarray
    centers: np.ndarray
    ease: np.ndarray
    """[C] in (0, 1], 1 for circle and square: `sqrt(4 * area / (length * side))`. The same wobble of the edge costs a
    long
    outline around little area more overlap."""


@lru_cache(maxsize=1)
def _templates() -> _Templates:
    shapes = np.stack([coverage(name, GRID) for name in CLASSES])
    places = (np.arange(GRID) + 0.5) / GRID
    areas = shapes.mean(axis=(1, 2))
    weights = shapes / shapes.sum(axis=(1, 2), keepdims=True)
    centers = np.stack([weights.sum(axis=2) @ places, weights.sum(axis=1) @ places], axis=1)
    lengths = np.array([sum(_length(polygon) for polygon in OUTLINES[name]) for name in CLASSES])
    outlines = np.pad(shapes >= 0.5, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    return _Templates(outlines, areas, centers, np.minimum(np.sqrt(4 * areas / lengths), 1))


def _length(polygon: list[tuple[float, float]]) -> float:
    return sum(math.dist(one, two) for one, two in zip(polygon, polygon[1:] + polygon[:1], strict=True))


@dataclass(frozen=True)
class _Match:
    class_name: str
    side: float
    """Side of the outline laid over the blob, in pixels."""
    likeness: float
    """1 - ease * (1 - IoU) with the best class."""
    lead: float
    """IoU with the best class less that with the second best."""
    lumps: float
    """Area of thick mismatches as a share of the outline's area."""


def _compare(cover: np.ndarray) -> _Match:
    """Find the class whose outline is most like a blob's cover [h, w].

    Outlines get the blob's area and centre of mass, which blur and noise leave alone.
    """
    templates = _templates()
    height, width = cover.shape
    area = cover.sum()
    center = np.array([cover.sum(axis=1) @ (np.arange(height) + 0.5), cover.sum(axis=0) @ (np.arange(width) + 0.5)])
    sides = np.sqrt(area / templates.areas)
    corners = center / area - sides[:, None] * templates.centers
    steps = (np.arange(-MARGIN, GRID + MARGIN) + 0.5) / GRID
    places = corners[:, :, None] + sides[:, None, None] * steps - 0.5  # [C, 2, N], in pixel centres
    # Linear interpolation as two small matrix products: tents around the sampled places.
    down = np.maximum(1 - np.abs(places[:, 0, :, None] - np.arange(height)), 0)
    across = np.maximum(1 - np.abs(places[:, 1, :, None] - np.arange(width)), 0)
    drawn = (down @ cover @ across.transpose(0, 2, 1)) >= 0.5
    mismatch = drawn ^ templates.outlines
    overlaps = 1 - mismatch.sum(axis=(1, 2)) / (drawn | templates.outlines).sum(axis=(1, 2))
    first, second = np.argsort(-overlaps)[:2]
    lumps = ndimage.binary_opening(mismatch[first], np.ones((LUMP, LUMP), dtype=bool))
    return _Match(
        class_name=CLASSES[first],
        side=float(sides[first]),
        likeness=float(1 - templates.ease[first] * (1 - overlaps[first])),
        lead=float(overlaps[first] - overlaps[second]),
        lumps=float(lumps.sum() / templates.outlines[first].sum()),
    )
