"""Make the HTML of a run over many prompts: the paired counts, and the prompts on which two checkpoints differ."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from t2i_gcpo import heatmap
from t2i_gcpo.demo import html_parts
from t2i_gcpo.demo.sessions.paired_run import PairedRun, Side
from t2i_gcpo.reports.tables import NOTE, PAIRED_NOTE, with_interval

#: Prompts that are shown at most.
MOST = 24
#: Map that stands beside an image.
KIND = "weight"
MAP_WIDTH = 192
"""Pixels of a token map, about."""


def counts(run: PairedRun) -> str:
    """Return the table of paired counts, and the paired difference with its interval."""
    left, right = run.left.name, run.right.name
    if not run.done:
        return ""
    words = {
        "both": "both right",
        "left": f"only {left} right" if run.verdicts else f"{left} scores higher",
        "right": f"only {right} right" if run.verdicts else f"{right} scores higher",
        "neither": "neither right",
        "equal": "equal scores",
        "failed": "not scored",
    }
    numbers = run.counts()
    table = html_parts.table(
        [*(words[key] for key in numbers), "prompts"],
        [[*map(str, numbers.values()), f"{run.done} of {len(run.prompts)}"]],
        numbers=range(len(numbers) + 1),
    )
    return f"<div class='t2i-counts'>{table}</div>{html_parts.faint(difference_words(run))}"


def difference_words(run: PairedRun) -> str:
    """Say by how much the right side scores higher, and whether these prompts tell the two apart."""
    found = run.difference()
    low, high = found.ci95
    told = f"{run.right.name} less {run.left.name}: {with_interval(found.overall, found.ci95, signed=True)}"
    if not run.differing():
        told += ", as they differ on none of these prompts"
    elif low == low:
        apart = low > 0 or high < 0
        told += ", so these prompts tell the two apart" if apart else ", so these prompts do not tell the two apart"
    return f"{told} ({NOTE}; {PAIRED_NOTE if run.same_noise else 'same prompts, but not the same noise'})."


def pairs(run: PairedRun, side: int | None) -> str:
    """Return the prompts on which one side (-1 left, 1 right, None either) scores higher: images, maps, reasons."""
    chosen = run.differing(side)
    if not chosen or run.left.maps is None or run.right.maps is None:
        return html_parts.faint("There is no such prompt among those that were run.")
    ends = [maps.end(KIND) for maps in (run.left.maps, run.right.maps)]
    shown = chosen[:MOST]
    legend = html_parts.scale_bar(
        "0",
        f"{max(ends):.3g}",
        signed=False,
        words="beside each image: the weights that GCPO gives its tokens, of mean 1; one scale for all",
    )
    cards = [
        f"<section class='t2i-pair'><h4>{escape(run.prompts[k].text)}</h4><div class='t2i-sides'>"
        + "".join(_side(one, k, max(ends)) for one in (run.left, run.right))
        + "</div></section>"
        for k in shown
    ]
    some = (
        f"They differ on {len(chosen)}; {len(shown)} are shown."
        if len(shown) < len(chosen)
        else f"They differ on {len(chosen)}."
    )
    return f"{html_parts.faint(some)}{legend}<div class='t2i-pairs'>{''.join(cards)}</div>"


def _side(side: Side, index: int, end: float) -> str:
    """Return one checkpoint's image of a prompt, its token map, and what the scorer says, below them."""
    judged, maps = side.judged[index], side.maps
    if maps is None:
        return ""
    what = f"{side.name}: {judged.caption}"
    drawn = heatmap.overlay(maps, KIND, index, end=end, width=MAP_WIDTH)
    images = _image(html_parts.enlarged(maps.images[index], 96), what) + _image(drawn, f"token weights, {what}")
    mark = "" if judged.verdict is None else html_parts.mark(judged.right)
    words = judged.caption[1:] if judged.verdict is not None else judged.caption
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in judged.reasons)
    return (
        f"<figure><div class='t2i-images t2i-pixels'>{images}</div>"
        f"<figcaption><b>{escape(side.name)}</b> {mark}{escape(words)}<ul>{reasons}</ul></figcaption></figure>"
    )


def _image(picture: Image.Image, words: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img src='data:image/png;base64,{data}' alt='{escape(words)}'>"
