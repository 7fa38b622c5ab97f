"""Compare each rule's weights with the measured influence of the tokens: what credit should look like.

N images, T tokens. Only tokens that were measured count, and only images of which some token has an influence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from t2i_gcpo.algorithms import Algorithm, token_weights
from t2i_gcpo.evaluation import localisation
from t2i_gcpo.evaluation.causal_file import Truth
from t2i_gcpo.evaluation.intervals import Estimates, estimate, ratio
from t2i_gcpo.records import Rollout
from t2i_gcpo.utils.json_files import finite_or_none

#: Name of a measure -> what it says.
MEASURES: dict[str, str] = {
    "rank_correlation": "Spearman's correlation of weights and influence over an image's tokens",
    "auroc": "AUROC of the weights against the tokens that hold half of the image's influence",
    "share": "share of the weights on these tokens",
    "auroc_open": "the same AUROC among the open tokens: those of which an alternative ever changed the reward",
    "weight": "mean weight of a token, each counted by its influence squared, as estimated without bias; 1 if uniform",
}
DRAWS = 20
"""Draws of a rule that draws at random; its numbers are their mean."""
RANDOM = ("random", "shuffled")


@dataclass(frozen=True)
class Agreement:
    """Holds what was found about every rule."""

    rules: dict[str, dict[str, Estimates]]
    """Rule -> measure -> its estimates over images."""
    reliability: Estimates
    """Spearman's correlation of the influence from either half of the completions: what measuring leaves open."""
    images: int
    """Images of which some token has an influence."""
    without: int
    """Images of which none has."""
    half_tokens: float
    """Share of the measured tokens that hold half of an image's influence: what `share` is of uniform weights."""
    influenced: float
    """Share of the measured tokens whose estimate is above 0, over all images."""
    decided: Estimates
    """Sum of the influence squared over an image's tokens, without bias: the variance of the reward that they decide,
    as far as the measured tokens tell. If its interval holds 0, all that is said of the rules may be noise."""
    reward_variance: Estimates
    """The variance of the reward under a prompt, which that must come to."""
    about: dict[str, Any] = field(default_factory=dict)
    """Checkpoint, prompts, images drawn and the other settings."""

    @property
    def told(self) -> bool:
        """Return whether the influence as a whole is told from 0: else the truth may be all noise."""
        return self.decided.ci95[0] > 0

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""

        def of(one: Estimates) -> dict[str, Any]:
            return {"mean": finite_or_none(one.overall), "ci95": [finite_or_none(v) for v in one.ci95], "n": one.n}

        return {
            **self.about,
            "images": self.images,
            "images_without_influence": self.without,
            "half_tokens": finite_or_none(self.half_tokens),
            "influenced_tokens": finite_or_none(self.influenced),
            "reliability": of(self.reliability),
            "decided_variance": of(self.decided),
            "reward_variance": of(self.reward_variance),
            "measures": MEASURES,
            "rules": {rule: {name: of(one) for name, one in found.items()} for rule, found in self.rules.items()},
        }


def agreement(truth: Truth, rules: Mapping[str, Algorithm], *, seed: int = 0) -> Agreement:
    """Compare every rule's weights on the images with the influence of their tokens.

    seed: of the rules that draw at random. ValueError: no token has an influence, or a rule lacks a log-prob or a
    statistic.
    """
    return compare(truth, {name: weights(rule, truth.rollout, seed=seed) for name, rule in rules.items()}, seed=seed)


