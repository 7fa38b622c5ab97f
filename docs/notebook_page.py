"""Turn a notebook with the outputs of its last execution into the Markdown of a page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any


def markdown(path: Path) -> str:
    """Return the page of a notebook: its texts, its code, and below each cell what it printed and drew."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell)) + "\n"


def _parts(cell: dict[str, Any]) -> list[str]:
    source = _text(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    if not source.strip():
        return []
    shown = [_output(output) for output in cell.get("outputs", [])]
    return [f"```python\n{source}\n```", *(one for one in shown if one)]


def _output(output: dict[str, Any]) -> str:
    """Return one output: a picture, a table, or text; what only a notebook can show is left out."""
    data = output.get("data", {})
    if "image/png" in data:
        encoded = "".join(_text(data["image/png"]).split())
        return f'<p><img src="data:image/png;base64,{encoded}" alt="what the cell above draws"></p>'
    if "text/markdown" in data:
        return _text(data["text/markdown"])
    text = _text(output.get("text") or data.get("text/plain") or "")
    lines = [line.rsplit("\r", 1)[-1] for line in text.rstrip().split("\n")]  # of a progress bar its last state
    return f'<pre class="output">{escape(chr(10).join(lines))}</pre>' if text.strip() else ""


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
