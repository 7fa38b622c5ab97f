"""Check what the demo is sent on this side: a request may come from a script as well as from the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from t2i_gcpo.data.prompt_files import check_text

PROMPT_LENGTH = 200
"""Characters."""
IMAGES = 8
"""Images of a prompt at once."""
PROMPTS = 240
"""Held-out prompts of a run over many."""
GUIDANCE = 10.0
STEPS = 60
"""Steps of a live training, at most."""
PROMPTS_A_STEP, GROUP = 8, 16
LEARNING_RATE = 1e-2
SEED = 2**31 - 1
OWN_PROMPTS = 50
"""Prompts of one's own that are trained on."""
RUNS = 8
"""Run folders at once."""


def prompt_text(text: Any, *, what: str = "The prompt") -> str:
    """Return a text without superfluous spaces. ValueError: it is none, empty, or too long."""
    text = " ".join(_text(text, what).split())
    if not text:
        raise ValueError(f"{what} is empty: write what the image should show, e.g. a photo of a red circle.")
    if len(text) > PROMPT_LENGTH:
        raise ValueError(f"{what} has {len(text)} characters; at most {PROMPT_LENGTH} are allowed.")
    return check_text(text, what)


def prompt_lines(text: Any) -> list[str]:
    """Return the prompts of a text, one a line, without empty lines.

    ValueError: none, too many, or one that is too long.
    """
    lines = [line for line in _text(text, "The list of prompts").split("\n") if line.strip()]
    if not lines:
        raise ValueError("There are no prompts: write one a line, e.g. a photo of a red circle.")
    if len(lines) > OWN_PROMPTS:
        raise ValueError(f"These are {len(lines)} prompts; at most {OWN_PROMPTS} are allowed.")
    return [prompt_text(line, what=f"Prompt {number}") for number, line in enumerate(lines, start=1)]


def _text(value: Any, what: str) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{what} is {shown(value)}; it must be a text.")
    return value or ""


def shown(value: Any) -> str:
    """Return a value as it can stand in a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def paths(value: Any, what: str, most: int) -> list[str]:
    """Return the paths that a list names, without empty ones.

    ValueError: it is no list of texts, or has more than `most`.
    """
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise ValueError(f"{what} are {shown(value)}; they must be a list of paths.")
    named = [path for path in value if path.strip()]
    if len(named) > most:
        raise ValueError(f"These are {len(named)} {what[4:]}; at most {most} are shown at once.")
    return named


def clicked(event: gr.EventData) -> Any:
    """Return what was clicked: an index, or two. ValueError: the event says nothing of the kind."""
    data = event._data  # Gradio's own SelectData fails where a script leaves it out
    if not isinstance(data, dict) or "index" not in data:
        raise ValueError("The click says nothing of where it was.")
    return data["index"]


def pair(value: Any) -> tuple[Any, Any]:
    """Return the two members of a list. ValueError for anything else."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"The click is {shown(value)}; it must have two numbers.")
    return value[0], value[1]


def some_of(values: Any, what: str, allowed: Sequence[Any]) -> list[Any]:
    """Return the members of a list. ValueError: it is no list, or a member is not among `allowed`."""
    if not isinstance(values, list):
        raise ValueError(f"{what} is {shown(values)}; it must be a list of: {', '.join(map(str, allowed))}.")
    return [one_of(value, what, allowed) for value in values]


def whole(value: Any, what: str, low: int, high: int) -> int:
    """Return a whole number in [low, high]. ValueError for anything else."""
    checked = number(value, what, low, high)
    if checked != int(checked):
        raise ValueError(f"{what} is {value}; it must be a whole number.")
    return int(checked)


def number(value: Any, what: str, low: float, high: float) -> float:
    """Return a number in [low, high]. ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{what} is missing; give a number from {low:g} to {high:g}.")
    if not low <= value <= high:  # NaN, too
        text = f"{value:g}" if isinstance(value, float) or abs(value) < 10**15 else shown(value)
        raise ValueError(f"{what} is {text}; allowed are {low:g} to {high:g}.")
    return float(value)


def one_of(value: Any, what: str, allowed: Sequence[Any]) -> Any:
    """Return a value that is among `allowed`. ValueError for any other."""
    if value not in allowed:
        raise ValueError(f"{what} is {shown(value)}; allowed: {', '.join(map(str, allowed))}.")
    return value
