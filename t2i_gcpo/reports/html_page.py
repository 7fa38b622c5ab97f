"""Pieces of a self-contained HTML page: no script, no network, pictures as data URIs."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from t2i_gcpo.reports.tables import OVERALL

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c20; background: #fff; max-width: 1180px; margin: 28px auto; padding: 0 20px; }
h1 { font-size: 24px; margin-bottom: 4px; } h2 { font-size: 18px; margin: 34px 0 8px; border-bottom: 1px solid #ddd; padding-bottom: 4px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
td, th { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } tr.total { font-weight: 600; }
img { max-width: 100%; height: auto; } figure { margin: 14px 0; } figcaption, .faint { color: #5c5e66; }
pre { background: #f5f5f7; padding: 12px; overflow-x: auto; font-size: 13px; } .warning { background: #fff5e0; padding: 8px 12px; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def escape(text: object) -> str:
    return html.escape(str(text))


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


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
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(data: bytes | Path, caption: str = "", *, kind: str = "png", link: str = "") -> str:
    """A figure; `link` is a relative path to open on a click."""
    raw = data.read_bytes() if isinstance(data, Path) else data
    source = f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{base64.b64encode(raw).decode()}"
    image = f'<img src="{source}" alt="{escape(caption)}">'
    image = f'<a href="{quote(link)}">{image}</a>' if link else image
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def links(paths: Sequence[Path], root: Path) -> str:
    """Relative links to files below `root`."""
    names = [path.relative_to(root).as_posix() for path in paths]
    return "<p>" + " · ".join(f'<a href="{quote(name)}">{escape(name)}</a>' for name in names) + "</p>" if paths else ""


def details(summary: str, text: str) -> str:
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
