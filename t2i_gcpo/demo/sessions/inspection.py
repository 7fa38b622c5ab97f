"""Look at a sampled group under the maps of its credit: a contrast, one image, one cell.

G images of one prompt, T = rows * columns tokens. Redrawing by another divergence or normalisation runs no model;
another contrast re-scores the same tokens once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from PIL import Image, ImageDraw

from t2i_gcpo import heatmap
from t2i_gcpo.algorithms import ALL_STATS, STATS, Algorithm, resolve, token_advantages, token_weights
from t2i_gcpo.credit import Normalization
from t2i_gcpo.demo import html_parts
from t2i_gcpo.demo.scoring import ImageScores, Scorer
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.heatmap.data import DIVERGENCES
from t2i_gcpo.heatmap.kinds import KINDS
from t2i_gcpo.records import Prompt, Sampling, ScoredRollout

NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
#: Maps that an algorithm's rule decides; all others are of the tokens alone.
RULE_MAPS = ("advantage", "weight")


@dataclass(frozen=True)
class Inspection:
    """Is what a session has on its screen."""

    checkpoint: str
    null: heatmap.Heatmap
    """As sampled: contrasted with the null prompt."""
    maps: heatmap.Heatmap
    """Under the chosen divergence, normalisation and contrast."""
    image_scores: ImageScores
    image: int = 0
    cell: tuple[int, int] | None = None
    """(row, column) that was clicked."""

    @property
    def prompt(self) -> str:
        return str(self.null.prompts[0])

    @property
    def negative(self) -> str | None:
        """Return the text that the prompt is contrasted with; None is the null prompt."""
        return None if self.maps.negative_prompts is None else str(self.maps.negative_prompts[0])

    @property
    def recipe(self) -> heatmap.Recipe:
        """Return how the shown weights were made."""
        return self.maps.recipe or heatmap.Recipe()

    @property
    def flat(self) -> heatmap.Heatmap:
        """Return GRPO's maps, which weigh all tokens alike."""
        return heatmap.reweigh(self.maps, credit="uniform")

    @property
    def divergences(self) -> list[str]:
        """Return the divergences that the numbers at hand allow."""
        return [*DIVERGENCES, *(name for name, (stat, _) in STATS.items() if stat in self.maps.stats)]

    @property
    def kinds(self) -> list[str]:
        return list(self.maps.maps())

    @property
    def first_kind(self) -> str:
        """Return the map to begin with: the advantages, where there are any."""
        advantages = self.maps.advantages
        return "advantage" if advantages is not None and advantages.any() else "weight"


def sample(
    generator: ImageGenerator, checkpoint: str, scorer: Scorer, prompt: Prompt, *, seed: int, num: int, guidance: float
) -> Inspection:
    """Sample a group and distribute its credit by GCPO, contrasted with the null prompt."""
    generator.check_prompts([prompt])
    sampling = Sampling(group_size=num, guidance=guidance, seed=seed, stats=ALL_STATS)
    rollout = generator.sample([prompt], sampling)
    with torch.no_grad():
        images = generator.decode(rollout.tokens).cpu()
    image_scores = scorer(images, prompt)
    scored, algorithm = ScoredRollout(rollout, images, image_scores.scores), _gcpo(num)
    if image_scores.scored and num > 1:
        maps = heatmap.Heatmap.of(scored, token_advantages(algorithm, rollout, scored.scores), algorithm=algorithm)
    else:  # an advantage compares an image with its siblings
        maps = heatmap.Heatmap.of(scored, weights=token_weights(algorithm, rollout), algorithm=algorithm)
    return Inspection(checkpoint, maps, maps, image_scores)


def _gcpo(num: int) -> Algorithm:
    return resolve("gcpo", group_size=max(num, 2))


def contrasted(group: Inspection, generator: ImageGenerator, negative: str | None) -> Inspection:
    """Contrast the same tokens with another prompt (None: the null prompt) by one forward pass, without sampling.

    The full-vocabulary divergences were taken at sampling time against the null prompt, and are there with that alone:
    then kl takes over.
    """
    normalization, divergence = group.recipe.normalization, group.recipe.divergence
    if negative is None:
        return replace(group, maps=heatmap.reweigh(group.null, divergence=divergence, normalization=normalization))
    if divergence in STATS:
        divergence = "kl"
    maps = heatmap.reweigh(group.maps, divergence=divergence)
    return replace(group, maps=heatmap.against(maps, generator, negative))


