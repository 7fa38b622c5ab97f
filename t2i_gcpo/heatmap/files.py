"""Write a rollout's credit to its three files, and read it back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i_gcpo.algorithms import TokenAdvantages
from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.heatmap.html import page
from t2i_gcpo.records import ScoredRollout
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.pictures import write_png


def load(path: str | Path) -> Heatmap:
    """Load the heatmap in an npz. ValueError for any other file."""
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

    >>> targets = token_advantages(resolve("gcpo", group_size=2), rollout, scored.scores)
    >>> [path.name for path in save(folder, "credit", scored, targets)]
    ['credit.png', 'credit.npz', 'credit.html']

    rows: which images of the rollout (None: all). `more` as in `Heatmap.of`; the PNG is `load(npz).draw()`.
    """
    heatmap = Heatmap.of(scored, token_advantages, **more)
    if rows is not None:
        heatmap = heatmap.rows(torch.as_tensor(rows).tolist())
    return write(heatmap, out_dir, name, columns=columns)


def write(
    heatmap: Heatmap, out_dir: str | Path, name: str, *, kind: str | None = None, columns: int | None = None
) -> list[Path]:
    """Write `name`.png of one map (None: the first), `name`.npz and `name`.html of all; returns their paths."""
    folder = Path(out_dir)
    picture = heatmap.draw(kind, columns=columns)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("png", "npz", "html")]
    write_png(paths[0], picture)
    heatmap.save(paths[1])
    write_atomically(paths[2], page(heatmap, title=name, first=kind))
    return paths


FOLDER = "heatmaps"
"""Folder of a run's heatmaps."""
#: Name of a heatmap of a run's own prompts; those that were trained on are called step_N_trained.
_STEP = re.compile(r"step_[0-9]+")


def over_steps(run: str | Path, *, prompt: str | None = None, image: int = 0) -> Heatmap:
    """Join the heatmaps RUN/heatmaps/step_N.npz; each image is labelled with its step.

    Those that were trained on are other prompts and left out.

    prompt: which of the run's pictures (None: the first). image: which of the prompt's images, from 0. A run that is
    being written shows the steps that there are. ValueError: no heatmaps, or no such prompt or image.
    """
    found = [path for path in sorted((Path(run) / FOLDER).glob("step_*.npz")) if _STEP.fullmatch(path.stem)]
    if not found:
        raise ValueError(f"{run} holds no {FOLDER}/step_N.npz; name a run folder whose pictures.every was not 0")
    rows = []
    for path in found:
        heatmap = Heatmap.load(path)
        text = str(heatmap.prompts[0]) if prompt is None else " ".join(prompt.split())
        mine = np.flatnonzero(heatmap.prompts == text)
        if not len(mine):
            known = ", ".join(dict.fromkeys(map(repr, heatmap.prompts.tolist())))
            raise ValueError(f"{path} has no images of {text!r}; it has {known}")
        if not 0 <= image < len(mine):
            raise ValueError(f"there is no image {image} of {text!r} in {path}; there are {len(mine)}, counted from 0")
        one = heatmap.rows([int(mine[image])])
        rows.append(replace(one, labels=np.array([f"step {int(path.stem.removeprefix('step_'))}"])))
    return Heatmap.cat(rows)
