"""Gives every algorithm one colour, the same in figures, reports, notebooks and the demo.

The first four are Okabe and Ito's (Color Universal Design, 2008); the others were chosen as far from them as possible.
Each has a contrast of at least 3 to 1 on white and on the demo's dark page (WCAG 2.2, 1.4.11), and each two are told
apart with normal and with colour-blind eyes (Machado et al., 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Row of `algorithms.TABLE` -> its colour.
COLORS: dict[str, str] = {
    "gcpo": "#0072b2",
    "grpo": "#d55e00",
    "dapo": "#009e73",
    "gcpo_shuffled": "#cc79a7",
    "dr_grpo": "#fe2c73",
    "gcpo_dapo": "#6690f2",
    "gcpo_entropy": "#f90dd1",
    "gcpo_random": "#8e64fe",
    "gcpo_magnitude": "#587c3a",
    "gcpo_variance": "#929948",
    "gcpo_sibling": "#c00384",
    "gcpo_clauses": "#c4221a",
    "gcpo_events": "#6e644b",
    "stage": "#a705d1",
    "critical_tokens": "#8c29f9",
    "gcpo_events_matched": "#b419a0",
}
#: Colour of a run whose algorithm is not in the table.
OTHER = "#777777"
#: The first line of an algorithm is drawn through, the next ones by these lengths of ink and gap, in line widths.
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5, 2),
    (1.5, 1.5),
    (6, 2, 1.5, 2),
    (10, 3),
    (6, 2, 1.5, 2, 1.5, 2),
    (3, 3),
    (10, 2, 3, 2),
)


@dataclass(frozen=True)
class Style:
    """Says how a line is drawn."""

    color: str
    dash: tuple[float, ...] = ()
    """Lengths of ink and gap, in line widths; () is drawn through."""


def color(algorithm: str) -> str:
    """Return the colour of an algorithm."""
    return COLORS.get(algorithm, OTHER)


def styles(algorithms: Sequence[str]) -> list[Style]:
    """Return a style for each line, given its algorithm: the colour says which, the dashes tell several of one apart.

    >>> [(style.color, style.dash) for style in styles(["grpo", "gcpo", "gcpo"])]
    [('#d55e00', ()), ('#0072b2', ()), ('#0072b2', (5, 2))]
    """
    earlier = [list(algorithms[:k]).count(name) for k, name in enumerate(algorithms)]
    return [Style(color(name), DASHES[number % len(DASHES)]) for name, number in zip(algorithms, earlier, strict=True)]
