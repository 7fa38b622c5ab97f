"""Turn pictures and numbers from anybody's code into the arrays of a heatmap, or say in a sentence why they don't fit.

B images, T = rows * columns tokens in raster order, H, W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import repeat
from PIL import Image
from torch import Tensor

OVERSHOOT = 0.1
"""Floats leave their range by this much at most, as decoders do; what is beyond is of another range."""
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Black and white of floats, in the order in which they are tried."""
DARKEST = 16.0
"""The brightest value of a picture of floats from 0 to 255, at least; normalised floats end far below."""


def to_images(given: Any, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Return one image or several as [B, 3, H, W] uint8. ValueError: no images, or of which kind cannot be told.

    value_range: what black and white are (None: found in the values, all images together).
    """
    if isinstance(given, (list, tuple)):
        if not given:
            raise ValueError("there are no images; give at least one")
        every = [_channels_first(one) for one in given]
        sizes = sorted({array.shape[1:] for array in every})
        if len(sizes) > 1:
            raise ValueError(
                f"the images have different sizes (channels, height, width): {sizes}; give some of one size"
            )
        return _bytes(np.concatenate(every), value_range)
    return _bytes(_channels_first(given), value_range)


def _channels_first(given: Any) -> np.ndarray:
    """Return [H, W], [C, H, W], [H, W, C] or B of these as [B, 3, H, W], in its own range."""
    array = plain(given)
    first = isinstance(given, Tensor)  # where both ends could be channels, torch has them first and others last
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"the image has the shape {list(array.shape)}; expected [H, W], [3, H, W] or [H, W, 3], or several: "
            "[B, 3, H, W] or [B, H, W, 3]"
        )
    if array.ndim == 2:
        return repeat(array, "h w -> 1 3 h w")
    if array.ndim == 3 and not {array.shape[0], array.shape[-1]} & {1, 3, 4}:
        raise ValueError(
            f"the image has the shape {list(array.shape)}, with no axis of 3 channels at either end; "
            "expected [3, H, W] or [H, W, 3]"
        )
    batch = array[None] if array.ndim == 3 else array
    channels = (1, 3, 4)
    fits_first, fits_last = batch.shape[1] in channels, batch.shape[-1] in channels
    if not (fits_first or fits_last):
        raise ValueError(f"the images have the shape {list(array.shape)}; expected [B, 3, H, W] or [B, H, W, 3]")
    if fits_last and not (fits_first and first):
        batch = np.moveaxis(batch, -1, 1)
    if batch.shape[1] == 4:
        raise ValueError("the image has 4 channels; lay it on a background and give 3")
    return np.broadcast_to(batch, (len(batch), 3, *batch.shape[2:]))


def _bytes(images: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Return images of any range as uint8."""
    if images.dtype == np.uint8 and value_range is None:
        return np.ascontiguousarray(images)
    if images.dtype == bool:
        return np.ascontiguousarray(images.astype(np.uint8) * 255)
    values = images.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the image has values that are not finite (NaN or infinite)")
    low, high = float(values.min()), float(values.max())
    if value_range is None and np.issubdtype(images.dtype, np.integer):
        value_range = (0.0, 255.0)
    if value_range is None:
        fitting = [(black, white) for black, white in RANGES if _inside(low, high, black, white)]
        if not fitting or (fitting[0] == RANGES[-1] and high < DARKEST):
            raise ValueError(
                f"the image has values from {low:.3g} to {high:.3g}, which is none of [0, 1], [-1, 1] and [0, 255]; "
                "say which values are black and white: value_range=(low, high)"
            )
        value_range = fitting[0]
    black, white = value_range
    if not black < white or not _inside(low, high, black, white):
        raise ValueError(
            f"the image has values from {low:.3g} to {high:.3g}, outside the range from "
            f"{black:g} (black) to {white:g} (white)"
        )
    return np.rint((values - black) / (white - black) * 255).clip(0, 255).astype(np.uint8)


def _inside(low: float, high: float, black: float, white: float) -> bool:
    margin = OVERSHOOT * min(white - black, 2.0)
    return black - margin <= low and high <= white + margin


def to_cells(
    name: str, given: Any, count: int, grid: tuple[int, int] | None, *, whole: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the numbers of all tokens as [B, T] fp32 (whole: int64), and the grid. ValueError: they do not fit."""
    array = plain(given)
    squeezed = array if array.ndim != 4 or array.shape[1] != 1 else array[:, 0]  # [B, 1, rows, columns]
    if count == 1 and squeezed.ndim in (1, 2) and squeezed.shape[:1] != (1,):
        squeezed = squeezed[None]
    if grid is None and squeezed.ndim == 3:
        grid = (squeezed.shape[1], squeezed.shape[2])
    if grid is None:
        raise ValueError(
            f"{name} has the shape {list(array.shape)}, which does not show the grid of tokens; "
            "say it: grid=(rows, columns)"
        )
    rows, columns = grid
    if rows < 1 or columns < 1 or squeezed.shape not in ((count, rows * columns), (count, rows, columns)):
        raise ValueError(
            f"{name} has the shape {list(array.shape)}; for {count} image{'s' if count > 1 else ''} on a grid of "
            f"{rows} x {columns} it must be [{count}, {rows * columns}] or [{count}, {rows}, {columns}]"
        )
    flat = squeezed.reshape(count, rows * columns)
    if whole:
        if not np.issubdtype(flat.dtype, np.integer) or flat.min() < 0:
            raise ValueError(f"{name} must be whole numbers of at least 0, the indices in the codebook")
        return flat.astype(np.int64), (rows, columns)
    if flat.dtype.kind not in "fiub":
        raise ValueError(f"{name} is of type {flat.dtype}; it must be numbers")
    return flat.astype(np.float32), (rows, columns)


def to_rows(name: str, given: Any, count: int) -> np.ndarray:
    """Return a number of each image as [B] fp32. ValueError: not as many as images."""
    array = np.atleast_1d(plain(given))
    if array.shape != (count,) or array.dtype.kind not in "fiub":
        raise ValueError(f"{name} has the shape {list(array.shape)} for {count} images; give one number of each")
    return array.astype(np.float32)


def plain(given: Any) -> np.ndarray:
    """Return tensors on any device, PIL images and lists as an array. ValueError: something else."""
    if isinstance(given, Tensor):
        values = given.detach().cpu()
        return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    if isinstance(given, Image.Image):
        return np.asarray(given.convert("RGB"))
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ValueError(f"rows of different lengths are no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{type(given).__name__} is no tensor, array or PIL image")
    return array
