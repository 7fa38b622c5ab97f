"""Draw a text heatmap: tokens in running text, each on its colour, all completions on one printed scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from t2i_gcpo.heatmap.paint import colormap
from t2i_gcpo.heatmap.scale import percentile_end
from t2i_gcpo.utils.pictures import FAINT, GAP, MARGIN, font, wrap

if TYPE_CHECKING:
    from t2i_gcpo.text.heatmap import TextHeatmap

WIDTH = 1000
LINE = 26
"""Pixels from one line of tokens to the next."""
PAD = 4
"""Pixels between a token's text and the border of its pill."""


def draw(heatmaps: Sequence[TextHeatmap], *, title: str) -> Image.Image:
    """Draw the token advantages where all completions have an advantage, else the weights.

    They are those of the divergence that stands first.
    """
    signed = all(item.advantage is not None for item in heatmaps)
    kind = next(iter(heatmaps[0].weights))
    values = [
        np.array(item.weights[kind]) * (item.advantage if signed and item.advantage is not None else 1.0)
        for item in heatmaps
    ]
    end = percentile_end(np.concatenate(values))
    what = "token advantage A · w" if signed else "token weight w"
    canvas = Image.new("RGB", (WIDTH, 40 + sum(_height(item) for item in heatmaps)), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, MARGIN), f"{title}: {what}, {kind}", fill="black", font=font(16))
    low = f"-{end:.3g}" if signed else "0"
    pen.text((MARGIN, MARGIN + 20), f"colours from {low} to {end:.3g}", fill=FAINT, font=font(12))
    y = 52
    for item, numbers in zip(heatmaps, values, strict=True):
        y = _draw_one(pen, item, numbers, end=end, signed=signed, y=y)
    return canvas.crop((0, 0, WIDTH, min(y + MARGIN, canvas.height)))


def _draw_one(
    pen: ImageDraw.ImageDraw, item: TextHeatmap, values: np.ndarray, *, end: float, signed: bool, y: int
) -> int:
    """Draw one completion below y, and return the y below it."""
    notes = [item.label] if item.label else []
    notes += [] if item.score is None else [f"score {item.score:.3g}"]
    notes += [] if item.advantage is None else [f"A = {item.advantage:+.2f}"]
    lines = [", ".join(notes), *_wrapped(f"prompt: {item.prompt}"), *_wrapped(f"negative: {item.negative_prompt}")]
    for line in filter(None, lines):
        pen.text((MARGIN, y), line, fill=FAINT, font=font(12))
        y += 17
    colors, x = colormap(signed), MARGIN
    for token, value in zip(item.tokens, values, strict=True):
        text = token.replace("\n", "⏎").replace(" ", "·") or " "
        width = int(pen.textlength(text, font=font(14))) + 2 * PAD
        if x + width > WIDTH - MARGIN:
            x, y = MARGIN, y + LINE
        share = float(np.clip(value / end, -1 if signed else 0, 1))
        color = tuple(int(c) for c in colors[round((share + 1) * 127.5 if signed else share * 255)])
        pen.rounded_rectangle((x, y, x + width, y + LINE - 4), radius=6, fill=color, outline=(213, 213, 219))
        dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
        pen.text((x + PAD, y + 3), text, fill="white" if dark else "black", font=font(14))
        x += width + 2
    return y + LINE + GAP


def _wrapped(text: str) -> list[str]:
    return wrap(text.replace("\n", " ⏎ "), WIDTH - 2 * MARGIN, size=12, most=4)


def _height(item: TextHeatmap) -> int:
    """Return a number of pixels that is enough for one completion."""
    letters = sum(len(token) + 2 for token in item.tokens)
    return (
        17 * (3 + len(_wrapped(item.prompt)) + len(_wrapped(item.negative_prompt))) + LINE * (2 + letters // 60) + GAP
    )
