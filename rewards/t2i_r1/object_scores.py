"""Scores a picture as T2I-R1 does, from the objects that were detected in it (arXiv 2505.00703).

N boxes of an object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rewards.t2i_r1 import fields as t2i_r1
from rewards.t2i_r1.spatial import LOCALITIES, locality_score, suppress

#: Two boxes of an object that overlap more (intersection over union) are one object.
SAME_OBJECT = 0.5

#: Shares of a score: each of two objects that is there, and how well both stand; a wrong number of objects.
PRESENT, PLACED, MISCOUNTED = 0.2, 0.5, 0.2


@dataclass(frozen=True)
class Boxes:
    """Holds the boxes of one object in one picture, on the CPU."""

    boxes: Tensor
    """[N, 4] float32: xmin, ymin, xmax, ymax, pixels."""
    scores: Tensor
    """[N] float32 in (0, 1]."""


def scorer(row: t2i_r1.Row, *, side: float) -> Callable[[Mapping[str, Boxes]], float]:
    """Return what makes the score of the row's task of each noun's boxes. `side`: the picture's longer side, pixels.

    ValueError at once for a row without the fields of its task.
    """
    nouns = row.nouns()
    if nouns and row.task == t2i_r1.SPATIAL:
        first, second, locality = row.spatial(nouns, LOCALITIES)
        return lambda objects: placed(objects[first], objects[second], locality, side=side)
    if nouns and row.task == t2i_r1.NUMERACY:
        numbers = row.numbers(nouns)
        return lambda objects: counted(numbers, objects)
    return lambda objects: present(nouns, objects)


def present(nouns: Sequence[str], objects: Mapping[str, Boxes]) -> float:
    """Return the share of the nouns that is there; 1 without nouns."""
    return sum(len(objects[noun].scores) > 0 for noun in nouns) / len(nouns) if nouns else 1.0


def placed(first: Boxes, second: Boxes, locality: str, *, side: float) -> float:
    """Give 0.2 for each of the two objects; with both, also half of how well their surest boxes stand."""
    there = [one for one in (first, second) if len(one.scores) > 0]
    score = PRESENT * len(there)
    if len(there) == 2:
        boxes = [one.boxes[one.scores.argmax()].tolist() for one in there]
        score += PLACED * locality_score(locality, *boxes, side=side)
    return score


def counted(numbers: Sequence[tuple[str, int]], objects: Mapping[str, Boxes]) -> float:
    """Return the mean over the objects: 1 for their number, 0.2 for another one, 0 for none."""
    total = 0.0
    for noun, number in numbers:
        detected = objects[noun]
        count = len(suppress(detected.boxes, detected.scores, most_overlap=SAME_OBJECT))
        total += 0.0 if count == 0 else (1.0 if count == number else MISCOUNTED)
    return total / len(numbers)
