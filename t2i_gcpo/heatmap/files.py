"""Heatmaps on disk: the three files that a rollout's credit is written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i_gcpo.algorithms import TokenAdvantages
from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.heatmap.html import page
from t2i_gcpo.records import ScoredRollout


def load(path: str | Path) -> Heatmap:
    """The heatmap in an npz. ValueError for any other file."""
    return Heatmap.load(path)


def save(
    out_dir: str | Path,
    name: str,
    scored: ScoredRollout,
    token_advantages: TokenAdvantages | None = None,
    *,
    rows: Sequence[int] | Tensor | None = None,
    columns: int | None = None,
    **more: Any,
) -> list[Path]:
    """Write `name`.png, `name`.npz and `name`.html into `out_dir`; returns their paths.

    rows: which images of the rollout (None: all). `more` as in `Heatmap.of`; the PNG is `load(npz).draw()`.
    """
    heatmap = Heatmap.of(scored, token_advantages, **more)
    if rows is not None:
        heatmap = heatmap.rows(torch.as_tensor(rows).tolist())
    return write(heatmap, out_dir, name, columns=columns)


def write(
    heatmap: Heatmap, out_dir: str | Path, name: str, *, kind: str | None = None, columns: int | None = None
) -> list[Path]:
    """`name`.png of one map (None: the first), `name`.npz and `name`.html of all; returns their paths."""
    folder = Path(out_dir)
    picture = heatmap.draw(kind, columns=columns)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("png", "npz", "html")]
    picture.save(paths[0])
    heatmap.save(paths[1])
    paths[2].write_text(page(heatmap, title=name, first=kind), encoding="utf-8")
    return paths
