"""GenEval's verdict (2310.11513): do the detections in a picture satisfy what its prompt asks for?

A picture is correct when every `include` clause holds (the clauses are ANDed, each looks at the `count` most confident
objects of its class) and no `exclude` clause finds `count` objects. Boxes are `(xmin, ymin, xmax, ymax)`, pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewards.geneval.rows import MAX_OBJECTS, check_row, count_of

#: Detections at or below these scores do not count; the stricter one holds for every class of a counting prompt.
SCORE_THRESHOLD = 0.3
COUNTING_SCORE_THRESHOLD = 0.9
#: This share of the two objects' extents is taken off the distance of their centres before the direction is judged.
POSITION_MARGIN = 0.1
#: A relation holds where more than this share of the distance is left along its axis.
DIRECTION_THRESHOLD = 0.5
#: Remaining offsets below this many pixels on both axes are no relation at all.
OFFSET_EPS = 1e-3

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """Describes one object that a detector has seen."""

    class_name: str
    score: float
    """Confidence in [0, 1]."""
    box: Box
    """(xmin, ymin, xmax, ymax), pixels."""
    mask: np.ndarray | None = field(default=None, compare=False, repr=False)
    """[H, W] bool, or None where the detector gives none."""
    color: str | None = None
    """Its colour's name, or None where the detector does not name colours."""


#: Names the colour of each detection, for detectors that do not.
ColorNamer = Callable[[list[Detection]], Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """Says whether a picture shows what its prompt asks for."""

    correct: bool
    """True when every clause holds."""
    clauses: list[bool]
    """One entry per `include` clause, then one per `exclude` clause."""
    reason: str
    """What failed, one line a failure; empty when correct."""
    graded: float | None = None
    """The graded score (`rewards/geneval/graded.py`), where it was asked for."""
    seen: str = field(default="", compare=False)
    """The objects that the verdict took into account, counted in words, where the reward says them."""


def relations(first: Box, second: Box) -> set[str]:
    """Say where `first` lies relative to `second`: a subset of the four relations, at most two of them (a diagonal).

    With `d` the offset of the centres and `s` the sum of the two extents along an axis (x, y separately),
    `r = max(|d| - 0.1 s, 0) * sign(d) / norm(d)`; a relation holds where its component of `r` is beyond 0.5.
    """
    dx, dy = ((first[k] + first[k + 2] - second[k] - second[k + 2]) / 2 for k in (0, 1))
    extents = (abs(first[k + 2] - first[k]) + abs(second[k + 2] - second[k]) for k in (0, 1))
    left_over = [
        math.copysign(max(abs(offset) - POSITION_MARGIN * extent, 0.0), offset)
        for offset, extent in zip((dx, dy), extents, strict=True)
    ]
    if max(map(abs, left_over)) < OFFSET_EPS:
        return set()
    x, y = (offset / math.hypot(dx, dy) for offset in left_over)
    directions = {
        "left of": x < -DIRECTION_THRESHOLD,
        "right of": x > DIRECTION_THRESHOLD,
        "above": y < -DIRECTION_THRESHOLD,
        "below": y > DIRECTION_THRESHOLD,
    }
    return {name for name, holds in directions.items() if holds}


def kept_objects(detections: Sequence[Detection], tag: str | None = None) -> dict[str, list[Detection]]:
    """Sort detections by class: those that count under a task's threshold, most confident first, at most 16."""
    threshold = COUNTING_SCORE_THRESHOLD if tag == "counting" else SCORE_THRESHOLD
    by_class: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda one: one.score, reverse=True):
        same = by_class.setdefault(detection.class_name, [])
        if detection.score > threshold and len(same) < MAX_OBJECTS:
            same.append(detection)
    return by_class


def colorless(detections: Sequence[Detection], metadata: Mapping[str, Any]) -> list[Detection]:
    """Return the detections whose colour `judge` will ask for, of those that come without one; each once."""
    objects = kept_objects(detections, metadata.get("tag"))
    asked: dict[int, Detection] = {}
    for clause in metadata.get("include") or []:
        matches = objects.get(clause["class"], [])[: count_of(clause)]
        if clause.get("color") is not None and len(matches) >= count_of(clause):
            asked.update((id(one), one) for one in matches if one.color is None)
    return list(asked.values())