def compare(truth: Truth, draws: Mapping[str, Sequence[np.ndarray]], *, seed: int = 0) -> Agreement:
    """Compare values [N, T] with the influence: one array a name, or several draws whose measures are averaged.

    seed: for the record. ValueError: no token has an influence.
    """
    influence, rollout = truth.influence, truth.rollout
    value = influence.value.double().numpy()
    measured = np.isfinite(value)
    with np.errstate(invalid="ignore"):
        counted = (np.where(measured, value, 0.0) > 0).any(axis=1)
    if not counted.any():
        raise ValueError(
            f"no token of the {len(value)} images has an influence on the reward; name other prompts, more images, or "
            "more alternatives and completions"
        )
    half = half_of(value)
    squared = np.nan_to_num(influence.variance.double().numpy(), nan=0.0)
    is_open = squared != 0
    texts = [prompt.text for prompt in rollout.row_prompts]
    tasks = [prompt.task for prompt in rollout.row_prompts]

    def estimated(values: np.ndarray) -> Estimates:
        return estimate(np.where(counted, values, np.nan).tolist(), texts, tasks)

    of_rules = {}
    for name, drawn in draws.items():
        measures = [_measures(draw, value, half, measured, is_open) for draw in drawn]
        of_rules[name] = {
            measure: estimated(np.mean([one[measure] for one in measures], axis=0))
            for measure in ("rank_correlation", "auroc", "share")
        }
        among = np.mean([one["auroc_open"] for one in measures], axis=0)  # of some tasks there may be no such image
        of_rules[name]["auroc_open"] = estimate(among.tolist(), texts, ["all"] * len(texts))
        of_rules[name]["weight"] = _mean_weight(np.mean(drawn, axis=0), squared, texts)
    halves = influence.halves.clamp(min=0).sqrt().double().numpy()
    share = np.array([half[n].sum() / measured[n].sum() for n in np.flatnonzero(counted)])
    return Agreement(
        of_rules,
        estimated(rank_correlation(halves[0], halves[1], measured)),
        int(counted.sum()),
        int((~counted).sum()),
        float(share.mean()),
        float((value[measured] > 0).mean()),
        estimate(_all_of_an_image(squared, measured).tolist(), texts, tasks),
        truth.reward_variance,
        {"seed": seed, **truth.about, "images_finished": influence.drawn},
    )


def weights(rule: Algorithm, rollout: Rollout, *, seed: int = 0) -> list[np.ndarray]:
    """Return the rule's weights [N, T], `DRAWS` of them where it draws at random."""
    rng = torch.Generator().manual_seed(seed)
    draws = DRAWS if rule.credit in RANDOM else 1
    return [_numbers(token_weights(rule, rollout, generator=rng)) for _ in range(draws)]


def half_of(value: np.ndarray) -> np.ndarray:
    """Say which tokens hold half of an image's influence, [N, T] bool: the fewest whose sum is at least half.

    NaN counts as none; of an image without any influence no token does.
    """
    value = np.nan_to_num(value, nan=0.0)
    order = np.argsort(-value, axis=1, kind="stable")
    ordered = np.take_along_axis(value, order, axis=1)
    before = ordered.cumsum(axis=1) - ordered
    inside = (before < value.sum(axis=1, keepdims=True) / 2) & (ordered > 0)
    result = np.zeros(value.shape, dtype=bool)
    np.put_along_axis(result, order, inside, axis=1)
    return result


def rank_correlation(left: np.ndarray, right: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each row's measured values, [N]; 0 where one side has no order at all."""
    result = np.zeros(len(left))
    for n, mask in enumerate(measured):
        ranks = [rankdata(side[n, mask]) - (mask.sum() + 1) / 2 for side in (left, right)]
        length = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
        result[n] = (ranks[0] * ranks[1]).sum() / length if length > 0 else 0.0
    return result


def _all_of_an_image(squared: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the sum [N] over an image's tokens, from those measured; NaN where none is."""
    share = measured.mean(axis=1)
    return np.divide(squared.sum(axis=1), share, out=np.full(len(share), np.nan), where=share > 0)


def _mean_weight(weights: np.ndarray, squared: np.ndarray, clusters: Sequence[str]) -> Estimates:
    """Return the mean weight of the tokens, weighed by their influence squared: a ratio of sums over all images.

    Both sums are without bias, whatever the noise of the single estimates, which a choice of the largest is not.
    """
    found, interval = ratio((weights * squared).sum(axis=1).tolist(), squared.sum(axis=1).tolist(), clusters)
    return Estimates(found, interval, {}, {}, {"all": len(squared)})


def _measures(
    weights: np.ndarray, value: np.ndarray, half: np.ndarray, measured: np.ndarray, is_open: np.ndarray
) -> dict[str, np.ndarray]:
    """Return every measure [N] of one draw of weights [N, T] but the mean weight."""
    each: dict[str, list[float]] = {"auroc": [], "share": [], "auroc_open": []}
    for n, mask in enumerate(measured):
        row, target = weights[n : n + 1, mask], half[n : n + 1, mask]
        each["auroc"].append(float(localisation.auroc(row, target)[0]))
        each["share"].append(float(localisation.share(row, target)[0]))
        among = weights[n : n + 1, is_open[n]], half[n : n + 1, is_open[n]]
        each["auroc_open"].append(float(localisation.auroc(*among)[0]) if is_open[n].any() else np.nan)
    correlation = rank_correlation(weights, value, measured)
    return {"rank_correlation": correlation, **{name: np.array(values) for name, values in each.items()}}


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
