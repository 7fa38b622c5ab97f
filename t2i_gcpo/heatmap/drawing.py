"""Draw the credit of anybody's model: pictures and weights from outside the toolkit, as tensors, arrays or PIL.

B images, T = rows * columns tokens in raster order, H, W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from t2i_gcpo import credit
from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.heatmap.given import plain, to_cells, to_images, to_rows
from t2i_gcpo.heatmap.html import page
from t2i_gcpo.heatmap.recipe import Recipe
from t2i_gcpo.utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Ending of a file -> what `Drawing.save` writes there.
ENDINGS = {
    ".png": "the picture",
    ".html": "the page with every number",
    ".npz": "the numbers, which heatmap.load reads",
    ".pdf": "the figure",
    ".svg": "the figure",
}


@dataclass(frozen=True)
class Drawing:
    """Is a heatmap that is ready to be shown or saved; a notebook shows it as it is."""

    heatmap: Heatmap
    kind: str
    """The map in the picture; the page has all of them."""
    columns: int | None = None
    """Images side by side."""

    def picture(self) -> Image.Image:
        """Draw each image beside itself under the map, on one printed scale."""
        return self.heatmap.draw(self.kind, columns=self.columns)

    def figure(self) -> Figure:
        """Draw the picture as a figure of matplotlib, at its own size."""
        from matplotlib.figure import Figure

        picture = self.picture()
        figure = Figure(figsize=(picture.width / 100, picture.height / 100), dpi=100)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.imshow(np.asarray(picture), interpolation="nearest")
        axes.set_axis_off()
        return figure

    def html(self, title: str = "heatmap") -> str:
        """Return a page that needs no network: all maps, and the numbers of each cell."""
        return page(self.heatmap, title=title, first=self.kind)

    def save(self, path: str | Path) -> Path:
        """Write a .png, .html, .npz, .pdf or .svg, by the ending of `path`; returns it. ValueError: another ending."""
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in ENDINGS:
            allowed = ", ".join(f"{name} ({what})" for name, what in ENDINGS.items())
            raise ValueError(f"{path} ends in {ending or 'nothing'}; allowed: {allowed}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".npz":
            return self.heatmap.save(path)
        if ending == ".html":
            return write_atomically(path, self.html(path.stem))
        if ending == ".png":
            picture = self.picture()
            return write_atomically(path, lambda file: picture.save(file, "PNG"))
        figure = self.figure()
        return write_atomically(path, lambda file: figure.savefig(file, format=ending[1:]))

    def _repr_png_(self) -> bytes:
        """Return the picture as notebooks show it."""
        buffer = io.BytesIO()
        self.picture().save(buffer, "PNG")
        return buffer.getvalue()


def draw(
    image: Any,
    weights: Any = None,
    *,
    grid: tuple[int, int] | None = None,
    logprob_positive: Any = None,
    logprob_negative: Any = None,
    tokens: Any = None,
    advantages: Any = None,
    scores: Any = None,
    prompts: str | Sequence[str] | None = None,
    kind: str | None = None,
    columns: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> Drawing:
    """Draw token weights over the images that they belong to, whatever model made them.

    >>> picture, weights = torch.rand(3, 96, 96), torch.rand(12, 12)
    >>> drawing = heatmap.draw(picture, weights)
    >>> drawing.save(folder / "credit.html").name
    'credit.html'

    image: one image or B of them, as tensor, array, PIL image or a list of these: [H, W], [3, H, W] or [H, W, 3],
        bytes or floats; the range of floats, [0, 1], [-1, 1] or [0, 255], is taken from the values unless
        `value_range` = (black, white) says it.
    weights: how much credit each token has, at least 0: [B, T] or [B, rows, columns], of one image also [T] or [rows,
        columns]. None: GCPO's weights, from both log-probs. grid: (rows, columns); may be left out where the shape of
        the weights shows it.
    logprob_positive, logprob_negative: log-probs of the tokens with and without the prompt, nats, shaped as the weights
        may be; so are `tokens`, their codebook indices, which the page shows. They bring further maps.
    advantages: A_b of each image [B], or of each token, shaped as the weights may be; then these are drawn.
    scores: of each image [B]; prompts: one, or one of each image. kind: the map to draw (None: the first that there
    is, `Heatmap.maps`); columns: images side by side.

    ValueError, in a sentence: shapes or values that do not fit.
    """
    images = to_images(image, value_range)
    count = len(images)
    given = {
        "weights": weights,
        "logprob_positive": logprob_positive,
        "logprob_negative": logprob_negative,
        "tokens": tokens,
    }
    if weights is None and (logprob_positive is None or logprob_negative is None):
        raise ValueError(
            "there is nothing to draw: give weights, or logprob_positive and logprob_negative for GCPO's weights"
        )
    cells, grid = _cells(given, count, grid)
    known: dict[str, Any] = dict(cells)
    if weights is None:
        positive, negative = (torch.from_numpy(known[name]) for name in ("logprob_positive", "logprob_negative"))
        known["weights"], known["recipe"] = credit.token_weights(positive, negative).numpy(), Recipe()
    known |= _advantages(advantages, known["weights"], grid)
    if scores is not None:
        known["scores"] = to_rows("scores", scores, count)
    if prompts is not None:
        known["prompts"] = _texts(prompts, count)
    drawn = Heatmap(images=images, grid=grid, **known)
    return Drawing(drawn, drawn.map(kind)[0], columns)


def _cells(
    given: dict[str, Any], count: int, grid: tuple[int, int] | None
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    """Return those numbers of the tokens that are given, [B, T] each, and the grid, which the first may show."""
    cells: dict[str, np.ndarray] = {}
    for name, values in given.items():
        if values is not None:
            cells[name], grid = to_cells(name, values, count, grid, whole=name == "tokens")
    if grid is None:
        raise ValueError("there are no numbers of tokens")
    if "weights" in cells and (cells["weights"] < 0).any():
        raise ValueError(
            f"weights are as low as {cells['weights'].min():.3g}; they must be at least 0. Give signed credit as "
            "advantages, with the weights that it was made of"
        )
    return cells, grid


def _advantages(given: Any, weights: np.ndarray, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the advantages of the images [B] and of their tokens [B, T], as far as the given ones say them."""
    if given is None:
        return {}
    array, count = plain(given), len(weights)
    if array.ndim <= 1 and array.size == count:
        rows = to_rows("advantages", given, count)
        return {"sequence_advantages": rows, "advantages": rows[:, None] * weights}
    return {"advantages": to_cells("advantages", given, count, grid)[0]}


def _texts(given: str | Sequence[str], count: int) -> np.ndarray:
    """Return a prompt of each image. ValueError: another number of them."""
    texts = [given] * count if isinstance(given, str) else list(given)
    if len(texts) != count:
        raise ValueError(f"there are {len(texts)} prompts for {count} images; give one for all, or one of each")
    return np.array([" ".join(text.split()) for text in texts], dtype=str)
