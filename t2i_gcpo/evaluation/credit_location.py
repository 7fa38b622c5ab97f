"""Measures whether credit lies on the objects that a prompt names: every credit rule, and its controls.

N images, T tokens, H, W pixels, M maps. The objects come from a detector with masks (ShapeScenes'); the controls are
random values, those of the rule itself at other places, uniform ones (GRPO's), and the entropy and surprisal of the
token, which take no second prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from rewards.geneval.detectors import Detector
from rewards.geneval.rows import check_row
from rewards.geneval.rules import SCORE_THRESHOLD, Detection
from t2i_gcpo import credit
from t2i_gcpo.algorithms import STATS, resolve, token_weights
from t2i_gcpo.evaluation import localisation
from t2i_gcpo.evaluation.causal_agreement import Agreement, compare
from t2i_gcpo.evaluation.causal_file import Truth
from t2i_gcpo.evaluation.intervals import Estimates, estimate
from t2i_gcpo.records import Prompt, Rollout
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import finite_or_none

ESTIMATED: tuple[credit.Divergence, ...] = get_args(credit.Divergence)
"""Divergences that are estimated from the sampled token's log-probs."""
DIVERGENCES: tuple[str, ...] = (*ESTIMATED, *STATS)
NEEDED_STATS = ("entropy", *(stat for stat, _ in STATS.values()))
NORMALIZATIONS: tuple[credit.Normalization, ...] = get_args(credit.Normalization)
DRAWS = 20
"""Draws of each random control; its numbers are their mean, so that one draw's luck is no result."""

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]

MEASURES: dict[str, str] = {
    "auroc": "AUROC against the cells of the objects that the prompt names",
    "auroc_less_entropy": "auroc less that of the token's entropy, image by image",
    "pointing": "pointing game: the largest value lies on such an object",
    "auroc_begins": "AUROC against the cells in which these objects begin: of each object the first to be sampled",
}


@dataclass(frozen=True)
class MapResult:
    """Holds one map's measures over all images."""

    name: str
    """A divergence or a control."""
    measures: dict[str, Estimates]
    """Name of MEASURES -> its estimates over the values themselves. Only the values' order matters to them, so
    every increasing normalisation has the same."""
    shares: dict[str, Estimates]
    """Normalisation -> share of the weights on the cells of the named objects."""


@dataclass(frozen=True)
class CreditResult:
    maps: tuple[MapResult, ...]
    images: int
    """Images that hold an object which their prompt names, and were measured."""
    left_out: int
    """Images that hold no such object."""
    object_cells: float
    """Share of the measured images' cells in which such an object has a pixel."""
    begin_cells: float
    about: dict[str, Any] = field(default_factory=dict)
    """Checkpoint, prompts, sampling."""
    truth: Agreement | None = None
    """The same maps against the measured influence of each token, on the images of which that was measured."""

    def find(self, name: str) -> MapResult:
        return next(one for one in self.maps if one.name == name)

    def to_json(self) -> dict[str, Any]:
        def estimates(e: Estimates) -> dict[str, Any]:
            return {
                "mean": finite_or_none(e.overall),
                "ci95": [finite_or_none(v) for v in e.ci95],
                "by_task": {task: finite_or_none(v) for task, v in e.by_task.items()},
                "n": e.n,
            }

        return {
            **self.about,
            "images": self.images,
            "left_out": self.left_out,
            "object_cells": self.object_cells,
            "begin_cells": self.begin_cells,
            "measures": MEASURES,
            "maps": [
                {
                    "map": m.name,
                    **{measure: estimates(e) for measure, e in m.measures.items()},
                    "share_of_weights": {normalization: estimates(e) for normalization, e in m.shares.items()},
                }
                for m in self.maps
            ],
            **({} if self.truth is None else {"truth": self.truth.to_json()}),
        }

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        return write_atomically(path, text + "\n")


