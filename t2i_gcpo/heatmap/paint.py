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
from t2i_gcpo.heatmap.scale import Scale, as_scale, fit, words
from t2i_gcpo.utils.pictures import CAPTION_LINES, FAINT, GAP, LINE, MARGIN, blank, enlargement, font, text_lines, wrap

SIGNED_MAP, UNSIGNED_MAP = "RdBu_r", "viridis"
PALEST = 0.5
"""The palest colour of a signed overlay, as a share of the colours: its opacity says how small a value is, and a pale
colour besides would be lost on a grey picture."""
OPACITY = 0.85
"""Opacity of a cell at the end of a signed scale; it falls linearly to 0 at 0."""
UNSIGNED_OPACITY = 0.8
SATURATION = 0.25
"""What is left of the picture's own colours below the overlay."""
GROUND = 160
"""The grey that the colour bar lies on, so that it shows what cells look like."""


def colormap(signed: bool) -> np.ndarray:
    """Return the colours [256, 3] uint8."""
    from matplotlib import colormaps

    return np.rint(colormaps[SIGNED_MAP if signed else UNSIGNED_MAP](np.arange(256))[:, :3] * 255).astype(np.uint8)


def overlay_colors(signed: bool) -> np.ndarray:
    """Return the colours of cells [256, 3] uint8, from -1 (unsigned: 0) to 1; opacity comes on top."""
    if not signed:
        return colormap(False)
    share = np.linspace(-1, 1, 256)
    share = np.sign(share) * (PALEST + (1 - PALEST) * np.abs(share))
    return colormap(True)[np.rint((share + 1) * 127.5).astype(int)]


def bar(signed: bool) -> np.ndarray:
    """Return the colours of the colour bar [256, 3] uint8: what cells from one end to the other look like on grey."""
    share = np.linspace(-1 if signed else 0, 1, 256)
    ground = np.full((3, 1, 256), GROUND, dtype=np.uint8)
    return paint(ground, share[None], signed=signed, end=1.0)[0]


