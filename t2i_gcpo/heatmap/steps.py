"""One prompt and its noise under the weights of every step that a run drew: a `Heatmap` whose images are steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from t2i_gcpo.heatmap.data import Heatmap

FOLDER = "heatmaps"
"""Of a run."""


def over_steps(run: str | Path, *, prompt: str | None = None, image: int = 0) -> Heatmap:
    """From RUN/heatmaps/step_N.npz; each image is labelled with its step. Those that were trained on are other prompts and left out.

    prompt: which of the run's pictures (None: the first). image: which of the prompt's images, from 0. A run that is being written shows the
    steps that there are. ValueError: no heatmaps, or no such prompt or image.
    """
    found = [path for path in sorted((Path(run) / FOLDER).glob("step_*.npz")) if not path.stem.endswith("_trained")]
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
        rows.append(replace(one, labels=np.array([f"step {int(path.stem.split('_')[1])}"])))
    return Heatmap.cat(rows)
