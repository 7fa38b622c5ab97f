"""Checks of options: ValueError with the name, the value and what is allowed.

A group of options is a frozen dataclass. Its `__post_init__` calls `declared`, which holds each value to the type that
its field declares, and then the ranges that are its own. So the same sentence answers from Python, the command line and
a YAML. NaN and the infinities are never allowed.
"""

from __future__ import annotations

import functools
import math
import numbers
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: The largest seed that torch's generators take.
LARGEST_SEED = 2**63 - 1


def declared(options: Any, group: str = "") -> None:
    """Check that each number, text, truth value and choice of a dataclass is what its field declares.

    A number must be finite, a whole number whole; None is allowed where the field allows it. Other types (tensors,
    other groups) are left alone. ValueError names the first field that is something else.
    """
    kind_of_group: Any = type(options)
    for name, kind in _hints(kind_of_group).items():
        value = vars(options)[name]
        problem = _problem(value, kind)
        if problem:
            raise ValueError(f"{group}{name} is {value!r}; {problem}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _problem(value: Any, kind: Any) -> str | None:
    """Return what `value` must be instead, or None where it is of the type `kind`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return None if value in parts else f"allowed: {', '.join(map(str, parts))}"
    if origin in (Union, types.UnionType):
        problems = [_problem(value, part) for part in parts if part is not types.NoneType or value is None]
        return None if None in problems else ", or ".join(problem for problem in problems if problem)
    if origin is tuple:
        items = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        if not isinstance(value, tuple) or len(value) != len(items):
            return f"it must be {'a tuple' if Ellipsis in parts else f'a tuple of {len(parts)}'}"
        return next((f"in each place {p}" for p in map(_problem, value, items) if p), None)
    if kind is types.NoneType:
        return None if value is None else "it must be None"
    if kind is bool:
        return None if isinstance(value, bool) else "it must be True or False"
    if kind is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return None if whole else "it must be a whole number"
    if kind is float:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return None if number and math.isfinite(value) else "it must be a finite number"
    if kind is str:
        return None if isinstance(value, str) else "it must be text"
    return None


def finite(group: str = "", /, **values: float | None) -> None:
    """Raise a ValueError for NaN and the infinities. None is a switched-off option."""
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{group}{name} is {value}; it must be a finite number")


def at_least(low: float, group: str = "", /, **values: float | None) -> None:
    """Raise a ValueError for a value below `low`. None is a switched-off option."""
    for name, value in values.items():
        if value is not None and not value >= low:
            raise ValueError(f"{group}{name} is {value}; it must be at least {low:g}")
    finite(group, **values)


def at_most(high: int, group: str = "", /, **values: int) -> None:
    """Raise a ValueError for a whole number above `high`."""
    for name, value in values.items():
        if value > high:
            raise ValueError(f"{group}{name} is {value}; it must be at most {high}")


def above_zero(group: str = "", /, **values: float | None) -> None:
    """Raise a ValueError for a value that is not above 0. None is a switched-off option."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{group}{name} is {value}; it must be above 0")
    finite(group, **values)


def share(group: str = "", /, **values: float) -> None:
    """Raise a ValueError for a value that is not in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{group}{name} is {value}; it must be in [0, 1]")
