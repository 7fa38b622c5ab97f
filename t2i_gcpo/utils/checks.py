"""Checks of numbers: ValueError with the name, the value and what is allowed. NaN and the infinities are never allowed."""

from __future__ import annotations

import math


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
