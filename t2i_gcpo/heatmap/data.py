"""`Heatmap`: all that the pictures are drawn from, as numpy arrays, to and from npz.

B images, T = rows * columns tokens in raster order, H, W pixels. Nothing here computes an advantage: what is drawn is
what the loss used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i_gcpo import credit, losses
from t2i_gcpo.algorithms import STATS, Algorithm, TokenAdvantages
from t2i_gcpo.heatmap import kinds, noise, npz, paint
from t2i_gcpo.heatmap import scale as scales
from t2i_gcpo.heatmap.recipe import Recipe
from t2i_gcpo.heatmap.scale import Scale
from t2i_gcpo.records import ScoredRollout
from t2i_gcpo.utils.files import write_atomically

STRIP = 8
"""Labelled images side by side, at most; more stand in lines of equal length."""
DIVERGENCES: tuple[credit.Divergence, ...] = get_args(credit.Divergence)


def _nothing() -> np.ndarray:
    return np.zeros(0)


@dataclass(frozen=True)
class Heatmap:
    """Holds B images with their tokens' numbers: images, weights and grid, and whatever else is known of them.

    What is None was not there; maps that would need it are not offered.
    """

    images: np.ndarray
    """[B, 3, H, W] uint8."""
    weights: np.ndarray
    """[B, T] fp32."""
    grid: tuple[int, int]
    advantages: np.ndarray | None = None
    """[B, T] fp32; None where nothing was scored."""
    sequence_advantages: np.ndarray | None = None
    """[B] fp32."""
    scores: np.ndarray = field(default_factory=_nothing)
    """[B] fp32, NaN = failed, or not scored; NaN throughout where none are given."""
    prompts: np.ndarray = field(default_factory=_nothing)
    """[B] text; empty where none are given."""
    tokens: np.ndarray | None = None
    """[B, T] int64."""
    commit_step: np.ndarray | None = None
    """[B, T] int64, when each token was sampled."""
    logprob_positive: np.ndarray | None = None
    """[B, T] fp32, nats; so are the next two."""
    logprob_negative: np.ndarray | None = None
    logprob_behaviour: np.ndarray | None = None
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> [B, T] fp32, those of the rollout."""
    logprob_reference: np.ndarray | None = None
    """[B, T] fp32, nats: of the same tokens under the prompt in the reference model, raw."""
    negative_prompts: np.ndarray | None = None
    """[B] text that the prompt is contrasted with; None is the null prompt of guidance."""
    labels: np.ndarray | None = None
    """[B] text that tells the images apart, such as the training step."""
    recipe: Recipe | None = None
    """How the weights were made; None where that is not known."""

    def __post_init__(self) -> None:
        if not len(self.scores):
            object.__setattr__(self, "scores", np.full(len(self.images), np.nan, np.float32))
        if not len(self.prompts):
            object.__setattr__(self, "prompts", np.full(len(self.images), "", dtype=str))

    @staticmethod
    def of(
        scored: ScoredRollout,
        token_advantages: TokenAdvantages | None = None,
        *,
        weights: Tensor | None = None,
        algorithm: Algorithm | None = None,
        logprob_reference: Tensor | None = None,
    ) -> Heatmap:
        """Make a heatmap of a rollout and what the loss made of it; without a reward from `weights` [B, T] alone.

        algorithm: what made the weights. logprob_reference [B, T]: the reference model's raw log-probs of the tokens
            under the prompts.
        ValueError: neither token advantages nor weights are given.
        """
        if token_advantages is not None:
            weights = token_advantages.weights
        if weights is None:
            raise ValueError("there is nothing to draw: pass token advantages, or token weights")
        r = scored.rollout
        return Heatmap(
            images=to_array(scored.images),
            tokens=to_array(r.tokens),
            commit_step=to_array(r.commit_step),
            logprob_positive=to_array(r.logprob_positive),
            logprob_negative=None if r.logprob_negative is None else to_array(r.logprob_negative),
            logprob_behaviour=to_array(r.logprob_behaviour),
            weights=to_array(weights),
            advantages=None if token_advantages is None else to_array(token_advantages.advantages),
            sequence_advantages=None if token_advantages is None else to_array(token_advantages.sequence_advantages),
            scores=to_array(scored.scores),
            prompts=np.array([prompt.text for prompt in r.row_prompts], dtype=str),
            grid=r.grid,
            stats={name: to_array(value) for name, value in r.stats.items()},
            logprob_reference=None if logprob_reference is None else to_array(logprob_reference),
            negative_prompts=None if r.negative_prompts is None else np.array(r.per_row(r.negative_prompts), dtype=str),
            recipe=None if algorithm is None else Recipe.of(algorithm),
        )

    def __len__(self) -> int:
        return len(self.images)

    # -- the maps ------------------------------------------------------------------------------------------------------

    def maps(self) -> dict[str, np.ndarray]:
        """Return the maps [B, T] that there are by kind; the first is the one to show."""
        there: dict[str, np.ndarray | None] = {"advantage": self.advantages, "weight": self.weights}
        if self.logprob_positive is not None:
            there |= self._logprob_maps(self.logprob_positive)
        there |= {name: self.stats.get(stat) for name, (stat, _) in STATS.items()}
        there |= {name: self.stats.get(name) for name in ("entropy", "event")}
        there["order"] = None if self.commit_step is None else self.commit_step.astype(np.float32)
        return {kind: values for kind in kinds.KINDS if (values := there.get(kind)) is not None}

    def _logprob_maps(self, logprob_positive: np.ndarray) -> dict[str, np.ndarray]:
        """Return the maps that the tokens' log-probs give."""
        maps = {"surprisal": -logprob_positive}
        positive = torch.from_numpy(logprob_positive)
        if self.logprob_negative is not None:
            maps["contrast"] = logprob_positive - self.logprob_negative
            negative = torch.from_numpy(self.logprob_negative)
            maps |= {name: credit.divergence(positive, negative, name).numpy() for name in DIVERGENCES}
        if self.logprob_reference is not None:
            maps["kl_reference"] = losses.kl(positive, torch.from_numpy(self.logprob_reference), "k3").numpy()
        return maps

    def map(self, kind: str | None = None) -> tuple[str, np.ndarray]:
        """Return a map's name and values [B, T]; None is the first of `maps` that is not blank.

        ValueError: there is no such map.
        """
        maps = self.maps()
        if kind is None:
            name = next((name for name, values in maps.items() if values.any()), next(iter(maps)))
        else:
            name = kind
        kinds.find(name, maps)
        return name, maps[name]

    def order(self) -> np.ndarray:
        """Return when each token was sampled, [B, T] int64. ValueError: it is not known."""
        if self.commit_step is None:
            raise ValueError("the heatmap does not know the order in which its tokens were sampled (commit_step)")
        return self.commit_step

    def title(self, kind: str) -> str:
        """Say what a picture of this map shows, with the weights' recipe and negative prompt if it depends on them."""
        title = kinds.find(kind).title
        if kind == "weight" and self.recipe is None and not np.allclose(self.weights.mean(axis=1), 1, atol=0.01):
            title = "token weight, as given"
        if kind == "weight" and self.advantages is not None and not self.advantages.any():
            title += "; every advantage is 0"
        weighs = kind in ("advantage", "weight")
        if weighs and self.recipe is not None:
            title += f" ({self.recipe.words()})"
        contrasts = kind in ("contrast", *DIVERGENCES, *STATS) or (
            weighs and (self.recipe is None or self.recipe.credit in ("contrast", "shuffled", "sibling"))
        )
        against = set() if self.negative_prompts is None else set(self.negative_prompts.tolist())
        if contrasts and against:
            title += f"; negative prompt: “{against.pop()}”" if len(against) == 1 else "; own negative prompts"
        return title

    def scale(self, kind: str) -> Scale:
        """Return the colour scale of a map that fits all images."""
        return scales.fit(self.map(kind)[1], kinds.find(kind))

    def end(self, kind: str) -> float:
        """Return where the colour scale of a map ends, over all images."""
        return self.scale(kind).end

    def notes(self, *, labels: bool = True) -> list[str]:
        """Return what stands below each panel: its label, score and advantage, as far as there are any."""
        notes = []
        shares = noise.share(self) if labels else None  # a strip's panels are too narrow for it
        for b, score in enumerate(self.scores):
            parts = [str(self.labels[b])] if labels and self.labels is not None else []
            if not np.isnan(score):
                parts.append(f"score {score:.3g}")
            elif self.sequence_advantages is not None and np.isfinite(self.scores).any():
                parts.append("failed")
            if self.sequence_advantages is not None:
                parts.append(f"A = {self.sequence_advantages[b]:+.2f}")
            if shares is not None and np.isfinite(shares[b]):
                parts.append(f"{100 * shares[b]:.0f} % of credit below the floor")
            notes.append(", ".join(parts))
        return notes

    def hatched(self, kind: str) -> np.ndarray | None:
        """Return which cells of a map are hatched, [B, T] bool: those of credit on tokens below the floor."""
        return noise.below_floor(self) if kinds.find(kind).credit else None

    def head(self, kind: str) -> list[str]:
        """Return the lines below a picture's scale: what is hatched, and how much of the credit it is."""
        words = noise.words(self)
        return [f"hatched: {words}" if kinds.find(kind).credit else words] if words else []

    def draw(
        self, kind: str | None = None, *, columns: int | None = None, end: float | Scale | None = None
    ) -> Image.Image:
        """Draw the panel of all images, each and itself under one map (None: the first that `map` gives), on one scale.

        columns: images side by side (None: 2; of labelled images, which are drawn as strips, 8 at most). end: of the
        scale, or the scale (None: `scale`).
        """
        name, values = self.map(kind)
        strip = self.labels is not None
        title = self.title(name)
        if strip and len(texts := set(self.prompts.tolist())) == 1:
            title = f"“{texts.pop()}”: {title}"
        return paint.render(
            self.images,
            values,
            self.grid,
            kind=kinds.find(name),
            title=title,
            captions=self.prompts.tolist() if self.labels is None else self.labels.tolist(),
            notes=self.notes(labels=not strip),
            head=self.head(name),
            end=end,
            noise=self.hatched(name),
            columns=columns or (-(-len(self) // -(-len(self) // STRIP)) if strip else 2),
            stacked=strip,
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays with a row for each image, by the name of their field, without the statistics."""
        return {name: values for name, values in vars(self).items() if isinstance(values, np.ndarray)}

    # -- parts, and the file -------------------------------------------------------------------------------------------

    def rows(self, index: Sequence[int] | np.ndarray) -> Heatmap:
        """Return some images, in the order of `index`."""
        index = np.asarray(index, dtype=np.int64)
        changes: dict[str, Any] = {name: values[index] for name, values in self._arrays().items()}
        return replace(self, **changes, stats={name: value[index] for name, value in self.stats.items()})

    @staticmethod
    def cat(items: Sequence[Heatmap]) -> Heatmap:
        """Join the images of several heatmaps of one grid, one after the other.

        What not all of them have is left out; a recipe that differs, too.

        ValueError: no heatmaps, or grids or pictures of different sizes.
        """
        sizes = sorted({(*item.grid, *item.images.shape[1:]) for item in items})
        if len(sizes) != 1:
            raise ValueError(
                f"heatmaps of {len(sizes)} sizes cannot stand side by side: {sizes}; give some of one size"
            )

        def join(values: list[Any]) -> np.ndarray | None:
            return None if any(value is None for value in values) else np.concatenate(values)

        names = {name for item in items for name in item._arrays()}
        recipes = {item.recipe for item in items}
        joined: dict[str, Any] = {name: join([item._arrays().get(name) for item in items]) for name in names}
        return replace(
            items[0],
            **joined,
            stats={
                name: np.concatenate([item.stats[name] for item in items])
                for name in items[0].stats
                if all(name in item.stats for item in items)
            },
            recipe=recipes.pop() if len(recipes) == 1 else None,
        )

    def save(self, path: str | Path) -> Path:
        """Write the npz that `load` reads; a reader sees the whole file or none. What there is not is left out."""
        arrays: dict[str, Any] = {k: v for k, v in vars(self).items() if v is not None and k not in ("stats", "recipe")}
        arrays |= {f"stats/{name}": value for name, value in self.stats.items()}
        if self.recipe is not None:
            arrays["recipe"] = np.array(self.recipe.dumps())
        return write_atomically(path, lambda file: np.savez_compressed(file, **arrays))

    @staticmethod
    def load(path: str | Path) -> Heatmap:
        """Read an npz that `save` wrote. ValueError, naming the file and what is wrong, for any other."""
        if not Path(path).exists():
            raise ValueError(f"there is no file {path}; name a heatmap .npz of t2i-gcpo heatmap or of a run")
        try:
            data: dict[str, Any] = dict(npz.read(Path(path)))
            recipe = Recipe.loads(str(data.pop("recipe"))) if "recipe" in data else None
        except ValueError as error:
            raise ValueError(f"{path} is not a heatmap that t2i-gcpo wrote: {error}") from error
        stats = {name.removeprefix(npz.STATS): data.pop(name) for name in list(data) if name.startswith(npz.STATS)}
        rows, columns = data.pop("grid").tolist()
        return Heatmap(**data, grid=(rows, columns), stats=stats, recipe=recipe)


def to_array(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()
