"""Make small pieces of the page: enlarged pictures, tables and bars as HTML. Texts of people are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image
from torch import Tensor

from t2i_gcpo.demo.scoring import ImageScores
from t2i_gcpo.heatmap import paint
from t2i_gcpo.utils.pictures import enlargement

THUMBNAIL, LARGE = 192, 384
"""Pixels that a picture is enlarged to, about, by a whole number."""

CSS = """
.gradio-container { max-width: 1280px !important; margin-left: auto !important; margin-right: auto !important; }
.t2i-table { border-collapse: collapse; font-size: 13px; margin: 0 !important; border: 0 !important; }
.t2i-table tr { border: 0 !important; padding: 0 !important; background: none !important; }
.t2i-table th, .t2i-table td { padding: 2px 10px 2px 0 !important; text-align: left; vertical-align: top; border: 0
!important; background: none !important; } .t2i-table thead tr { border-bottom: 1px solid var(--border-color-primary)
!important; } .t2i-table th { font-weight: 600; } .t2i-table .n { text-align: right; font-variant-numeric: tabular-nums;
} .t2i-good { color: #168c42; font-weight: 600; } .t2i-bad { color: #c62f2f; font-weight: 600; }
.t2i-faint { opacity: 0.75; font-size: 13px; }
.t2i-scroll { overflow-x: auto; contain: inline-size; }
.t2i-bar { display: flex; align-items: center; gap: 8px; font-size: 13px; font-variant-numeric: tabular-nums; }
.t2i-bar i { display: inline-block; width: 180px; height: 12px; border-radius: 2px; }
.t2i-pixels img { image-rendering: pixelated; }
.t2i-panels .thumbnail-item { aspect-ratio: auto !important; height: auto !important; }
.t2i-panels .gallery-item, .t2i-panels img { height: auto !important; }
.t2i-pixels .grid-container, .t2i-panels .grid-container { padding-top: 24px !important; }
.t2i-pixels .grid-wrap, .t2i-panels .grid-wrap { min-height: 0 !important; height: auto !important; max-height: none
!important; } .gradio-container .vega-embed { width: 100%; }
@media (max-width: 640px) { .t2i-panels .grid-container { grid-template-columns: 1fr !important; } .t2i-pixels .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
.tab-container button { padding: 0 7px !important; font-size: 13px !important; } }
.t2i-pixels .thumbnail-item { aspect-ratio: auto !important; height: auto !important; }
.t2i-pixels .gallery-item, .t2i-pixels .gallery-item img { height: auto !important; }
.t2i-pixels .caption-label, .t2i-panels .caption-label { position: static !important; display: block; max-width: 100%
!important; border: 0; border-radius: 0; text-align: center; white-space: normal; opacity: 1 !important; }
#t2i-gcpo .image-container, #t2i-grpo .image-container { padding-top: 30px; height: auto !important; }
.t2i-pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 540px), 1fr)); gap: 16px; }
.t2i-pair { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 10px; min-width: 0; }
.t2i-pair h4 { margin: 0 0 8px; font-weight: 600; overflow-wrap: anywhere; }
.t2i-sides { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.t2i-sides figure { margin: 0; min-width: 0; } .t2i-sides figcaption { font-size: 13px; margin-top: 4px; }
.t2i-sides ul { margin: 2px 0 0; padding-left: 18px; list-style: disc; }
.t2i-images { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; } .t2i-images img { width: 100%; display: block; }
@media (max-width: 640px) { .t2i-sides { grid-template-columns: 1fr; } }
[id^=t2i-status] .pending { opacity: 1 !important; }
#t2i-slider { padding-top: 34px !important; }
.t2i-counts td, #t2i-origins td { white-space: nowrap; } .t2i-counts td { font-size: 20px; } .dark .t2i-good { color: #4ade80; } .dark .t2i-bad { color: #f87171; }
.dark .t2i-plot { background: var(--neutral-950) !important; }
.t2i-plot svg text { fill: var(--body-text-color) !important; }
.t2i-plot svg .role-axis line { stroke: color-mix(in srgb, var(--body-text-color) 30%, transparent) !important; }
#t2i-status-compare, #t2i-status-inspect, #t2i-status-live, #t2i-status-runs, #t2i-status-many, #t2i-status-text {
min-height: 28px; }
"""


def enlarged(image: Tensor | np.ndarray, about: int = THUMBNAIL) -> Image.Image:
    """Enlarge [3, H, W] uint8 to a picture of about so many pixels a side, without smoothing."""
    pixels = image if isinstance(image, np.ndarray) else image.cpu().numpy()
    return paint.picture(pixels, enlargement(pixels.shape[-1], about))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Return a table of escaped texts. Cells that are `Markup` stay as they are.

    numbers: the columns whose cells stand to the right.
    """
    kinds = [" class='n'" if k in numbers else "" for k in range(len(columns))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f"<div class='t2i-scroll'><table "
        f"class='t2i-table'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


class Markup(str):
    """Is HTML that is meant as such, and not escaped."""


def _cell(text: str) -> str:
    return text if isinstance(text, Markup) else escape(text)


def mark(good: bool) -> Markup:
    return Markup(f"<span class='t2i-{'good' if good else 'bad'}'>{'✓' if good else '✗'}</span>")


def faint(text: str) -> str:
    return f"<div class='t2i-faint'>{escape(text)}</div>"


def verdict_table(image_scores: ImageScores) -> str:
    """Return a table with a row for each clause and a column for each image, and why an image is wrong.

    For other rewards it is one row of scores.
    """
    if not image_scores.scored:
        return faint(image_scores.why_not)
    count = len(image_scores.scores)
    columns = [image_scores.summary(), *(str(k + 1) for k in range(count))]
    if image_scores.verdicts is None:
        return table(columns, [["score", *(f"{score:.3g}" for score in image_scores.scores.tolist())]])
    rows = [
        [clause, *(mark(verdict.clauses[k]) for verdict in image_scores.verdicts)]
        for k, clause in enumerate(image_scores.clauses)
    ]
    wrong = ((k, reasons) for k, reasons in enumerate(image_scores.reasons, start=1) if reasons)
    return table(columns, rows) + "".join(faint(f"Image {k}: {'; '.join(reasons)}") for k, reasons in wrong)


def scale_bar(low: str, high: str, *, signed: bool, words: str) -> str:
    """Return the colour bar of a map with its ends, and a line of words below."""
    colors = paint.bar(signed)[np.linspace(0, 255, 17).astype(int)]
    stops = ", ".join(f"rgb({r},{g},{b})" for r, g, b in colors.tolist())
    bar = f"<i style='background: linear-gradient(to right, {stops})'></i>"
    return f"<div class='t2i-bar'><span>{low}</span>{bar}<span>{high}</span></div>{faint(words)}"
