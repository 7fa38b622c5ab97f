"""Read JSON files that this package wrote; every oddity is a ValueError that names the file and what is wrong.

Every oddity is a ValueError that names the file and what is wrong in it.

A shape says what a value must be:

    int, float, str, bool    a plain value; a whole number is a float, too, and true is no number
    dict, list               with anything in it
    {"step": int, ...}       a mapping that has these keys at least
    {str: shape}             a mapping of any keys, whose values all have the shape
    [shape]                  a list whose items all have the shape
    (shape, None)            one of several; None stands for null
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: JSON's names of the types.
_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    type(None): "null",
}


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it: None (null) for NaN and the infinities."""
    return value if math.isfinite(value) else None


def read_json(path: str | Path, shape: Any = dict) -> Any:
    """Return the content of a JSON file. ValueError, naming the file, where it is not JSON or not of the shape."""
    path = Path(path)
    return _parsed(_text(path), shape, str(path))


def read_json_lines(path: str | Path, shape: Any = dict, *, torn: bool = True) -> list[Any]:
    """Return the rows of a file with one JSON value a line; empty lines are left out.

    With `torn`, a last line without an end, which a crash cuts off, is left out where it cannot be read. ValueError,
    naming the file and the line, for any other that is not JSON or not of the shape.
    """
    path, rows = Path(path), []
    lines = _text(path, cut=torn).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_parsed(line, shape, f"{path}, line {number}", lines=False))
        except ValueError:
            if not (torn and number == len(lines)):  # a whole line ends in \n, so that only a torn one is last
                raise
    return rows


def check_shape(value: Any, shape: Any, where: str) -> None:
    """Raise a ValueError that begins with `where` unless a JSON value has the shape."""
    if isinstance(shape, tuple):
        _check_choice(value, shape, where)
    elif isinstance(shape, dict):
        check_shape(value, dict, where)
        for key, inner in _entries(value, shape, where):
            check_shape(value[key], inner, f"{where}: {key}")
    elif isinstance(shape, list):
        check_shape(value, list, where)
        for index, item in enumerate(value):
            check_shape(item, shape[0], f"{where}: entry {index}")
    elif not _is(value, shape):
        raise ValueError(f"{where} is {_shown(value)}; it must be {_NAMES[shape or type(None)]}")


def _check_choice(value: Any, shapes: tuple[Any, ...], where: str) -> None:
    errors = []
    for shape in shapes:
        try:
            return check_shape(value, shape, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _entries(value: Mapping[str, Any], shape: Mapping[Any, Any], where: str) -> list[tuple[str, Any]]:
    if str in shape:
        return [(key, shape[str]) for key in value]
    for key in shape:
        if key not in value:
            raise ValueError(f"{where} has no {key!r}")
    return list(shape.items())


def _is(value: Any, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _text(path: Path, *, cut: bool = False) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        end = data.rfind(b"\n") + 1
        if cut and error.start >= end:  # a crash cut the last line in the middle of a letter
            return data[:end].decode("utf-8")
        raise ValueError(f"{path} is damaged: byte {error.start} is no UTF-8 text") from error


def _parsed(text: str, shape: Any, where: str, *, lines: bool = True) -> Any:
    """Return the value in a text. `lines`: name the line of a mistake, too."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(f"{where}: not valid JSON (it is nested too deeply)") from error
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}" if lines else where
        raise ValueError(f"{place}: not valid JSON ({error.msg})") from error
    except ValueError as error:  # a number that Python does not read
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    check_shape(value, shape, where)
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond the largest number")
    return value


def _shown(value: Any) -> str:
    """Return a value as an error names it: a plain one itself, a longer one its kind."""
    if isinstance(value, (dict, list)):
        return f"{_NAMES[type(value)]} of {len(value)}" if value else "empty"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"
