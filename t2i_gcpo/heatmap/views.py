"""Answer an inspector: one picture under one map, the numbers of one cell, the weights by another rule.

No model is run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from t2i_gcpo.algorithms import token_weights
from t2i_gcpo.heatmap import paint
from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.heatmap.kinds import KINDS
from t2i_gcpo.heatmap.noise import below_floor, ranks
from t2i_gcpo.heatmap.recipe import Recipe
from t2i_gcpo.heatmap.scale import Scale
from t2i_gcpo.records import Prompt, Rollout, Sampling
from t2i_gcpo.utils.json_files import finite_or_none
from t2i_gcpo.utils.pictures import enlargement


def reweigh(heatmap: Heatmap, *, seed: int = 0, **choices: Any) -> Heatmap:
    """Weigh the same images by another rule, from the saved log-probs.

    Where there are advantages, the maps `A_b * w[b, t]` follow.

    choices: fields of `Recipe` (credit, divergence, normalization, top, mass, floor); those not given stay as they
    were, or GCPO's where that is not known. `credit="uniform"` is GRPO's flat map. seed: what the controls (random,
    shuffled) are drawn from. An image whose reward failed keeps weight 0. ValueError: an unknown choice, or one that
    needs a log-prob or statistic that was not saved.
    """
    try:
        recipe = replace(heatmap.recipe or Recipe(), **choices)
    except TypeError:
        raise ValueError(
            f"unknown choice {', '.join(sorted(set(choices) - set(vars(Recipe()))))}; allowed: "
            f"{', '.join(vars(Recipe()))}"
        ) from None
    weights = token_weights(recipe.algorithm(), as_rollout(heatmap), generator=torch.Generator().manual_seed(seed))
    new = weights.numpy().astype(np.float32)
    if heatmap.sequence_advantages is None:
        return replace(heatmap, weights=new, recipe=recipe)
    new[np.isnan(heatmap.scores)] = 0.0
    return replace(heatmap, weights=new, recipe=recipe, advantages=heatmap.sequence_advantages[:, None] * new)


def overlay(
    heatmap: Heatmap,
    kind: str | None = None,
    index: int = 0,
    *,
    end: float | Scale | None = None,
    opacity: float | None = None,
    up_to: int | None = None,
    width: int | None = None,
) -> Image.Image:
    """Draw image `index` under one map (None: the first of `maps`), enlarged to about `width` pixels.

    end: of the colour scale, or the scale (None: the one that all images of the heatmap share); pass another's `scale`
    to compare on one. opacity: in [0, 1]. up_to: cells of later sampling steps stay bare. ValueError: no such map or
    image.
    """
    name, values = heatmap.map(kind)
    _check_index(heatmap, index)
    if opacity is not None and not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; it must be in [0, 1]")
    cells = values[index].astype(np.float64)
    if up_to is not None:
        cells = np.where(heatmap.order()[index] <= up_to, cells, np.nan)
    factor = enlargement(heatmap.images.shape[-1], width)
    noise = heatmap.hatched(name)
    painted = paint.paint(
        paint.enlarged(heatmap.images[index], factor),
        rearrange(cells, "(h w) -> h w", h=heatmap.grid[0]),
        signed=KINDS[name].signed,
        end=heatmap.scale(name) if end is None else end,
        opacity=opacity,
        noise=None if noise is None else rearrange(noise[index], "(h w) -> h w", h=heatmap.grid[0]),
    )
    return Image.fromarray(painted)


def cell(heatmap: Heatmap, index: int, row: int, column: int) -> dict[str, Any]:
    """Return the numbers of one token of image `index`: place, token, log-probs, and value in every map.

    `rank` is its place by weight, 1 has the most; `below_floor` says whether its contrast is below the noise floor,
    where the credit is by contrast. Plain ints, floats and a bool; None for what is not finite. The names of the maps
    are those of KINDS. ValueError: outside the grid.
    """
    _check_index(heatmap, index)
    rows, columns = heatmap.grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(
            f"cell ({row}, {column}) is outside the {rows} x {columns} grid; rows and columns count from 0"
        )
    t = row * columns + column
    found: dict[str, Any] = {
        "index": t,
        "row": row,
        "column": column,
    }
    found["rank"] = int(ranks(heatmap.weights)[index, t])
    noise = below_floor(heatmap)
    if noise is not None:
        found["below_floor"] = bool(noise[index, t])
    if heatmap.tokens is not None:
        found["token"] = int(heatmap.tokens[index, t])
    if heatmap.commit_step is not None:
        found["step"] = int(heatmap.commit_step[index, t])
    logprobs = {
        "logprob_positive": heatmap.logprob_positive,
        "logprob_negative": heatmap.logprob_negative,
        "logprob_behaviour": heatmap.logprob_behaviour,
        "logprob_reference": heatmap.logprob_reference,
    }
    for name, values in logprobs.items():
        if values is not None:
            found[name] = finite_or_none(float(values[index, t]))
    return found | {name: finite_or_none(float(values[index, t])) for name, values in heatmap.maps().items()}


def _check_index(heatmap: Heatmap, index: int) -> None:
    if not 0 <= index < len(heatmap):
        raise ValueError(f"there is no image {index}; the heatmap holds {len(heatmap)}, counted from 0")


def as_rollout(heatmap: Heatmap) -> Rollout:
    """Make a rollout of the images, each a prompt of its own: what the algorithms make weights from.

    ValueError: the heatmap holds no log-probs.
    """
    if heatmap.logprob_positive is None:
        raise ValueError(
            "the heatmap holds no log-probs, which other weights would be made from; "
            "draw it with logprob_positive and logprob_negative"
        )
    positive = torch.from_numpy(heatmap.logprob_positive)
    rows, columns = heatmap.grid
    in_raster_order = torch.arange(rows * columns).expand(len(heatmap), -1)

    def tensor(values: np.ndarray | None, otherwise: torch.Tensor) -> torch.Tensor:
        return otherwise if values is None else torch.from_numpy(values)

    negative = heatmap.logprob_negative
    return Rollout(
        # What is not known takes no part in the weights: they come from log-probs and statistics.
        tokens=tensor(heatmap.tokens, torch.zeros_like(in_raster_order)),
        logprob_positive=positive,
        logprob_negative=None if negative is None else torch.from_numpy(negative),
        logprob_behaviour=tensor(heatmap.logprob_behaviour, positive),
        commit_step=tensor(heatmap.commit_step, in_raster_order),
        prompts=tuple(Prompt(text) for text in heatmap.prompts.tolist()),
        grid=heatmap.grid,
        sampling=Sampling(),
        stats={name: torch.from_numpy(values) for name, values in heatmap.stats.items()},
    )
