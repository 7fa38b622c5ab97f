"""Credit over an image: the saved `A[b, t]` (and weights, contrast, entropy) drawn over the picture, as PNG, npz and HTML.

B images, T = rows * columns tokens in raster order, H, W pixels. Nothing here computes an advantage: what is drawn is what the loss used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from t2i_gcpo.algorithms import TokenAdvantages
from t2i_gcpo.pictures import CAPTION_LINES, FAINT, GAP, LINE, MARGIN, enlargement, font, text_lines, wrap
from t2i_gcpo.records import ScoredRollout

PERCENTILE = 98
"""The colour scale ends at this percentile of |value| over all panels, so that one token does not bleach the rest."""
SIGNED_MAP, UNSIGNED_MAP = "RdBu_r", "viridis"
OPACITY = 0.85
"""Of a cell at the end of a signed scale; it falls linearly to 0 at 0."""
UNSIGNED_OPACITY = 0.65
SATURATION = 0.25
"""What is left of the picture's own colours below the overlay."""


class Kind(NamedTuple):
    title: str
    """What the picture says it shows."""
    signed: bool


KINDS: dict[str, Kind] = {
    "advantage": Kind("token advantage A[b,t] = A_b · w[b,t]", True),
    "weight": Kind("token weight w[b,t], mean 1 over an image", False),
    "contrast": Kind("contrast log p(token | prompt) − log p(token | negative prompt), nats", True),
    "entropy": Kind("entropy of the token's distribution under the prompt, nats", False),
}


