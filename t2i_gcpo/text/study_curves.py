"""Draw a study of text: reward over completions sampled, and the held-out accuracy at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from t2i_gcpo.algorithms.palette import COLORS, Style, color, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Completions sampled, and the mean reward of those that were sampled since the place before.
Curve = tuple[Sequence[float], Sequence[float]]
#: Completions over which a curve is averaged: 5 steps of 64.
WINDOW = 320


def smoothed(curve: Curve, places: np.ndarray, window: float = WINDOW) -> np.ndarray:
    """Return the mean reward of the `window` completions before each place, of fewer at the start."""
    ends, rewards = np.asarray(curve[0], dtype=float), np.asarray(curve[1], dtype=float)
    total = np.concatenate([[0.0], np.cumsum(rewards * np.diff(ends, prepend=0.0))])
    at = np.concatenate([[0.0], ends])
    low, high = np.maximum(places - window, 0.0), np.minimum(places, ends[-1])
    return (np.interp(high, at, total) - np.interp(low, at, total)) / (high - low)


def draw(
    curves: Mapping[str, Sequence[Curve]],
    *,
    start: float,
    finals: Mapping[str, tuple[float, float, Sequence[float]]],
) -> Figure:
    """Draw a figure of two panels: an arm that is named like an algorithm has its colour, others are grey, with dashes.

    curves: arm -> one curve a seed; thin lines are seeds, thick ones their mean. start: accuracy before training.
    finals: arm -> completions sampled, accuracy and its interval after training.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for style, (arm, seeds) in zip(_styles(list(curves)), curves.items(), strict=True):
        places = np.linspace(WINDOW / 4, min(ends[-1] for ends, _ in seeds), 60)
        lines = [smoothed(curve, places) for curve in seeds]
        for line in lines:
            left.plot(places, line, color=style.color, alpha=0.2, linewidth=0.8)
        dash = (0, style.dash) if style.dash else "solid"
        left.plot(places, np.mean(lines, axis=0), color=style.color, linestyle=dash, linewidth=1.8, label=arm)
    for k, (arm, (_, mean, (low, high))) in enumerate(finals.items()):
        right.errorbar([mean], [-k], xerr=[[mean - low], [high - mean]], color=color(arm), marker="o", capsize=3)
    right.axvline(start, color="#777777", linestyle="--", linewidth=1)
    right.set_yticks([-k for k in range(len(finals))], list(finals))
    right.set_title("held-out accuracy after training (dashed: before)", fontsize=10)
    left.set_title(f"reward of the sampled completions, mean of the last {WINDOW}", fontsize=10)
    left.set_xlabel("completions sampled, discarded ones included", fontsize=9)
    left.legend(fontsize=9)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _styles(arms: Sequence[str]) -> list[Style]:
    """Return a style for each arm; dashes tell those apart that are named like no algorithm."""
    return styles([arm if arm in COLORS else "" for arm in arms])
