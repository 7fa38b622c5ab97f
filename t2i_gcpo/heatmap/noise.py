"""Tell credit from noise: which tokens have a contrast below the floor, and how much of the credit lies on them.

A rank gives weight by the order of the contrasts alone, so that differences of rounding get some as well. B images, T
tokens.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from t2i_gcpo import credit
from t2i_gcpo.algorithms import STATS
from t2i_gcpo.heatmap.recipe import Recipe


class Credited(Protocol):
    """Has weights, and what they were made from, as a `Heatmap` has."""

    @property
    def weights(self) -> np.ndarray: ...

    @property
    def grid(self) -> tuple[int, int]: ...

    @property
    def logprob_positive(self) -> np.ndarray | None: ...

    @property
    def logprob_negative(self) -> np.ndarray | None: ...

    @property
    def stats(self) -> dict[str, np.ndarray]: ...

    @property
    def recipe(self) -> Recipe | None: ...

    def map(self, kind: str | None = None) -> tuple[str, np.ndarray]:
        """Return a map's name and values [B, T]."""


def floor(heatmap: Credited) -> float:
    """Return the contrast in nats below which a token's difference is taken for rounding: that of the recipe."""
    return credit.DEFAULT_FLOOR if heatmap.recipe is None else heatmap.recipe.floor


def below_floor(heatmap: Credited) -> np.ndarray | None:
    """Return which tokens have a contrast below the floor, [B, T] bool; None where credit is not by contrast.

    The floor of a full-codebook divergence is that of a difference of this size.
    """
    recipe = heatmap.recipe
    if recipe is not None and recipe.credit != "contrast":
        return None
    if recipe is not None and recipe.divergence in STATS:
        name, curvature = STATS[recipe.divergence]
        values = heatmap.stats.get(name)
        return None if values is None else values < floor(heatmap) ** 2 / curvature
    if heatmap.logprob_positive is None or heatmap.logprob_negative is None:
        return None
    return np.abs(heatmap.logprob_positive - heatmap.logprob_negative) < floor(heatmap)


def share(heatmap: Credited) -> np.ndarray | None:
    """Return the share of each image's credit on tokens below the floor, [B]; NaN where it has no credit."""
    noise = below_floor(heatmap)
    if noise is None:
        return None
    total = heatmap.weights.sum(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(noise, heatmap.weights, 0.0).sum(axis=1, dtype=np.float64) / total)


def words(heatmap: Credited) -> str:
    """Say the share of the credit on tokens below the floor: of all images, and from image to image; "" if unknown."""
    shares = share(heatmap)
    if shares is None or not np.isfinite(shares).any():
        return ""
    known = np.isfinite(shares)
    credits = heatmap.weights[known].sum(axis=1, dtype=np.float64)
    overall = float((shares[known] * credits).sum() / credits.sum())
    text = f"share of the credit on tokens below the floor (contrast under {floor(heatmap):g} nats): {overall:.0%}"
    text = text.replace("%", " %")
    low, high = shares[known].min(), shares[known].max()
    return text if known.sum() == 1 else f"{text}, from image to image {100 * low:.0f} to {100 * high:.0f} %"


def ranks(weights: np.ndarray) -> np.ndarray:
    """Return each token's place in its image by weight [B, T], as int64: 1 has the most, equal ones share a place."""
    ordered = np.sort(weights, axis=1)
    above = [len(row) - np.searchsorted(row, own, side="right") for row, own in zip(ordered, weights, strict=True)]
    return np.stack(above) + 1


def describe(heatmap: Credited, kind: str, b: int, *, cells: int = 3) -> str:
    """Say in numbers what image `b` shows under a map, for who cannot see it."""
    values = heatmap.map(kind)[1][b]
    known = np.where(np.isfinite(values), values, 0.0)
    places = []
    for t in np.argsort(-np.abs(known), kind="stable")[:cells]:
        row, column = divmod(int(t), heatmap.grid[1])
        places.append(f"row {row}, column {column}: {known[t]:.3g}")
    text = (
        f"{kind} of {len(values)} tokens, from {known.min():.3g} to {known.max():.3g}; largest at {'; '.join(places)}"
    )
    shares = share(heatmap)
    if shares is not None and np.isfinite(shares[b]):
        text += f"; {100 * shares[b]:.0f} % of the credit on tokens below the floor"
    return text
