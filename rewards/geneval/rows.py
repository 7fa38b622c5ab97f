"""Checks a GenEval row before anything is judged by it: a row that could not be judged, or only wrongly, is refused.

A row is `{"tag"?, "include": [{"class", "count"?, "color"?, "position"?: [relation, index]}], "exclude"?: [{"class",
"count"?}]}`. Null means absent, and an absent count is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.geneval.vocabulary import RELATIONS

#: Objects of a class that are looked for in a picture, the most confident first; a larger count is never reached.
MAX_OBJECTS = 16
#: What an object of a row may say; anything else, such as a misspelt "colour", would be left out of the judgement.
INCLUDE_KEYS, EXCLUDE_KEYS = ("class", "count", "color", "position"), ("class", "count")


def check_row(row: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the clause, for a row that cannot be judged."""
    include, exclude = clauses(row, "include"), clauses(row, "exclude")
    for index, clause in enumerate(include):
        where = f"include[{index}]"
        _check_object(clause, where, INCLUDE_KEYS)
        color = clause.get("color")
        if color is not None and (not isinstance(color, str) or not color):
            raise ValueError(f"the 'color' of {where} is {_short(color)}; it must be the name of a colour")
        _check_position(clause, index)
    for index, clause in enumerate(exclude):
        _check_object(clause, f"exclude[{index}]", EXCLUDE_KEYS)
    tag = row.get("tag")
    if tag is not None and not isinstance(tag, str):
        raise ValueError(f"'tag' is {tag!r}; it must be a text, the name of the task")


def clauses(row: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    """Return the row's clauses of a kind, "include" or "exclude"; an absent one has none.

    ValueError for anything but a list of objects.
    """
    given = row.get(kind)
    if given is None:
        return []
    if not isinstance(given, (list, tuple)) or not all(isinstance(clause, Mapping) for clause in given):
        raise ValueError(
            f'{kind!r} is {_short(given)}; it must be a list of objects like {{"class": "star", "count": 1}}'
        )
    return list(given)


def count_of(clause: Mapping[str, Any]) -> int:
    """Return a clause's count; an absent one is 1."""
    count = clause.get("count")
    return 1 if count is None else int(count)


def _check_object(clause: Mapping[str, Any], where: str, keys: Sequence[str]) -> None:
    unknown = [key for key, value in clause.items() if key not in keys and value is not None]
    if unknown:
        raise ValueError(f"{where} has the key {unknown[0]!r}, which nothing is judged by; allowed: {', '.join(keys)}")
    name, count = clause.get("class"), clause.get("count")
    if not isinstance(name, str) or not name:
        raise ValueError(f"the 'class' of {where} is {_short(name)}; it must be the name of a class")
    if count is not None and not (_is_whole(count, least=1) and count <= MAX_OBJECTS):
        raise ValueError(
            f"the 'count' of {where} is {_short(count)}; it must be a whole number from 1 to {MAX_OBJECTS}, the most "
            "objects of a class that are looked for"
        )


def _check_position(clause: Mapping[str, Any], index: int) -> None:
    position = clause.get("position")
    if position is None:
        return
    where = f"'position' of include[{index}]"
    if not isinstance(position, (list, tuple)) or len(position) != 2:
        raise ValueError(f'the {where} is {_short(position)}; it must be a pair like ["left of", 0]')
    relation, target = position
    if relation not in RELATIONS:
        raise ValueError(f"the {where} has an unknown relation {_short(relation)}; allowed: {', '.join(RELATIONS)}")
    if not _is_whole(target, least=0) or target >= index:
        earlier = f"0 to {index - 1}" if index else "there is none before the first"
        raise ValueError(f"the {where} is {_short(position)}; it must point at an earlier include clause ({earlier})")


def _is_whole(number: Any, *, least: int) -> bool:
    if isinstance(number, float):
        return number.is_integer() and number >= least
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
