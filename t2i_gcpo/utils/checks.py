"""Checks of numbers: ValueError with the name, the value and what is allowed."""

from __future__ import annotations


def at_least(low: float, group: str = "", /, **values: float | None) -> None:
    """ValueError for a value below `low` (or NaN); None is a switched-off option."""
    for name, value in values.items():
        if value is not None and not value >= low:
            raise ValueError(f"{group}{name} is {value}; it must be at least {low:g}")


def above_zero(group: str = "", /, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{group}{name} is {value}; it must be above 0")


def share(group: str = "", /, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{group}{name} is {value}; it must be in [0, 1]")
