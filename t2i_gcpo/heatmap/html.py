"""Show a heatmap as one HTML page that needs no network: pictures as data URIs, numbers as JSON, one script.

Per image, the picture and itself under its map; point at a cell, tap it, or move to it by the arrow keys for its
numbers, switch between the maps, change the opacity, and scrub over the order in which the tokens were sampled.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.heatmap.kinds import KINDS
from t2i_gcpo.heatmap.noise import below_floor, describe, floor, ranks
from t2i_gcpo.heatmap.page_template import PAGE
from t2i_gcpo.heatmap.paint import OPACITY, UNSIGNED_OPACITY, bar, overlay_colors
from t2i_gcpo.heatmap.scale import words

DIGITS = 5
"""Significant digits of the numbers in the page."""
WIDTH = 256
"""Pixels that a picture is shown at, about."""


def page(heatmap: Heatmap, *, title: str, first: str | None = None) -> str:
    """Return the whole page as text; `first` is the map that is shown first."""
    text = json.dumps(payload(heatmap, first=first), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # "</script>" in a prompt must not end the script.
    return PAGE.replace("__TITLE__", html.escape(title)).replace("__DATA__", text.replace("<", "\\u003c"))


def payload(heatmap: Heatmap, *, first: str | None = None) -> dict[str, Any]:
    """Return what the page's script reads: plain values, null for what is not finite."""
    maps, noise = heatmap.maps(), below_floor(heatmap)
    scales, places = {kind: heatmap.scale(kind) for kind in maps}, ranks(heatmap.weights)
    return {
        "grid": list(heatmap.grid),
        "first": heatmap.map(first)[0],
        "colors": {"signed": overlay_colors(True).tolist(), "unsigned": overlay_colors(False).tolist()},
        "bars": {"signed": bar(True).tolist(), "unsigned": bar(False).tolist()},
        "opacity": {"signed": OPACITY, "unsigned": UNSIGNED_OPACITY},
        "floor": floor(heatmap),
        "maps": [
            {
                "kind": kind,
                "title": heatmap.title(kind),
                "scale": whole_percents("; ".join([words(values, KINDS[kind]), *heatmap.head(kind)])),
                "signed": KINDS[kind].signed,
                "credit": KINDS[kind].credit,
                "end": _numbers(scales[kind].end),
                "linear": None if (linear := scales[kind].linear) is None else _numbers(linear),
                "alts": [describe(heatmap, kind, b) for b in range(len(heatmap))],
            }
            for kind, values in maps.items()
        ],
        "width": WIDTH,
        "images": [
            {
                "prompt": str(heatmap.prompts[b]),
                "note": whole_percents(note),
                "picture": data_uri(heatmap.images[b]),
                "maps": {kind: _numbers(values[b]) for kind, values in maps.items()},
                "rank": places[b].tolist(),
                "below_floor": None if noise is None else noise[b].astype(int).tolist(),
                "tokens": _row(heatmap.tokens, b),
                "step": _row(heatmap.commit_step, b),
                "logprob_positive": _row(heatmap.logprob_positive, b),
                "logprob_negative": _row(heatmap.logprob_negative, b),
                "logprob_reference": _row(heatmap.logprob_reference, b),
            }
            for b, note in enumerate(heatmap.notes())
        ],
    }


def whole_percents(text: str) -> str:
    """Keep each number and its % on one line: a no-break space stands between them."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def data_uri(image: np.ndarray) -> str:
    """Encode [3, H, W] uint8 as a PNG in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rearrange(image, "c h w -> h w c"))).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _row(values: np.ndarray | None, b: int) -> Any:
    """Return one image's numbers, or null where there are none."""
    return None if values is None else _numbers(values[b])


def _numbers(values: Any) -> Any:
    """Round floats, with null for NaN and infinities."""
    if isinstance(values, np.ndarray):
        return [_numbers(value) for value in values.tolist()]
    if isinstance(values, int):
        return values
    return float(f"{values:.{DIGITS}g}") if math.isfinite(values) else None