def hatched(height: int, width: int, grid: tuple[int, int]) -> np.ndarray:
    """Return which pixels [H, W] of a hatched cell keep its colour: diagonal stripes, two or more across a cell."""
    side = min(height / grid[0], width / grid[1])
    period = max(3, round(side / 2))
    y, x = np.ogrid[:height, :width]
    return (x + y) % period < max(1, period // 3)


def paint(
    image: np.ndarray,
    cells: np.ndarray,
    *,
    signed: bool,
    end: float | Scale,
    opacity: float | None = None,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    """Paint the picture [3, H, W] uint8, desaturated, under one cell a token [rows, columns]: [H, W, 3] uint8.

    NaN cells stay bare; of the cells that are true in `noise` [rows, columns] only stripes are painted.

    end: of a linear scale, or the scale. opacity: of a cell at the end of a signed scale, or of any cell of an unsigned
    one (None: OPACITY, UNSIGNED_OPACITY).
    """
    if opacity is None:
        opacity = OPACITY if signed else UNSIGNED_OPACITY
    base = rearrange(image, "c h w -> h w c").astype(np.float64)
    luminance = base @ np.array([0.299, 0.587, 0.114])
    base = SATURATION * base + (1 - SATURATION) * luminance[..., None]
    known = ~np.isnan(cells)  # infinities are clipped
    share = np.clip(as_scale(end).share(np.where(known, cells, 0.0)), -1 if signed else 0, 1)
    colors = overlay_colors(signed)[np.rint((share + 1) * 127.5 if signed else share * 255).astype(int)]
    cover = np.where(known, opacity * np.abs(share) if signed else opacity, 0.0)
    # Nearest: each pixel takes its own token's cell.
    h, w = base.shape[:2]
    at = np.ix_(np.arange(h) * cells.shape[0] // h, np.arange(w) * cells.shape[1] // w)
    blend = cover[at]
    if noise is not None:
        blend = np.where(noise[at] & ~hatched(h, w, (cells.shape[0], cells.shape[1])), 0.0, blend)
    blend = blend[..., None]
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
    head: Sequence[str] = (),
    end: float | Scale | None = None,
    noise: np.ndarray | None = None,
    columns: int = 2,
    stacked: bool = False,
) -> Image.Image:
    """Draw each image [B, 3, H, W] uint8 beside (stacked: above) itself under its values [B, T].

    All on one printed scale. A caption stands above the first of neighbours that share it, or, where all do,
    above the title.

    kind: decides the colours, and the title where none is given. notes stand below a panel, the lines of `head` below
    the scale. end: of the scale (None: the one that fits the values). noise [B, T]: cells that are hatched. ValueError:
    shapes that do not fit.
    """
    if values.shape != (len(images), grid[0] * grid[1]) or len(captions) != len(images) or not len(images):
        raise ValueError(
            f"{tuple(values.shape)} values on a {grid[0]} x {grid[1]} grid and {len(captions)} captions for "
            f"{len(images)} images; "
            f"expected [{len(images)}, {grid[0] * grid[1]}] and one caption an image"
        )
    notes = [""] * len(images) if notes is None else notes
    scale = fit(values, kind) if end is None else as_scale(end)
    cells = rearrange(values, "b (h w) -> b h w", h=grid[0])
    noisy = None if noise is None else rearrange(noise, "b (h w) -> b h w", h=grid[0])
    factor = enlargement(images.shape[-1])
    width, height = images.shape[-1] * factor, images.shape[-2] * factor
    aside, below = (0, height + GAP // 2) if stacked else (width + GAP // 2, 0)  # where the map stands from the picture
    panel = width + aside

    columns = max(1, min(columns, len(images)))
    total = max(2 * MARGIN + columns * (panel + 2 * GAP) - 2 * GAP, 420)
    title = kind.title if title is None else title
    shared = captions[0] if len(set(captions)) == 1 and not stacked else ""
    lines = wrap(f"“{shared}”", total - 2 * MARGIN, size=15) if shared else []
    lines += wrap(title, total - 2 * MARGIN, size=15)
    under = [words(values, kind, given=None if end is None else scale), *head]
    under = [line for text in under for line in wrap(text, total - 2 * MARGIN)]
    above = [[]] * len(images) if shared else _above(captions, panel)
    heights = [LINE * min(CAPTION_LINES, max(map(len, above[k : k + columns]))) for k in range(0, len(images), columns)]
    step = height + below + LINE + GAP
    canvas = blank(total, 2 * MARGIN + LINE * (len(lines) + 1 + len(under)) + 6 + sum(heights) + len(heights) * step)
    draw = ImageDraw.Draw(canvas)
    y = text_lines(draw, (MARGIN, MARGIN), lines, size=15)
    y = _scale(canvas, draw, (MARGIN, y + 4), kind.signed, scale, under) + GAP
    for b in range(len(images)):
        row = b // columns
        left, top = MARGIN + b % columns * (panel + 2 * GAP), y + row * step + sum(heights[: row + 1])
        text_lines(draw, (left, top - heights[row]), above[b])
        over = paint(
            enlarged(images[b], factor),
            cells[b],
            signed=kind.signed,
            end=scale,
            noise=None if noisy is None else noisy[b],
        )
        canvas.paste(picture(images[b], factor), (left, top))
        canvas.paste(Image.fromarray(over), (left + aside, top + below))
        text_lines(draw, (left, top + below + height + 2), wrap(notes[b], panel, most=1), color=FAINT)
    return canvas


def _above(captions: Sequence[str], panel: int) -> list[list[str]]:
    """Return the lines above each panel: its caption, where it is another than that of the panel before it."""
    lines = []
    for b, caption in enumerate(captions):
        new = b == 0 or caption != captions[b - 1]
        lines.append(wrap(caption, panel) if new else [])
    return lines


def _scale(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    signed: bool,
    scale: Scale,
    under: Sequence[str],
) -> int:
    """Draw the colour bar with its ends and lines of words; returns the y below them."""
    x, y = at
    width, height = 200, 14
    strip = Image.fromarray(bar(signed)[None]).resize((width, height), Image.Resampling.NEAREST)
    low = f"−{scale.end:.3g}" if signed else "0"
    start = x + int(font(13).getlength(low)) + 6
    text_lines(draw, (x, y), [low])
    canvas.paste(strip, (start, y + 1))
    if scale.linear is not None:  # a tick where the logarithm begins
        for share in (scale.linear_share, -scale.linear_share)[: 2 if signed else 1]:
            tick = start + round(((share + 1) / 2 if signed else share) * (width - 1))
            draw.line((tick, y - 1, tick, y + height + 2), fill=FAINT)
    text_lines(draw, (start + width + 6, y), [f"{'+' if signed else ''}{scale.end:.3g}"])
    return text_lines(draw, (x, y + LINE + 2), under, color=FAINT)
