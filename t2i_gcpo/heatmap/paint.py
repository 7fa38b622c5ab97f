"""Paint one cell a token over a desaturated picture, and lay panels side by side on one printed scale.

B images, T = rows * columns tokens in raster order, H, W pixels. Knows numbers and titles, nothing of where they come
from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw

from t2i_gcpo.heatmap.kinds import Kind
from t2i_gcpo.utils.pictures import CAPTION_LINES, FAINT, GAP, LINE, MARGIN, blank, enlargement, font, text_lines, wrap

PERCENTILE = 98
"""The colour scale ends at this percentile of |value| over all panels, so that one token does not bleach the rest."""
SIGNED_MAP, UNSIGNED_MAP = "RdBu_r", "viridis"
OPACITY = 0.85
"""Of a cell at the end of a signed scale; it falls linearly to 0 at 0."""
UNSIGNED_OPACITY = 0.65
SATURATION = 0.25
"""What is left of the picture's own colours below the overlay."""


def scale_end(values: np.ndarray, kind: Kind | None = None) -> float:
    """Return where the colour scale ends: the 98th percentile of |values|.

    The largest where that is 0 or the kind spans all; 1 where all are 0.
    """
    magnitude = np.abs(np.asarray(values, dtype=np.float64))
    magnitude = magnitude[np.isfinite(magnitude)]
    if not magnitude.size or magnitude.max() == 0:
        return 1.0
    if kind is not None and kind.whole:
        return float(magnitude.max())
    return float(np.percentile(magnitude, PERCENTILE)) or float(magnitude.max())


def scale_words(values: np.ndarray, kind: Kind, *, given: bool = False) -> str:
    """Return the line that stands below the colour bar. given: the scale's end was not taken from these values."""
    if not np.nan_to_num(values).any():
        return "all values are 0"
    words = "one scale for all panels"
    if not given and kind.whole:
        words += ", to the largest value"
    elif not given:
        magnitude = np.abs(values[np.isfinite(values)])
        words += f", to the {PERCENTILE}th percentile of |value| (the largest is {magnitude.max(initial=0.0):.3g})"
    return words + ("; opacity grows with |value|" if kind.signed else "")


def colormap(signed: bool) -> np.ndarray:
    """Return the colours [256, 3] uint8."""
    from matplotlib import colormaps

    return np.rint(colormaps[SIGNED_MAP if signed else UNSIGNED_MAP](np.arange(256))[:, :3] * 255).astype(np.uint8)