class CreditObserver:
    """Watches `evaluate`: keeps each batch's tokens and log-probs, and where the objects are.

    `result` measures them all.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._rollouts: list[Rollout] = []
        self._objects: list[list[np.ndarray]] = []

    def __call__(self, rollout: Rollout, images: Tensor) -> None:
        """Keep a batch. ValueError: a prompt that says nothing about objects, or a detector without masks."""
        for objects, prompt in zip(self.detector(images), rollout.row_prompts, strict=True):
            masks = [one.mask for one in named(objects, prompt) if one.mask is not None]
            self._objects.append([localisation.cells(mask, rollout.grid) for mask in masks])
        self._rollouts.append(rollout.rows(torch.arange(rollout.batch)).cpu())

    def result(self, *, seed: int = 0, **about: Any) -> CreditResult:
        """Measure all images that were watched.

        seed: of the evaluation, and of the controls' noise. about: what else the file says of it. ValueError: nothing
        was watched, or no object found."""
        if not any(self._objects):
            raise ValueError(
                f"none of the {len(self._objects)} images holds an object that its prompt names, so there is nothing "
                f"to compare credit with"
            )
        rollout = Rollout.cat(self._rollouts)
        order = rollout.commit_step.numpy()
        target = np.stack([np.any([np.zeros(order.shape[1], bool), *mine], axis=0) for mine in self._objects])
        begins = np.stack([localisation.first_cells(mine, order[b]) for b, mine in enumerate(self._objects)])
        there = target.any(axis=1)
        texts, tasks = [p.text for p in rollout.prompts], [p.task for p in rollout.prompts]
        values = credit_values(rollout, seed=seed)
        (entropy,) = values["entropy"]
        of_entropy = localisation.auroc(entropy.numpy(), target)

        def estimated(
            measure: Measure, draws: Sequence[Tensor], where: np.ndarray, less: np.ndarray | float = 0.0
        ) -> Estimates:
            each = np.mean([measure(draw.numpy(), where) for draw in draws], axis=0) - less
            return estimate(each.tolist(), texts, tasks)

        results = []
        for name, draws in values.items():
            measures = {
                "auroc": estimated(localisation.auroc, draws, target),
                "auroc_less_entropy": estimated(localisation.auroc, draws, target, of_entropy),
                "pointing": estimated(localisation.pointing, draws, target),
                "auroc_begins": estimated(localisation.auroc, draws, begins),
            }
            shares: dict[str, Estimates] = {
                normalization: estimated(
                    localisation.share, [weights(name, draw, rollout, normalization) for draw in draws], target
                )
                for normalization in NORMALIZATIONS
            }
            results.append(MapResult(name, measures, shares))
        return CreditResult(
            tuple(results),
            int(there.sum()),
            int((~there).sum()),
            float(target[there].mean()),
            float(begins[there].mean()),
            {**about, "seed": seed},
        )


def against_truth(truth: Truth, *, seed: int = 0) -> Agreement:
    """Compare every map's values with the measured influence of the tokens. ValueError: as `credit_values`."""
    values = credit_values(truth.rollout, seed=seed)
    draws = {name: [weights(name, draw, truth.rollout, "none").numpy() for draw in one] for name, one in values.items()}
    return compare(truth, draws, seed=seed)


def check_named(prompts: Sequence[Prompt]) -> None:
    """Raise ValueError for the first prompt that does not say which objects it names, with its file and line."""
    for prompt in prompts:
        try:
            named([], prompt)
        except ValueError as error:
            raise ValueError(f"{prompt.source}: {error}" if prompt.source else str(error)) from error


def named(detections: Sequence[Detection], prompt: Prompt) -> list[Detection]:
    """Return the detections of classes that the prompt asks for, in the colour where it asks for one.

    ValueError: it says nothing about objects or not as a GenEval row does, or a detection has no mask.
    """
    check_row(prompt.metadata)
    clauses: Sequence[Mapping[str, Any]] = prompt.metadata.get("include") or ()
    if not clauses:
        raise ValueError(
            f"the prompt {prompt.text!r} does not say which objects it names; take prompts "
            "from shapes:test or a GenEval .jsonl file"
        )
    objects = [
        one
        for one in detections
        if one.score > SCORE_THRESHOLD
        and any(one.class_name == clause["class"] and clause.get("color") in (None, one.color) for clause in clauses)
    ]
    if any(one.mask is None for one in objects):
        raise ValueError(
            "the detector gives no masks, so it is not known which cells its objects cover; take the shapes detector"
        )
    return objects


def credit_values(rollout: Rollout, *, seed: int = 0) -> dict[str, list[Tensor]]:
    """Return the values [N, T] of each divergence or control before any normalisation, DRAWS of them for noise.

    seed: of that noise.

    shuffled is the divergence kl at other places. ValueError: a log-prob or statistic that the rollout lacks.
    """
    negative = rollout.logprob_negative
    lacking = [name for name in NEEDED_STATS if name not in rollout.stats]
    if negative is None or lacking:
        raise ValueError(
            f"the rollout lacks {', '.join(lacking) or 'contrast'}; sample with contrast and the stats {NEEDED_STATS}"
        )
    positive = rollout.logprob_positive
    values = {name: [credit.divergence(positive, negative, name)] for name in ESTIMATED}
    full = {name: [rollout.stats[stat]] for name, (stat, _) in STATS.items()}
    rng = torch.Generator().manual_seed(seed)
    return values | full | {
        "entropy": [rollout.stats["entropy"]],
        "surprisal": [-positive],
        "shuffled": [credit.shuffled(values["kl"][0], generator=rng) for _ in range(DRAWS)],
        "random": [torch.rand(positive.shape, generator=rng) for _ in range(DRAWS)],
        "uniform": [torch.ones_like(positive)],
    }  # fmt: skip


def weights(name: str, values: Tensor, rollout: Rollout, normalization: credit.Normalization) -> Tensor:
    """Return weights [N, T] of mean 1 made of the values; of a divergence the very weights of GCPO, floor included."""
    if name in DIVERGENCES:
        return token_weights(resolve("gcpo", divergence=name, normalization=normalization), rollout)
    return credit.normalize(values, normalization=normalization, floor=0.0)
