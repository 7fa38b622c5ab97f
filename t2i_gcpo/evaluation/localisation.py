"""Measures where a map of token values lies, compared with cells that are known.

The measures are AUROC, the pointing game, and the share of credit.

B images, T = rows * columns cells in raster order, H, W pixels. A map is [B, T] numbers, higher = more credit; a target
is [B, T] bool. Every function gives one number an image, [B] float64, NaN for an image that has no target cell (AUROC
also: no other cell).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def cells(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the cells [..., T] bool in which a mask [..., H, W] bool has a pixel.

    Pixel (y, x) is in cell (y rows // H, x columns // W).

    ValueError: fewer pixels than cells.
    """
    height, width = mask.shape[-2:]
    rows, columns = grid
    if height < rows or width < columns:
        raise ValueError(f"a mask of {height} x {width} pixels has no pixel for each cell of a {rows} x {columns} grid")
    down = np.searchsorted(np.arange(height) * rows // height, np.arange(rows))  # the first pixel of each cell
    across = np.searchsorted(np.arange(width) * columns // width, np.arange(columns))
    covered = np.logical_or.reduceat(np.logical_or.reduceat(mask.astype(bool), down, axis=-2), across, axis=-1)
    return covered.reshape(*mask.shape[:-2], rows * columns)


def first_cells(objects: Sequence[np.ndarray], commit_step: np.ndarray) -> np.ndarray:
    """Return where objects begin, [T] bool: of each object's cells [T] bool the ones that were sampled first.

    commit_step: [T].

    A masked generator may fix several cells of an object at once; then all of these are its beginning. Objects without
    a cell have none.
    """
    begins = np.zeros(len(commit_step), dtype=bool)
    for mine in objects:
        if mine.any():
            begins |= mine & (commit_step == commit_step[mine].min())
    return begins


def auroc(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the probability that a target cell has a larger value than another cell; a tie counts half.

    It is Mann-Whitney's U / (P N).

    0.5 is chance, whatever the share of target cells; it depends on the order of the values alone.
    """
    _check(values, target)
    positive = target.sum(axis=-1).astype(np.float64)
    pairs = positive * (target.shape[-1] - positive)
    ranks = rankdata(values, axis=-1)  # ties share their average
    u = np.where(target, ranks, 0.0).sum(axis=-1) - positive * (positive + 1) / 2
    return np.divide(u, pairs, out=np.full(len(values), np.nan), where=pairs > 0)


def pointing(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Play the pointing game (Zhang et al., 1608.00507): 1 where the largest value lies on a target cell.

    Of tied largest values it is the share that does: what a choice among them at random hits. Chance is the share of
    target cells.
    """
    _check(values, target)
    largest = values == values.max(axis=-1, keepdims=True)
    return _where_any((largest & target).sum(axis=-1) / largest.sum(axis=-1), target)


def share(weights: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the share of an image's weights (at least 0) on target cells.

    Uniform weights give the share of target cells.
    """
    _check(weights, target)
    total = weights.sum(axis=-1)
    on_target = np.where(target, weights, 0.0).sum(axis=-1)
    return _where_any(np.divide(on_target, total, out=np.full(len(weights), np.nan), where=total > 0), target)


def _where_any(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.where(target.any(axis=-1), values, np.nan)


def _check(values: np.ndarray, target: np.ndarray) -> None:
    if values.ndim != 2 or values.shape != target.shape or target.dtype != bool:
        raise ValueError(
            f"values {values.shape} and target {target.shape} {target.dtype}; expected both [B, T], the target bool"
        )