def judge(detections: Sequence[Detection], metadata: Mapping[str, Any], *, colors: ColorNamer | None = None) -> Verdict:
    """Judge one picture as GenEval does.

    Args:
        detections: what a detector found, in any order.
        metadata: a GenEval row, `{"tag", "include": [{"class", "count", "color"?, "position"?: [relation, index]}],
            "exclude"?: [{"class", "count"}]}`; `index` points at an earlier `include` clause. Null means absent, and
            an absent count is 1.
        colors: names the colours of detections that come without one; called once a clause that needs it.

    Raises ValueError for a row without clauses, an unknown relation, a position that points at no earlier clause, and a
    colour clause that nobody can check.
    """
    include, exclude = metadata.get("include") or [], metadata.get("exclude") or []
    if not include and not exclude:
        raise ValueError(
            f"GenEval metadata for {metadata.get('prompt')!r} has neither include nor exclude clauses (keys: "
            f"{sorted(metadata)}); give a GenEval row such as {{'tag': ..., 'include': [{{'class': ..., 'count': 1}}]}}"
        )
    check_row(metadata)
    objects = kept_objects(detections, metadata.get("tag"))
    groups: list[list[Detection] | None] = []  # per include clause its objects, None where the clause failed
    failures: list[str] = []
    for clause in include:
        matches = objects.get(clause["class"], [])[: count_of(clause)]
        failure = (
            _missing(clause, matches)
            or _wrong_color(clause, matches, colors)
            or _wrong_position(clause, matches, groups)
        )
        groups.append(None if failure else matches)
        failures.append(failure)
    for clause in exclude:
        number = len(objects.get(clause["class"], []))
        excess = number >= count_of(clause)
        failures.append(f"expected {clause['class']}<{count_of(clause)}, found {number}" if excess else "")
    clauses = [not failure for failure in failures]
    return Verdict(all(clauses), clauses, "\n".join(filter(None, failures)))


def _missing(clause: Mapping[str, Any], matches: list[Detection]) -> str:
    if len(matches) < count_of(clause):
        return f"expected {clause['class']}>={count_of(clause)}, found {len(matches)}"
    return ""


def _wrong_color(clause: Mapping[str, Any], matches: list[Detection], colors: ColorNamer | None) -> str:
    wanted = clause.get("color")
    if wanted is None:
        return ""
    names = color_names(matches, colors)
    if all(name == wanted for name in names):
        return ""
    return f"expected {wanted} {clause['class']}>={count_of(clause)}, found {' and '.join(names)}"


def color_names(matches: list[Detection], colors: ColorNamer | None) -> list[str]:
    """Name the colour of each object. ValueError where one comes without a colour and `colors` cannot name it."""
    unnamed = [one for one in matches if one.color is None]
    if unnamed and colors is None:
        raise ValueError(
            f"the prompt names a colour, but the detector gave no colour for {unnamed[0].class_name!r} and no "
            "`colors` was passed; pass colors=, a function from detections to colour names"
        )
    names = list(colors(unnamed)) if unnamed and colors is not None else []
    if len(names) != len(unnamed):
        raise ValueError(f"`colors` named {len(names)} colours for {len(unnamed)} detections; it must name one each")
    remaining = iter(names)
    return [one.color if one.color is not None else next(remaining) for one in matches]


def _wrong_position(clause: Mapping[str, Any], matches: list[Detection], groups: list[list[Detection] | None]) -> str:
    if clause.get("position") is None:
        return ""
    relation, index = clause["position"][0], int(clause["position"][1])
    targets = groups[index]
    if targets is None:
        return f"no target for {clause['class']} to be {relation}"
    for one in matches:
        for target in targets:
            seen = relations(one.box, target.box)
            if relation not in seen:
                names = " and ".join(sorted(seen)) or "neither side"
                return f"expected {clause['class']} {relation} {target.class_name}, found {names}"
    return ""
