r"""Turn the formulas of pages, `$...$` and `$$...$$`, into MathML when the site is built.

Browsers draw MathML themselves, so that a formula needs no script, no font and no network.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

#: Fenced code and code within a line: a dollar in there is a dollar.
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?!\s)(?P<inline>[^$\n]+?)(?<!\s)\$(?![\w$])", re.DOTALL)
#: Stands for a formula while Markdown is made into HTML, which would take its signs for its own.
PLACE = "formula-place-{}-"

_formulas: list[str] = []


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a place in the stead of each formula, and keep its MathML."""
    _formulas.clear()
    parts = CODE.split(markdown)
    parts[::2] = [FORMULA.sub(_place, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, **_: Any) -> str:
    """Put the formulas into the page."""
    for k, formula in enumerate(_formulas):
        html = html.replace(PLACE.format(k), formula)
    return html


def _place(found: re.Match[str]) -> str:
    display = found["display"] is not None
    text = " ".join((found["display"] if display else found["inline"]).split())
    shown = convert(text, display="block" if display else "inline")
    _formulas.append(f'<span class="formula" tabindex="0">{shown}</span>' if display else shown)
    return PLACE.format(len(_formulas) - 1)
