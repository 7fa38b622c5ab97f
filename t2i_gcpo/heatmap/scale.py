"""Choose the colour scale of a map: linear, or logarithmic where a few tokens outweigh all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t2i_gcpo.heatmap.kinds import Kind

PERCENTILE = 98
"""A linear scale ends at this percentile of |value| over all panels, so that one token does not bleach the rest."""
HEAVY = 4.0
"""Where the largest value is more than so many times that percentile, the scale goes on to it logarithmically."""


@dataclass(frozen=True)
class Scale:
    """Turns values into shares of the colours: 0 at 0, 1 (of signed maps also -1) at the end and beyond.

    With `linear` it is the symmetric-log scale that matplotlib knows as symlog: linear up to there, logarithmic from
    there to the end, and the linear part has as much of the colours as a factor of ten has beyond it.
    """

    end: float
    linear: float | None = None

    @property
    def linear_share(self) -> float:
        """Return which share of the colours, from 0, is linear."""
        return 1.0 if self.linear is None else 1.0 / (1.0 + np.log10(self.end / self.linear))

    def share(self, values: np.ndarray) -> np.ndarray:
        """Return values as shares in [-1, 1]; NaN is 0."""
        magnitude = np.abs(np.nan_to_num(np.asarray(values, dtype=np.float64)))
        if self.linear is None:
            shares = magnitude / self.end
        else:
            beyond = 1.0 + np.log10(np.maximum(magnitude, self.linear) / self.linear)
            shares = np.where(magnitude <= self.linear, magnitude / self.linear, beyond) * self.linear_share
        return np.sign(np.nan_to_num(values)) * np.minimum(shares, 1.0)


def as_scale(end: float | Scale) -> Scale:
    """Return a scale: a number is the end of a linear one."""
    return end if isinstance(end, Scale) else Scale(float(end))


def percentile_end(values: np.ndarray) -> float:
    """Return the 98th percentile of |values|: the largest where that is 0, and 1 where all are 0."""
    magnitude = _magnitude(values)
    if not magnitude.size or magnitude.max() == 0:
        return 1.0
    return float(np.percentile(magnitude, PERCENTILE)) or float(magnitude.max())


def fit(values: np.ndarray, kind: Kind) -> Scale:
    """Choose the scale for the values of all panels.

    It ends at the largest value where the kind spans all, else at the 98th percentile of |values| or so many times
    their mean as the kind wants at least; where the largest is HEAVY times that, it goes on to it logarithmically.
    """
    magnitude = _magnitude(values)
    if not magnitude.size or magnitude.max() == 0:
        return Scale(1.0)
    largest = float(magnitude.max())
    if kind.whole:
        return Scale(largest)
    end = max(percentile_end(values), kind.least * float(magnitude.mean()))
    return Scale(largest, linear=end) if largest > HEAVY * end else Scale(end)


def words(values: np.ndarray, kind: Kind, *, given: Scale | None = None) -> str:
    """Return the line that stands below the colour bar. given: a scale that was not taken from these values."""
    if not np.nan_to_num(values).any():
        return "all values are 0"
    scale, largest = given or fit(values, kind), float(_magnitude(values).max())
    if scale.linear is not None:
        how = f": linear to {scale.linear:.3g}, logarithmic from there to {scale.end:.3g}"
        text = "one scale for all panels" + how + ("" if given else ", the largest value")
    elif given is not None:
        text = f"one scale for all panels (the largest value of these is {largest:.3g})"
    elif kind.whole:
        text = "one scale for all panels, to the largest value"
    else:
        by = f"the {PERCENTILE}th percentile of |value|"
        if scale.end > percentile_end(values):
            by = "the mean" if kind.least == 1 else f"{kind.least:g} times the mean"
        text = f"one scale for all panels, to {by} (the largest is {largest:.3g})"
    return text + ("; opacity grows with |value|" if kind.signed else "")


def _magnitude(values: np.ndarray) -> np.ndarray:
    magnitude = np.abs(np.asarray(values, dtype=np.float64))
    return magnitude[np.isfinite(magnitude)]
