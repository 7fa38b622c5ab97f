"""Scores how well two boxes stand to each other as a prompt says: T2I-CompBench's score, T2I-R1's twelve localities.

Boxes are xmin, ymin, xmax, ymax in pixels, y downwards. N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Boxes that overlap more (intersection over union) are not quite beside, above or below each other.
MOST_OVERLAP = 0.1

#: Centres that are no farther apart along an axis are near: 150 pixels of a picture of 512.
NEAR = 150 / 512

#: Locality -> the axis and the sign of the first box's offset from the second; None: near, in any direction.
LOCALITIES: dict[str, tuple[int, int] | None] = {
    "next to": None,
    "near": None,
    "on side of": None,
    "left of": (0, -1),
    "on the left of": (0, -1),
    "right of": (0, 1),
    "on the right of": (0, 1),
    "above": (1, -1),
    "on top of": (1, -1),
    "on the top of": (1, -1),
    "below": (1, 1),
    "on the bottom of": (1, 1),
}


def locality_score(locality: str, first: Sequence[float], second: Sequence[float], *, side: float) -> float:
    """Score whether the first box is where `locality` says, seen from the second: in [0, 1].

    With `d` the offset of the centres along x and y: a direction scores 1 where its own axis has the larger |d|, of the
    right sign, times `min(1, 0.1 / overlap)`; nearness scores 1 where the smaller |d| is below `near`, else `near` over
    the larger one (T2I-CompBench, arXiv 2307.06350). `side`: the picture's longer side, of which `near` is 150/512.

    T2I-R1's code gives "above" and "on top of" no score, and compares shares of the picture with 150, so that any two
    objects are near; this does neither.
    """
    offset = [(first[k] + first[k + 2] - second[k] - second[k + 2]) / 2 for k in (0, 1)]
    distance = [abs(part) for part in offset]
    direction = LOCALITIES[locality]
    if direction is None:
        near = NEAR * side
        return 1.0 if min(distance) < near else near / max(distance)
    axis, sign = direction
    if offset[axis] * sign <= 0 or distance[axis] <= distance[1 - axis]:
        return 0.0
    shared = overlap(first, second)
    return 1.0 if shared < MOST_OVERLAP else MOST_OVERLAP / shared


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the intersection over union of two boxes, in [0, 1]; 0 for boxes without an area."""
    width, height = (max(0.0, min(first[k + 2], second[k + 2]) - max(first[k], second[k])) for k in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def suppress(boxes: Tensor, scores: Tensor, *, most_overlap: float) -> list[int]:
    """Return the indices of boxes [N, 4] that overlap no better one by more than `most_overlap`, best first."""
    chosen: list[int] = []
    rows = boxes.tolist()
    for index in torch.argsort(scores, descending=True, stable=True).tolist():
        if all(overlap(rows[index], rows[better]) <= most_overlap for better in chosen):
            chosen.append(index)
    return chosen
