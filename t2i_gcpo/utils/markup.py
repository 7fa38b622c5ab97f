"""Escape texts of people for Markdown.

Names and values that are not ours must not become links, pictures or HTML.
"""

from __future__ import annotations

import re

#: What begins HTML, a code span, a table's cell or a picture, and what ends a link's text.
_SPECIAL = re.compile(r"[\\`<>|]|!(?=\[)|\](?=[\[(:])")
#: Letters that a table or a sentence has no line for, and those that steer a terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
#: What Markdown of any dialect leaves alone.
_PLAIN = re.compile(r"[^\w .,;/-]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/|w(?=ww\.)")


def one_line(text: object) -> str:
    """Return a text without control characters; each run of them, line ends too, is one space."""
    return _CONTROL.sub(" ", str(text))


def cell(text: object) -> str:
    """Return a text as a cell of a Markdown table.

    Readable as it is, without links, pictures, HTML or cells of its own.
    """
    return _SPECIAL.sub(r"\\\g<0>", one_line(text))


def inline(text: object) -> str:
    """Return a text for the middle of a Markdown sentence: every letter that could mean something is an HTML entity."""
    return _PLAIN.sub(lambda found: f"&#{ord(found[0])};", one_line(text))
