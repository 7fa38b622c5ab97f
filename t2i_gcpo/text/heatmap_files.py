"""Write the files of a text heatmap: the HTML page and the PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2i_gcpo.text.heatmap import Recipe, TextHeatmap
from t2i_gcpo.text.heatmap_page import page
from t2i_gcpo.text.heatmap_picture import draw
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.pictures import write_png


def save(heatmaps: Sequence[TextHeatmap], folder: Path, *, name: str, title: str, recipe: Recipe) -> list[Path]:
    """Write `name`.html and `name`.png, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.html", page(heatmaps, title=title, recipe=recipe.words()))
    write_png(folder / f"{name}.png", draw(heatmaps, title=title))
    return [folder / f"{name}.html", folder / f"{name}.png"]
