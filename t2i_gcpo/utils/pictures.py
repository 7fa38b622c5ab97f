"""Sample grids: pictures by prompt, caption above, score below, as one image.

N pictures, H, W their sides in pixels.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from t2i_gcpo.utils.files import write_atomically

PICTURE_WIDTH = 160
"""Small pictures are enlarged by a whole number to about this many pixels."""
GAP, MARGIN, BORDER = 10, 16, 4
LINE = 18
"""Height of a line of text, pixels."""
CAPTION_LINES = 3
MOST_PIXELS = 2**28
"""The pixels of a whole picture at most; 0.8 GB."""

#: Where a line may end.
_BREAK = re.compile(r"\s+(?!%)")

INK, FAINT = (28, 28, 32), (110, 112, 120)
RIGHT, WRONG, FAILED, PLAIN = (22, 140, 66), (206, 44, 44), (150, 150, 156), (222, 223, 228)


@dataclass(frozen=True)
class Cell:
    """Holds a picture, a line of text below it and the colour of both its border and that text."""

    picture: Image.Image
    note: str = ""
    color: tuple[int, int, int] = PLAIN


def sample_grid(
    images: Tensor,
    captions: Sequence[str],
    *,
    columns: int,
    scores: Sequence[float] | Tensor | None = None,
    scale: int | None = None,
    title: str = "",
) -> Image.Image:
    """Lay out pictures uint8 [N, 3, H, W].

    Neighbours with the same caption are one group under it, as many groups a row as fit.

    columns: pictures side by side. scores: [N], drawn below; where all are 0 or 1, as verdicts with a green or red
    border; NaN is a failed image. scale: enlarges by a whole number; None picks one. ValueError: N captions and scores
    are not given, or columns is below 1.
    """
    cells = _cells(images, _list(scores, len(images)), scale)
    if len(captions) != len(cells):
        raise ValueError(f"{len(captions)} captions for {len(cells)} images; give one for each")
    groups = [
        (caption, [cell for _, cell in members])
        for caption, members in groupby(zip(captions, cells, strict=True), key=lambda pair: pair[0])
    ]
    return grid(groups, columns=columns, title=title)


def before_after(
    before: Tensor,
    after: Tensor,
    captions: Sequence[str],
    *,
    scores_before: Sequence[float] | Tensor | None = None,
    scores_after: Sequence[float] | Tensor | None = None,
    labels: tuple[str, str] = ("before", "after"),
    pairs: int = 4,
    scale: int | None = None,
    title: str = "",
) -> Image.Image:
    """Lay out pairs of pictures of the same prompt and noise, `before` and `after` uint8 [N, 3, H, W].

    `pairs` of them side by side.
    """
    if len(before) != len(after) or len(captions) != len(before):
        raise ValueError(
            f"{len(before)} images before, {len(after)} after, {len(captions)} captions; they must be as many"
        )
    strict = _strict(_list(scores_before, len(before)) + _list(scores_after, len(after)))
    left = _cells(before, _list(scores_before, len(before)), scale, labels[0], strict)
    right = _cells(after, _list(scores_after, len(after)), scale, labels[1], strict)
    groups = [(caption, [a, b]) for caption, a, b in zip(captions, left, right, strict=True)]
    return grid(groups, columns=2 * pairs, title=title)


def grid(groups: Sequence[tuple[str, Sequence[Cell]]], *, columns: int, title: str = "") -> Image.Image:
    """Lay out groups of cells, all pictures of one size.

    Groups side by side while they fit, a larger one over several lines.
    """
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1")
    if not groups:
        raise ValueError("there are no images to lay out")
    width, height = groups[0][1][0].picture.size
    step_x, step_y = width + 2 * BORDER + GAP, height + 2 * BORDER + GAP
    with_notes = any(cell.note for _, cells in groups for cell in cells)
    step_y += LINE if with_notes else 0

    lines: list[list[tuple[str, Sequence[Cell]]]] = []
    room = 0
    for group in groups:
        if len(group[1]) > room:
            lines.append([])
            room = columns
        lines[-1].append(group)
        room -= min(len(group[1]), room)

    def wrapped(group: tuple[str, Sequence[Cell]]) -> list[str]:
        return wrap(group[0], min(len(group[1]), columns) * step_x - GAP)

    used = max(sum(min(len(cells), columns) for _, cells in line) for line in lines)
    title_lines = wrap(title, max(used * step_x - GAP, 320), size=15) if title else []
    caption_heights = [LINE * max(len(wrapped(group)) for group in line) for line in lines]
    depths = [max(-(-len(cells) // columns) for _, cells in line) for line in lines]
    full_width = 2 * MARGIN + max(
        used * step_x - GAP, *(math.ceil(font(15).getlength(text)) for text in title_lines or [""])
    )
    full_height = (
        2 * MARGIN + (LINE * len(title_lines) + GAP if title_lines else 0) + sum(caption_heights) + sum(depths) * step_y
    )
    canvas = blank(full_width, full_height + (len(lines) - 1) * GAP)
    draw = ImageDraw.Draw(canvas)

    y = text_lines(draw, (MARGIN, MARGIN), title_lines, size=15) + (GAP if title_lines else 0)
    for line, caption_height, depth in zip(lines, caption_heights, depths, strict=True):
        x = MARGIN
        for group in line:
            text_lines(draw, (x, y), wrapped(group))
            for k, cell in enumerate(group[1]):
                _paste(canvas, draw, cell, x + k % columns * step_x, y + caption_height + k // columns * step_y)
            x += min(len(group[1]), columns) * step_x
        y += caption_height + depth * step_y + GAP
    return canvas


def blank(width: int, height: int) -> Image.Image:
    """Return a white picture. ValueError where it would have more than `MOST_PIXELS` pixels."""
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"the picture would have {width} x {height} pixels, and at most {MOST_PIXELS:,} are drawn; "
            "draw fewer images at once"
        )
    return Image.new("RGB", (width, height), "white")


def write_png(path: str | Path, picture: Image.Image) -> Path:
    """Replace a PNG as a whole, and return its path."""
    return write_atomically(path, lambda file: picture.save(file, "PNG"))


def to_picture(image: Tensor, scale: int | None = None) -> Image.Image:
    """Turn uint8 [3, H, W] into a picture, enlarged by a whole number without smoothing."""
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"an image is {tuple(image.shape)} {image.dtype}; expected [3, H, W] uint8")
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    factor = enlargement(picture.width) if scale is None else scale
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def enlargement(width: int, wanted: int | None = None) -> int:
    """Return the whole number that brings a width nearest to `wanted` (None: PICTURE_WIDTH), at least 1."""
    return max(1, round((PICTURE_WIDTH if wanted is None else wanted) / width))


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and knows more letters than PIL's own font."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def wrap(text: str, width: float, *, size: int = 13, most: int = CAPTION_LINES) -> list[str]:
    """Break a text into at most `most` lines of `width` pixels; what does not fit ends in an ellipsis.

    A number and its % stay together.
    """
    length = font(size).getlength
    lines = [""]
    for word in _BREAK.split(text.strip()):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and length(longer) > width:
            if len(lines) > most:
                break
            lines.append(word)
        else:
            lines[-1] = longer
    cut = len(lines) > most
    lines = lines[:most]
    for k, line in enumerate(lines):
        if length(line) > width or (cut and k == most - 1):
            # The most letters that fit, by halving: a text of a file may be one word of any length.
            kept = bisect.bisect(range(1, len(line) + 1), width, key=lambda count: length(line[:count] + "…"))
            lines[k] = line[:kept] + "…"
    return lines


def text_lines(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    lines: Sequence[str],
    *,
    size: int = 13,
    color: tuple[int, int, int] = INK,
) -> int:
    """Write lines downwards from `at`; returns the y below them."""
    for k, line in enumerate(lines):
        draw.text((at[0], at[1] + k * LINE), line, fill=color, font=font(size))
    return at[1] + len(lines) * LINE


def _paste(canvas: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, x: int, y: int) -> None:
    width, height = cell.picture.size
    draw.rectangle((x, y, x + width + 2 * BORDER - 1, y + height + 2 * BORDER - 1), fill=cell.color)
    canvas.paste(cell.picture, (x + BORDER, y + BORDER))
    if cell.note:
        color = FAINT if cell.color == PLAIN else cell.color
        text_lines(draw, (x, y + height + 2 * BORDER + 2), wrap(cell.note, width + 2 * BORDER, most=1), color=color)


def _cells(
    images: Tensor, scores: list[float | None], scale: int | None, label: str = "", strict: bool | None = None
) -> list[Cell]:
    strict = _strict(scores) if strict is None else strict
    cells = []
    for image, score in zip(images, scores, strict=True):
        text, color = verdict(score, strict=strict)
        cells.append(Cell(to_picture(image, scale), " ".join(part for part in (label, text) if part), color))
    return cells


def verdict(score: float | None, *, strict: bool) -> tuple[str, tuple[int, int, int]]:
    """Return text and colour for a score; `strict`: 1 is right and 0 is wrong."""
    if score is None:
        return "", PLAIN
    if math.isnan(score):
        return "failed", FAILED
    if strict:
        return ("✓ right", RIGHT) if score == 1 else ("✗ wrong", WRONG)
    return f"{score:.3g}", PLAIN


def _strict(scores: Sequence[float | None]) -> bool:
    """Return whether all scores that there are, are 0 or 1."""
    known = [score for score in scores if score is not None and not math.isnan(score)]
    return bool(known) and all(score in (0, 1) for score in known)


def _list(scores: Sequence[float] | Tensor | None, count: int) -> list[float | None]:
    if scores is None:
        return [None] * count
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores for {count} images; give one for each")
    return [float(score) for score in scores]
