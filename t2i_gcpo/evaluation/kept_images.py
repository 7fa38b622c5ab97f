"""Keep the images of an evaluation as PNGs, so that two evaluations can be looked at prompt by prompt afterwards.

A file is called ROW_IMAGE.png, after the row of its prompt and the number of the image, as `t2i-gcpo score` reads it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from t2i_gcpo.evaluation.evaluate import EvalResult, ScoredImage
from t2i_gcpo.utils.picture_files import read_picture
from t2i_gcpo.utils.pictures import to_picture, write_png

#: Folder in a run folder; one folder for each evaluation below it.
FOLDER = "test_images"
BEFORE, AFTER = f"{FOLDER}/before", f"{FOLDER}/after"


def name(row: ScoredImage) -> str:
    """Return the file name of an image.

    >>> name(ScoredImage(7, 0, "a photo of a star", "single_object", 1.0))
    '0007_0.png'
    """
    return f"{row.index:04d}_{row.image}.png"


def write(result: EvalResult, folder: Path) -> None:
    """Write the images of a result. ValueError where it has none."""
    images = result.kept_images()
    folder.mkdir(parents=True, exist_ok=True)
    for row, image in zip(result.rows, images, strict=True):
        write_png(folder / name(row), to_picture(image, scale=1))


def read(result: EvalResult, rows: list[int], folder: Path) -> Tensor | None:
    """Return the images [N, 3, H, W] uint8 of some rows: those at hand, else those on disk.

    None where one is missing or damaged.
    """
    if result.images is not None:
        return result.images[rows]
    try:
        pixels = [read_picture(folder / name(result.rows[k]))[0] for k in rows]
    except ValueError:
        return None
    if len({one.shape for one in pixels}) != 1:
        return None
    return torch.stack([torch.from_numpy(one).permute(2, 0, 1) for one in pixels])
