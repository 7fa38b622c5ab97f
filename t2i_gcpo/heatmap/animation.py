"""Draw heatmaps that move: the tokens as they are sampled, or an image as it is trained; as frames and as GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import repeat
from PIL import Image

from t2i_gcpo.heatmap import kinds, paint
from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.utils.files import write_atomically

MOST_PIXELS = 2**30
"""Pixels of all frames of an animation together; 3 GB."""
MOST_FRAMES = 48
"""Frames of an animation over the order: more tokens than that appear several at a time."""
SECONDS, HOLD = 6.0, 1.5
"""Duration of a whole animation, and of its last frame besides."""
NOT_YET = 235
"""The grey of tokens that were not sampled yet."""


def over_order(heatmap: Heatmap, kind: str | None = None, *, columns: int = 2) -> list[Image.Image]:
    """Draw frames of the panel of all images (None: the first map), in each of which more tokens are sampled.

    The last is the whole panel. ValueError: it is not known when each token was sampled.
    """
    name, values = heatmap.map(kind)
    commit_step = heatmap.order()
    end, last = heatmap.scale(name), int(commit_step.max())
    steps = np.unique(np.rint(np.linspace(0, last, min(MOST_FRAMES, last + 1))).astype(int))
    frames: list[Image.Image] = []
    for step in steps:
        if frames and len(steps) * frames[0].width * frames[0].height > MOST_PIXELS:
            raise ValueError(
                f"{len(steps)} frames of {frames[0].width} x {frames[0].height} pixels are too many for an animation; "
                "draw fewer images at once"
            )
        there = commit_step <= step
        frames.append(
            paint.render(
                _veiled(heatmap.images, there, heatmap.grid),
                np.where(there, values, np.nan),
                heatmap.grid,
                kind=kinds.find(name),
                title=heatmap.title(name),
                captions=heatmap.prompts.tolist(),
                notes=[", ".join(filter(None, (f"step {step} of {last}", note))) for note in heatmap.notes()],
                head=heatmap.head(name),
                end=end,
                noise=heatmap.hatched(name),
                columns=columns,
            )
        )
    return frames


def over_images(heatmap: Heatmap, kind: str | None = None) -> list[Image.Image]:
    """Draw one frame an image, all on one scale; of `over_steps`, this is the training."""
    name, _ = heatmap.map(kind)
    end = heatmap.scale(name)
    return [heatmap.rows([b]).draw(name, end=end) for b in range(len(heatmap))]


def write_gif(frames: Sequence[Image.Image], path: str | Path, *, seconds: float = SECONDS, hold: float = HOLD) -> Path:
    """Write frames of one size as a GIF that repeats; `seconds` for all of them, `hold` more for the last.

    ValueError: no frames.
    """
    if not frames:
        raise ValueError("there are no frames to animate")
    width, height = (max(frame.size[side] for frame in frames) for side in (0, 1))
    pages = [Image.new("RGB", (width, height), "white") for _ in frames]  # a longer title makes a larger frame
    for page, frame in zip(pages, frames, strict=True):
        page.paste(frame)
    # One palette for all, so that what stays the same from frame to frame is the same, and costs nothing.
    sheet = Image.new("RGB", (width, 3 * height))
    for k, page in enumerate((pages[0], pages[len(pages) // 2], pages[-1])):
        sheet.paste(page, (0, k * height))
    palette = sheet.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    pages = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    each = max(20, round(1000 * seconds / len(pages)))  # milliseconds; viewers slow down what is faster
    durations = [each] * (len(pages) - 1) + [each + round(1000 * hold)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"save_all": True, "append_images": pages[1:], "duration": durations, "loop": 0}
    return write_atomically(path, lambda file: pages[0].save(file, "GIF", optimize=False, **options))


def _veiled(images: np.ndarray, there: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Grey the cells of images [B, 3, H, W] that lie outside `there` [B, T]."""
    height, width = images.shape[-2:]
    cells = there.reshape(-1, *grid)
    shown = cells[:, np.arange(height) * grid[0] // height][:, :, np.arange(width) * grid[1] // width]
    return np.where(repeat(shown, "b h w -> b 3 h w"), images, np.uint8(NOT_YET))