@dataclass(frozen=True)
class Heatmap:
    """All that the pictures are drawn from: numpy arrays, as in the npz."""

    images: np.ndarray
    """[B, 3, H, W] uint8."""
    tokens: np.ndarray
    """[B, T] int64."""
    commit_step: np.ndarray
    """[B, T] int64, when each token was sampled."""
    logprob_positive: np.ndarray
    """[B, T] fp32, nats; so are the next two."""
    logprob_negative: np.ndarray | None
    logprob_behaviour: np.ndarray
    weights: np.ndarray
    """[B, T] fp32."""
    advantages: np.ndarray | None
    """[B, T] fp32; None where nothing was scored."""
    sequence_advantages: np.ndarray | None
    """[B] fp32."""
    scores: np.ndarray
    """[B] fp32, NaN = failed, or not scored."""
    prompts: np.ndarray
    """[B] text."""
    grid: tuple[int, int]
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> [B, T] fp32, those of the rollout."""

    @staticmethod
    def of(
        scored: ScoredRollout, token_advantages: TokenAdvantages | None = None, *, weights: Tensor | None = None
    ) -> Heatmap:
        """From a rollout and what the loss made of it; without a reward from `weights` [B, T] alone. ValueError: neither is given."""
        if token_advantages is not None:
            weights = token_advantages.weights
        if weights is None:
            raise ValueError("there is nothing to draw: pass token advantages, or token weights")
        r = scored.rollout
        owners = [r.prompts[b // r.sampling.group_size].text for b in range(r.batch)]
        return Heatmap(
            images=_array(scored.images),
            tokens=_array(r.tokens),
            commit_step=_array(r.commit_step),
            logprob_positive=_array(r.logprob_positive),
            logprob_negative=None if r.logprob_negative is None else _array(r.logprob_negative),
            logprob_behaviour=_array(r.logprob_behaviour),
            weights=_array(weights),
            advantages=None if token_advantages is None else _array(token_advantages.advantages),
            sequence_advantages=None if token_advantages is None else _array(token_advantages.sequence_advantages),
            scores=_array(scored.scores),
            prompts=np.array(owners, dtype=str),
            grid=r.grid,
            stats={name: _array(value) for name, value in r.stats.items()},
        )

    def maps(self) -> dict[str, np.ndarray]:
        """Kind -> [B, T], those that there are; the first is the one to show."""
        contrast = None if self.logprob_negative is None else self.logprob_positive - self.logprob_negative
        found = {
            "advantage": self.advantages,
            "weight": self.weights,
            "contrast": contrast,
            "entropy": self.stats.get("entropy"),
        }
        return {kind: values for kind, values in found.items() if values is not None}

    def notes(self) -> list[str]:
        """What stands below each panel: its score and its advantage, as far as there are any."""
        notes = []
        for b, score in enumerate(self.scores):
            parts = []
            if self.sequence_advantages is not None:
                parts = [
                    "failed" if np.isnan(score) else f"score {score:.3g}",
                    f"A = {self.sequence_advantages[b]:+.2f}",
                ]
            notes.append("   ".join(parts))
        return notes

    def draw(self, kind: str | None = None, *, columns: int = 2) -> Image.Image:
        """The picture of one map (None: the first of `maps`)."""
        maps = self.maps()
        kind = next(iter(maps)) if kind is None else kind
        if kind not in maps:
            raise ValueError(f"there is no map {kind!r} here; there are {', '.join(maps)}")
        images, values = torch.from_numpy(self.images), torch.from_numpy(maps[kind])
        return render(
            images, values, self.grid, kind=kind, captions=self.prompts.tolist(), notes=self.notes(), columns=columns
        )

    def save(self, path: str | Path) -> Path:
        """Write the npz that `load` reads. What there is not is left out."""
        arrays: dict[str, Any] = {k: v for k, v in vars(self).items() if v is not None and k != "stats"}
        arrays |= {f"stats/{name}": value for name, value in self.stats.items()}
        np.savez_compressed(path, **arrays)
        return Path(path)

    @staticmethod
    def load(path: str | Path) -> Heatmap:
        with np.load(path, allow_pickle=False) as file:
            data: dict[str, Any] = dict(file)
        stats = {name.removeprefix("stats/"): data.pop(name) for name in list(data) if name.startswith("stats/")}
        optional = dict.fromkeys(("logprob_negative", "advantages", "sequence_advantages"))
        rows, columns = (int(side) for side in data.pop("grid"))
        return Heatmap(**{**optional, **data}, grid=(rows, columns), stats=stats)


def save(
    out_dir: str | Path,
    name: str,
    scored: ScoredRollout,
    token_advantages: TokenAdvantages | None = None,
    *,
    weights: Tensor | None = None,
    rows: Sequence[int] | Tensor | None = None,
    columns: int = 2,
) -> list[Path]:
    """Write `name`.png, `name`.npz and `name`.html into `out_dir`; returns their paths.

    rows: which images of the rollout (None: all). Without advantages, `weights` [B, T] are drawn. The PNG is `Heatmap.load(npz).draw()`.
    """
    from t2i_gcpo.heatmap_html import page

    if rows is not None:
        index = torch.as_tensor(rows, dtype=torch.int64)
        device = scored.images.device
        scored = ScoredRollout(
            scored.rollout.rows(index), scored.images[index.to(device)], scored.scores[index.to(scored.scores.device)]
        )
        token_advantages = None if token_advantages is None else token_advantages.rows(index)
        weights = None if weights is None else weights[index.to(weights.device)]
    heatmap = Heatmap.of(scored, token_advantages, weights=weights)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("png", "npz", "html")]
    heatmap.draw(columns=columns).save(paths[0])
    heatmap.save(paths[1])
    paths[2].write_text(page(heatmap, title=name), encoding="utf-8")
    return paths


def scale_end(values: np.ndarray | Tensor) -> float:
    """Where the colour scale ends: the 98th percentile of |values|, the largest where that is 0, and 1 where all are 0."""
    magnitude = np.abs(np.asarray(values, dtype=np.float64))
    magnitude = magnitude[np.isfinite(magnitude)]
    if not magnitude.size or magnitude.max() == 0:
        return 1.0
    return float(np.percentile(magnitude, PERCENTILE)) or float(magnitude.max())


def colormap(signed: bool) -> np.ndarray:
    """[256, 3] uint8."""
    from matplotlib import colormaps

    return np.rint(colormaps[SIGNED_MAP if signed else UNSIGNED_MAP](np.arange(256))[:, :3] * 255).astype(np.uint8)


def overlay(image: np.ndarray, cells: np.ndarray, *, signed: bool, end: float) -> np.ndarray:
    """The picture [3, H, W] uint8, desaturated, below one cell a token [rows, columns] -> [H, W, 3] uint8. NaN cells stay bare."""
    base = rearrange(image, "c h w -> h w c").astype(np.float64)
    luminance = base @ np.array([0.299, 0.587, 0.114])
    base = SATURATION * base + (1 - SATURATION) * luminance[..., None]
    share = np.clip(cells / end, -1 if signed else 0, 1)
    known = np.isfinite(share)
    share = np.where(known, share, 0.0)
    colors = colormap(signed)[np.rint((share + 1) * 127.5 if signed else share * 255).astype(int)]
    opacity = np.where(known, OPACITY * np.abs(share) if signed else UNSIGNED_OPACITY, 0.0)
    # Nearest: each pixel takes its own token's cell.
    h, w = base.shape[:2]
    at = np.ix_(np.arange(h) * cells.shape[0] // h, np.arange(w) * cells.shape[1] // w)
    blend = opacity[at][..., None]
    return np.rint((1 - blend) * base + blend * colors[at]).astype(np.uint8)


def render(
    images: Tensor,
    values: Tensor,
    grid: tuple[int, int],
    *,
    kind: str,
    captions: Sequence[str],
    scores: Sequence[float] | Tensor | None = None,
    notes: Sequence[str] | None = None,
    vmax: float | None = None,
    columns: int = 2,
) -> Image.Image:
    """Each image [B, 3, H, W] uint8 beside itself under its values [B, T], all on one printed scale.

    kind: a key of KINDS, decides title and colours (signed: RdBu_r about 0, opacity by |value|; unsigned: viridis). notes (or else scores)
    stand below a panel. vmax: end of the scale (None: `scale_end` of the values). ValueError: shapes that do not fit, an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"heatmap kind is {kind!r}; allowed: {', '.join(KINDS)}")
    if values.shape != (len(images), grid[0] * grid[1]) or len(captions) != len(images) or not len(images):
        raise ValueError(
            f"{tuple(values.shape)} values on a {grid[0]} x {grid[1]} grid and {len(captions)} captions for {len(images)} images; "
            f"expected [{len(images)}, {grid[0] * grid[1]}] and one caption an image"
        )
    if notes is None:
        notes = [""] * len(images) if scores is None else [f"score {float(score):.3g}" for score in scores]
    title, signed = KINDS[kind]
    cells = rearrange(_array(values), "b (h w) -> b h w", h=grid[0])
    end = scale_end(cells) if vmax is None else float(vmax)
    where = (
        f"one scale for all panels, to the {PERCENTILE}th percentile of |value|"
        if vmax is None
        else "one scale for all panels"
    )
    if not np.nan_to_num(cells).any():
        where = "all values are 0"
    pixels = _array(images)
    factor = enlargement(pixels.shape[-1])
    width, height = pixels.shape[-1] * factor, pixels.shape[-2] * factor
    panel = 2 * width + GAP // 2

    columns = max(1, min(columns, len(images)))
    lines = -(-len(images) // columns)
    total = max(2 * MARGIN + columns * (panel + 2 * GAP) - 2 * GAP, 420)
    head = wrap(title, total - 2 * MARGIN, size=15)
    wrapped = [wrap(caption, panel) for caption in captions]
    caption_height = LINE * min(CAPTION_LINES, max(map(len, wrapped)))
    step = caption_height + height + LINE + GAP
    canvas = Image.new("RGB", (total, 2 * MARGIN + LINE * (len(head) + 2) + 6 + lines * step), "white")
    draw = ImageDraw.Draw(canvas)
    y = text_lines(draw, (MARGIN, MARGIN), head, size=15)
    y = _scale(canvas, draw, (MARGIN, y + 4), signed, end, where) + GAP
    for b in range(len(images)):
        left, top = MARGIN + b % columns * (panel + 2 * GAP), y + b // columns * step
        text_lines(draw, (left, top), wrapped[b])
        top += caption_height
        plain = Image.fromarray(np.ascontiguousarray(rearrange(pixels[b], "c h w -> h w c")))
        over = Image.fromarray(
            overlay(np.kron(pixels[b], np.ones((1, factor, factor), np.uint8)), cells[b], signed=signed, end=end)
        )
        canvas.paste(plain.resize((width, height), Image.Resampling.NEAREST), (left, top))
        canvas.paste(over, (left + width + GAP // 2, top))
        text_lines(draw, (left, top + height + 2), [notes[b]], color=FAINT)
    return canvas


def _scale(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], signed: bool, end: float, where: str
) -> int:
    """The colour bar with its ends and a line of words; returns the y below it."""
    x, y = at
    width, height = 200, 14
    bar = Image.fromarray(colormap(signed)[None]).resize((width, height), Image.Resampling.NEAREST)
    low = f"−{end:.3g}" if signed else "0"
    start = x + int(font(13).getlength(low)) + 6
    text_lines(draw, (x, y), [low])
    canvas.paste(bar, (start, y + 1))
    text_lines(draw, (start + width + 6, y), [f"{'+' if signed else ''}{end:.3g}"])
    words = where + ("; opacity grows with |value|" if signed else "")
    return text_lines(draw, (x, y + LINE + 2), wrap(words, canvas.width - 2 * MARGIN, most=1), color=FAINT)


def _array(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()
