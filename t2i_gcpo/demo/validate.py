"""What the demo accepts, checked on this side: a request may come from a script as well as from the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PROMPT_LENGTH = 200
"""Characters."""
IMAGES = 8
"""Images of a prompt at once."""
GUIDANCE = 10.0
STEPS = 60
"""Of a live training."""
PROMPTS_A_STEP, GROUP = 8, 16
LEARNING_RATE = 1e-2
SEED = 2**31 - 1
OWN_PROMPTS = 50
"""Prompts of one's own that are trained on."""
RUNS = 8
"""Run folders at once."""


def prompt_text(text: str | None, *, what: str = "The prompt") -> str:
    """The text without superfluous spaces. ValueError: empty, or too long."""
    text = " ".join((text or "").split())
    if not text:
        raise ValueError(f"{what} is empty: write what the image should show, e.g. a photo of a red circle.")
    if len(text) > PROMPT_LENGTH:
        raise ValueError(f"{what} has {len(text)} characters; at most {PROMPT_LENGTH} are allowed.")
    return text


def prompt_lines(text: str | None) -> list[str]:
    """One prompt a line; empty lines are left out. ValueError: none, too many, or one that is too long."""
    lines = [line for line in (text or "").splitlines() if line.strip()]
    if not lines:
        raise ValueError("There are no prompts: write one a line, e.g. a photo of a red circle.")
    if len(lines) > OWN_PROMPTS:
        raise ValueError(f"These are {len(lines)} prompts; at most {OWN_PROMPTS} are allowed.")
    return [prompt_text(line, what=f"Prompt {number}") for number, line in enumerate(lines, start=1)]


def whole(value: Any, what: str, low: int, high: int) -> int:
    """A whole number in [low, high]. ValueError for anything else."""
    checked = number(value, what, low, high)
    if checked != int(checked):
        raise ValueError(f"{what} is {value}; it must be a whole number.")
    return int(checked)


def number(value: Any, what: str, low: float, high: float) -> float:
    """A number in [low, high]. ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{what} is missing; give a number from {low:g} to {high:g}.")
    if not low <= value <= high:  # NaN, too
        raise ValueError(f"{what} is {value:g}; allowed are {low:g} to {high:g}.")
    return float(value)


def one_of(value: Any, what: str, allowed: Sequence[Any]) -> Any:
    """ValueError for a value that is not among `allowed`."""
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}; allowed: {', '.join(map(str, allowed))}.")
    return value