def paint(
    image: np.ndarray, cells: np.ndarray, *, signed: bool, end: float, opacity: float | None = None
) -> np.ndarray:
    """Paint the picture [3, H, W] uint8, desaturated, under one cell a token [rows, columns]: [H, W, 3] uint8.

    NaN cells stay bare.

    opacity: of a cell at the end of a signed scale, or of any cell of an unsigned one (None: OPACITY,
    UNSIGNED_OPACITY).
    """
    if opacity is None:
        opacity = OPACITY if signed else UNSIGNED_OPACITY
    base = rearrange(image, "c h w -> h w c").astype(np.float64)
    luminance = base @ np.array([0.299, 0.587, 0.114])
    base = SATURATION * base + (1 - SATURATION) * luminance[..., None]
    known = ~np.isnan(cells)  # infinities are clipped
    share = np.clip(np.where(known, cells, 0.0) / end, -1 if signed else 0, 1)
    colors = colormap(signed)[np.rint((share + 1) * 127.5 if signed else share * 255).astype(int)]
    cover = np.where(known, opacity * np.abs(share) if signed else opacity, 0.0)
    # Nearest: each pixel takes its own token's cell.
    h, w = base.shape[:2]
    at = np.ix_(np.arange(h) * cells.shape[0] // h, np.arange(w) * cells.shape[1] // w)
    blend = cover[at][..., None]
    return np.rint((1 - blend) * base + blend * colors[at]).astype(np.uint8)


def picture(image: np.ndarray, factor: int) -> Image.Image:
    """Make a picture of [3, H, W] uint8, enlarged by a whole number without smoothing."""
    return Image.fromarray(rearrange(enlarged(image, factor), "c h w -> h w c"))


def enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    return np.kron(image, np.ones((1, factor, factor), np.uint8))


def render(
    images: np.ndarray,
    values: np.ndarray,
    grid: tuple[int, int],
    *,
    kind: Kind,
    captions: Sequence[str],
    title: str | None = None,
    notes: Sequence[str] | None = None,
    end: float | None = None,
    columns: int = 2,
    stacked: bool = False,
) -> Image.Image:
    """Draw each image [B, 3, H, W] uint8 beside (stacked: above) itself under its values [B, T].

    All on one printed scale.

    kind: decides the colours, and the title where none is given. notes stand below a panel. end: of the scale (None:
    `scale_end` of the values). ValueError: shapes that do not fit.
    """
    if values.shape != (len(images), grid[0] * grid[1]) or len(captions) != len(images) or not len(images):
        raise ValueError(
            f"{tuple(values.shape)} values on a {grid[0]} x {grid[1]} grid and {len(captions)} captions for "
            f"{len(images)} images; "
            f"expected [{len(images)}, {grid[0] * grid[1]}] and one caption an image"
        )
    notes = [""] * len(images) if notes is None else notes
    words = scale_words(values, kind, given=end is not None)
    end = scale_end(values, kind) if end is None else float(end)
    cells = rearrange(values, "b (h w) -> b h w", h=grid[0])
    factor = enlargement(images.shape[-1])
    width, height = images.shape[-1] * factor, images.shape[-2] * factor
    aside, below = (0, height + GAP // 2) if stacked else (width + GAP // 2, 0)  # where the map stands from the picture
    panel = width + aside

    columns = max(1, min(columns, len(images)))
    lines = -(-len(images) // columns)
    total = max(2 * MARGIN + columns * (panel + 2 * GAP) - 2 * GAP, 420)
    head = wrap(kind.title if title is None else title, total - 2 * MARGIN, size=15)
    wrapped = [wrap(caption, panel) for caption in captions]
    caption_height = LINE * min(CAPTION_LINES, max(map(len, wrapped)))
    step = caption_height + height + below + LINE + GAP
    canvas = blank(total, 2 * MARGIN + LINE * (len(head) + 2) + 6 + lines * step)
    draw = ImageDraw.Draw(canvas)
    y = text_lines(draw, (MARGIN, MARGIN), head, size=15)
    y = _scale(canvas, draw, (MARGIN, y + 4), kind.signed, end, words) + GAP
    for b in range(len(images)):
        left, top = MARGIN + b % columns * (panel + 2 * GAP), y + b // columns * step
        text_lines(draw, (left, top), wrapped[b])
        top += caption_height
        over = paint(enlarged(images[b], factor), cells[b], signed=kind.signed, end=end)
        canvas.paste(picture(images[b], factor), (left, top))
        canvas.paste(Image.fromarray(over), (left + aside, top + below))
        text_lines(draw, (left, top + below + height + 2), wrap(notes[b], panel, most=1), color=FAINT)
    return canvas


def _scale(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], signed: bool, end: float, words: str
) -> int:
    """Draw the colour bar with its ends and a line of words; returns the y below it."""
    x, y = at
    width, height = 200, 14
    bar = Image.fromarray(colormap(signed)[None]).resize((width, height), Image.Resampling.NEAREST)
    low = f"−{end:.3g}" if signed else "0"
    start = x + int(font(13).getlength(low)) + 6
    text_lines(draw, (x, y), [low])
    canvas.paste(bar, (start, y + 1))
    text_lines(draw, (start + width + 6, y), [f"{'+' if signed else ''}{end:.3g}"])
    return text_lines(draw, (x, y + LINE + 2), wrap(words, canvas.width - 2 * MARGIN, most=1), color=FAINT)
