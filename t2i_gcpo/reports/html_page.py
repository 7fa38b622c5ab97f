"""Pieces of a self-contained HTML page: no network, pictures as data URIs, and one script that enlarges them."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from t2i_gcpo.reports.html_style import DIALOG, POLICY, SCRIPT, STYLE
from t2i_gcpo.reports.tables import OVERALL, number


@dataclass(frozen=True)
class Side:
    """Is one of several images that stand side by side."""

    label: str
    image: Path | bytes | None
    """A PNG; None where there is none."""
    verdict: bool | None
    """Right or wrong; None where a score says it."""
    score: float
    reasons: Sequence[str] = ()


def page(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n{body}\n"
        f"{DIALOG}<script>{SCRIPT}</script></body></html>\n"
    )


def escape(text: object) -> str:
    return html.escape(str(text))


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows that begin with "overall" or "mean" stand out."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f'<tr class="{"total" if row[0] == OVERALL or row[0].startswith("mean") else ""}">'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def picture(
    data: bytes | Path, caption: str = "", *, kind: str = "png", link: str = "", dark: bytes | None = None
) -> str:
    """A figure that a click enlarges.

    link: a relative path that the caption leads to. dark: the same for dark pages. An SVG, which has small text, keeps
    its width on narrow screens, and scrolls.
    """
    other = f'<source media="(prefers-color-scheme: dark)" srcset="{_uri(dark, kind)}">' if dark else ""
    image = f"<picture>{other}{_image(data, caption, kind)}</picture>" if other else _image(data, caption, kind)
    more = f' (<a href="{quote(link)}">open</a>)' if link else ""
    wide = kind == "svg"
    shown = f'<div class="scroll">{_enlarging(image)}</div>' if wide else _enlarging(image)
    return f"<figure{' class=wide' * wide}>{shown}<figcaption>{escape(caption)}{more}</figcaption></figure>"


def pair(title: str, sides: Sequence[Side]) -> str:
    """Images of one prompt and noise side by side, each with its verdict or score, and why it is wrong."""
    return f'<section class="pair"><h4>{escape(title)}</h4><div class="sides">{"".join(_side(title, side) for side in sides)}</div></section>'


def pairs(cards: Sequence[str]) -> str:
    return f'<div class="pairs">{"".join(cards)}</div>'


def _side(title: str, side: Side) -> str:
    if side.verdict is None:
        mark = words = "failed" if math.isnan(side.score) else f"score {number(side.score)}"
    else:
        words = "✓ right" if side.verdict else "✗ wrong"
        mark = f'<span class="{"good" if side.verdict else "bad"}">{words}</span>'
    image = "" if side.image is None else _enlarging(_image(side.image, f"{title}, {side.label}: {words}"))
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in side.reasons)
    return (
        f"<figure>{image}<figcaption><b>{escape(side.label)}</b> {mark}"
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</figcaption></figure>"
    )


def _enlarging(image: str) -> str:
    return f'<button type="button" class="zoom" title="enlarge">{image}</button>'


def _image(data: bytes | Path, words: str, kind: str = "png") -> str:
    return f'<img src="{_uri(data, kind)}" alt="{escape(words)}">'


def _uri(data: bytes | Path, kind: str) -> str:
    raw = data.read_bytes() if isinstance(data, Path) else data
    return f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{base64.b64encode(raw).decode()}"


def links(paths: Sequence[Path], root: Path) -> str:
    """Relative links to files below `root`."""
    names = [path.relative_to(root).as_posix() for path in paths]
    return "<p>" + " · ".join(f'<a href="{quote(name)}">{escape(name)}</a>' for name in names) + "</p>" if paths else ""


def details(summary: str, text: str) -> str:
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
