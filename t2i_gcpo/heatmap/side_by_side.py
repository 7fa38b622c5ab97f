"""Draw several heatmaps side by side: the same images, or the same prompts and noise, all on one scale.

B images, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from PIL import Image

from t2i_gcpo.heatmap import kinds, paint
from t2i_gcpo.heatmap import scale as scales
from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.heatmap.scale import Scale

SHOWN = 4
"""Images of each heatmap, at most."""


def shared(named: Mapping[str, Heatmap]) -> dict[str, Heatmap]:
    """Keep the images that all heatmaps have, in one order: the first of a prompt with the first, and so on.

    ValueError: fewer than two heatmaps, grids or pictures of different sizes, or no prompt that all have.
    """
    if len(named) < 2:
        raise ValueError(f"{len(named)} heatmaps cannot stand side by side; give two or more by name")
    sizes = {name: (*one.grid, *one.images.shape[1:]) for name, one in named.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the heatmaps have different grids or pictures: {sizes}; give some of one size")
    keys = {name: _keys(one) for name, one in named.items()}
    first = next(iter(keys.values()))
    common = [key for key in first if all(key in other for other in keys.values())]
    if not common:
        raise ValueError("the heatmaps share no prompt; draw each of them alone")
    return {name: one.rows([keys[name][key] for key in common]) for name, one in named.items()}


def _keys(one: Heatmap) -> dict[tuple[str, int], int]:
    """Map (prompt, which of its images) to the row."""
    seen: Counter[str] = Counter()
    rows = {}
    for row, text in enumerate(one.prompts.tolist()):
        rows[text, seen[text]] = row
        seen[text] += 1
    return rows


def alike(named: Mapping[str, Heatmap]) -> bool:
    """Return whether all heatmaps show the very same images."""
    first, *others = named.values()
    return all(np.array_equal(first.images, other.images) for other in others)


def scale(named: Mapping[str, Heatmap], kind: str) -> Scale:
    """Return the one scale that fits a map of all heatmaps."""
    return scales.fit(np.concatenate([one.map(kind)[1] for one in named.values()]), kinds.find(kind))


def together(named: Mapping[str, Heatmap], kind: str | None = None, *, images: int = SHOWN) -> Image.Image:
    """Draw the images that all heatmaps have, one heatmap a column, under one map and on one scale.

    named: what stands above each column -> heatmap. kind: None takes the advantages where there are any in all of them,
    else the weights. images: of each heatmap at most. ValueError: heatmaps that share no image, or lack the map.
    """
    same = shared(named)
    if kind is None:
        kind = "advantage" if all(one.maps().get("advantage", np.zeros(1)).any() for one in same.values()) else "weight"
    one_scale = scale(same, kind)
    shown = {name: one.rows(range(min(images, len(one)))) for name, one in same.items()}
    count = len(next(iter(shown.values())))
    order = [(b, name) for b in range(count) for name in shown]
    noise = {name: one.hatched(kind) for name, one in shown.items()}
    nothing = np.zeros(next(iter(shown.values())).weights.shape[1], dtype=bool)
    what = "the same images" if alike(shown) else "the same prompts and noise"
    values = np.stack([shown[name].map(kind)[1][b] for b, name in order])
    return paint.render(
        np.stack([shown[name].images[b] for b, name in order]),
        values,
        next(iter(shown.values())).grid,
        kind=kinds.find(kind),
        title=f"{kinds.find(kind).title}: {what}, {', '.join(shown)}",
        captions=[f"{name}: {shown[name].prompts[b]}" for b, name in order],
        notes=[shown[name].notes()[b] for b, name in order],
        head=[f"{name}, hatched: {words[0].removeprefix('hatched: ')}" for name, one in shown.items()
              if (words := one.head(kind))],
        end=one_scale,
        noise=np.stack([nothing if (mask := noise[name]) is None else mask[b] for b, name in order]),
        columns=len(shown),
    )  # fmt: skip