def reweighed(group: Inspection, divergence: str, normalization: str) -> Inspection:
    """Weigh the tokens by another rule; no model is run."""
    return replace(group, maps=heatmap.reweigh(group.maps, divergence=divergence, normalization=normalization))


def caption(group: Inspection, index: int) -> str:
    """Return what stands below image `index`: its verdict or score, and its advantage."""
    parts = [group.image_scores.caption(index)]
    if group.maps.sequence_advantages is not None:
        parts.append(f"A {group.maps.sequence_advantages[index]:+.2f}".replace("-", "−"))
    return "  ".join(filter(None, parts))


# -- what is drawn -----------------------------------------------------------------------------------------------------


def pictures(group: Inspection, kind: str) -> tuple[Image.Image, Image.Image | None]:
    """Draw the chosen image under GCPO's map and under GRPO's, on one scale.

    The second is None for maps that no rule decides.
    """
    end = group.maps.end(kind)
    own = heatmap.overlay(group.maps, kind, group.image, end=end, width=html_parts.LARGE)
    flat = (
        heatmap.overlay(group.flat, kind, group.image, end=end, width=html_parts.LARGE) if kind in RULE_MAPS else None
    )
    for drawn in (own, flat):
        if drawn is not None and group.cell is not None:
            _outline(drawn, group.cell, group.maps.grid)
    return own, flat


def _outline(drawn: Image.Image, cell: tuple[int, int], grid: tuple[int, int]) -> None:
    """Draw a black and white frame around a cell, which is seen on any colour."""
    height, width = drawn.height / grid[0], drawn.width / grid[1]
    box = (cell[1] * width, cell[0] * height, (cell[1] + 1) * width - 1, (cell[0] + 1) * height - 1)
    draw = ImageDraw.Draw(drawn)
    for inset, color in ((-1, "white"), (0, "black"), (1, "white")):
        draw.rectangle((box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset), outline=color)


def at(group: Inspection, x: float, y: float) -> tuple[int, int]:
    """Return the (row, column) that pixels of the enlarged picture lie in. ValueError outside it."""
    rows, columns = group.maps.grid
    factor = html_parts.enlarged(group.maps.images[group.image], html_parts.LARGE)
    row, column = int(y * rows // factor.height), int(x * columns // factor.width)
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"The click at {x:g}, {y:g} is outside the picture; click inside it.")
    return row, column


def legend(group: Inspection, kind: str) -> str:
    """Return the colour bar and what the map shows."""
    end, signed = group.maps.end(kind), KINDS[kind].signed
    words = group.maps.title(kind) + ("; one scale for all images and both algorithms" if kind in RULE_MAPS else "")
    low = f"−{end:.3g}" if signed else "0"
    return html_parts.scale_bar(low, f"{'+' if signed else ''}{end:.3g}", signed=signed, words=words)


#: Rows of the cell's table: (name in `heatmap.cell`, words, whether GRPO's number differs).
_ROWS = (
    ("token", "token id", False),
    ("step", "fixed in sampling step", False),
    ("logprob_positive", "log p(token | prompt)", False),
    ("logprob_negative", "log p(token | contrast)", False),
    ("contrast", "contrast, nats", False),
    ("entropy", "entropy, nats", False),
    ("weight", "weight w", True),
    ("advantage", "advantage A · w", True),
)


def cell_table(group: Inspection) -> str:
    """Return the numbers of the clicked cell under GCPO and GRPO."""
    if group.cell is None:
        return html_parts.faint("Click a cell of the map for its numbers.")
    own, flat = (heatmap.cell(maps, group.image, *group.cell) for maps in (group.maps, group.flat))
    rows = []
    for name, words, by_rule in _ROWS:
        if name in own:
            rows.append([words, _number(own[name]), _number(flat[name]) if by_rule else ""])
    divergence = group.recipe.divergence
    if divergence in own:
        rows.insert(5, [f"{divergence}, nats", _number(own[divergence]), ""])
    title = f"image {group.image + 1}, token {own['index']}: row {own['row']}, column {own['column']}"
    return html_parts.table([title, "GCPO", "GRPO"], rows, numbers=(1, 2))


def _number(value: Any) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}".replace("-", "−")
