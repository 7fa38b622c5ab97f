"""Estimate how well one batch's gradient points along the true one, from the gradients of a few batches.

Batches are independent, so a product of two *different* batches' gradients has no noise in its expectation:
`E[g_j . h_k] = E[g] . E[h]` for j != k. From such products come the squared length of the true gradient and its inner
product with each rule's, without bias; no true gradient is ever computed. docs/alignment.md derives it.

R rules, N batches, D parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import finite_or_none

#: The fewest batches: an interval over fewer says nothing.
LEAST_BATCHES = 4
#: AdamW's epsilon, as training has it by default.
EPS = 1e-8
METRICS = ("plain", "adamw")
#: Name of a statistic -> what it says.
STATISTICS: dict[str, str] = {
    "alignment": "expected cosine of one batch's gradient with the true gradient",
    "agreement": "expected cosine of one batch's gradient with another batch's under the true rule",
    "signal_to_noise": "squared length of the rule's mean gradient / the variance of one batch's",
    "cosine": "cosine of the rule's mean gradient with the true gradient",
    "length": "root mean square length of one batch's gradient / that under the true rule",
}


@dataclass(frozen=True)
class Products:
    """Holds inner products of N batches' gradients, [N, N] fp64 each: rule with rule, rule with truth, truth."""

    own: Tensor
    cross: Tensor
    """Row: the rule's batch; column: the true rule's batch."""
    true: Tensor

    def without(self, batch: int) -> Products:
        """Return the products of the other batches."""
        rest = [k for k in range(len(self.own)) if k != batch]
        return self.of(rest)

    @cached_property
    def left_out(self) -> list[dict[str, float]]:
        """The statistics without each batch in turn: N dicts, for every interval the same."""
        return [statistics(self.without(k)) for k in range(len(self.own))]

    def of(self, batches: Sequence[int]) -> Products:
        """Return the products of some batches."""
        index = torch.tensor(batches)
        return Products(*(values[index][:, index] for values in (self.own, self.cross, self.true)))


def between(products: Tensor) -> float:
    """Return the mean product of different batches [N, N]: an unbiased estimate of the product of the means."""
    count = len(products)
    return float(products.sum() - products.trace()) / (count * (count - 1))


def statistics(products: Products) -> dict[str, float]:
    """Return the statistics by name.

    With m = the rule's mean gradient, u = the true gradient, q = the mean squared length of one batch's gradient
    and q0 that of the true rule's: alignment = m.u / sqrt(u.u q), agreement = m.u / sqrt(q q0), signal_to_noise =
    m.m / (q - m.m), cosine = m.u / sqrt(m.m u.u), length = sqrt(q / q0). NaN where an estimate of a squared length is
    not positive: then the batches are too few or too noisy to tell it from 0. The agreement and the length need the
    length of neither m nor u.
    """
    length, product, true = between(products.own), between(products.cross), between(products.true)
    single, single_true = (float(each.trace()) / len(each) for each in (products.own, products.true))
    return {
        "alignment": product / math.sqrt(true * single) if true > 0 and single > 0 else math.nan,
        "agreement": product / math.sqrt(single * single_true) if single > 0 and single_true > 0 else math.nan,
        "signal_to_noise": length / (single - length) if single > length else math.nan,
        "cosine": product / math.sqrt(length * true) if length > 0 and true > 0 else math.nan,
        "length": math.sqrt(single / single_true) if single_true > 0 else math.nan,
    }


def interval(products: Products, name: str) -> tuple[float, float]:
    """Return the 95 % interval of a statistic over batches; NaN where leaving one out gives no number."""
    return _jackknife(statistics(products)[name], [each[name] for each in products.left_out])


@dataclass(frozen=True)
class Gain:
    """Holds how much better a rule's gradient agrees with the true rule's other batches than the true rule's own does.

    In the plain metric it has the sign of the difference of their alignments, whatever the true gradient's length is.
    """

    value: float
    """Agreement of the rule, less that of the true rule."""
    interval: tuple[float, float]
    """95 % over batches; NaN where leaving one out gives no number."""


def gain(rule: Products, true: Products) -> Gain:
    """Compare a rule's agreement with the true rule's on the same batches: what is chance in both cancels."""
    value = statistics(rule)["agreement"] - statistics(true)["agreement"]
    pairs = zip(rule.left_out, true.left_out, strict=True)
    return Gain(value, _jackknife(value, [one["agreement"] - other["agreement"] for one, other in pairs]))


def _jackknife(value: float, left_out: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval around a value by the jackknife (Efron and Stein 1981).

    left_out: the value without each of the N batches; Student's t has N - 1 degrees of freedom.
    """
    from scipy import stats

    batches, values = len(left_out), np.array(left_out)
    error = math.sqrt((batches - 1) / batches * float(((values - values.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, batches - 1)) * error
    return value - half, value + half


class GradientFile:
    """Keeps every batch's gradient of every rule in one file, so that memory holds a slice of them at a time."""

    def __init__(self, path: Path, rules: int, batches: int, size: int) -> None:
        """Make a file of [R, N, D] fp32. OSError where the disk has no room for it."""
        self.path = path
        self.values = np.memmap(path, dtype=np.float32, mode="w+", shape=(rules, batches, size))

    def write(self, rule: int, batch: int, gradient: Sequence[Tensor]) -> None:
        """Keep one batch's gradient: the parameters' own, in one fixed order."""
        self.values[rule, batch] = torch.cat([part.detach().float().flatten().cpu() for part in gradient]).numpy()

    def slices(self, batches: int, width: int = 2**18) -> Iterator[Tensor]:
        """Yield the first batches' gradients [R, n, d] fp64 of some parameters at a time."""
        for start in range(0, self.values.shape[2], width):
            yield torch.from_numpy(np.array(self.values[:, :batches, start : start + width])).double()

    def remove(self) -> None:
        """Delete the file."""
        del self.values
        self.path.unlink(missing_ok=True)


def adamw_scale(gradients: Tensor) -> Tensor:
    """Return the factor of each parameter [d] under AdamW, 1 / (sqrt(v) + eps), v the mean of g^2 over batches [N, d].

    The momentum, the clipping of the gradient's norm and the weight decay are left out.
    """
    return 1 / (gradients.square().mean(dim=0).sqrt() + EPS)


def products(slices: Iterator[Tensor], true: int, rules: int) -> dict[str, list[Products]]:
    """Sum up each rule's products over all parameters: metric -> R products. `true`: the index of the true rule.

    In the metric `adamw` of a rule, parameters count by the factor that AdamW has for them under that rule: for the
    step `s * g` of a gradient g, the first-order gain of the true objective is the sum of `g * s * u`.
    """
    sums: dict[str, list[list[Tensor]]] = {metric: [[] for _ in range(rules)] for metric in METRICS}
    for part in slices:
        for rule in range(rules):
            for metric in METRICS:
                scale = adamw_scale(part[rule]) if metric == "adamw" else torch.ones(part.shape[2]).double()
                pairs = ((rule, rule), (rule, true), (true, true))
                new = [(part[a] * scale) @ part[b].T for a, b in pairs]
                old = sums[metric][rule]
                sums[metric][rule] = [a + b for a, b in zip(old, new, strict=True)] if old else new
    return {metric: [Products(*each) for each in of_rules] for metric, of_rules in sums.items()}


@dataclass(frozen=True)
class RuleAlignment:
    """Holds one rule's statistics: metric -> name -> value and interval."""

    rule: str
    values: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    gain: dict[str, Gain]
    """Metric -> the agreement's difference from the true rule's."""


@dataclass(frozen=True)
class AlignmentResult:
    """Holds what `t2i-gcpo credit-alignment` measured."""

    rules: list[RuleAlignment]
    stability: dict[str, float]
    """Metric -> Spearman's correlation of the rules' alignment in two halves of the batches; NaN where a half has fewer
    than four, or an alignment is none."""
    about: dict[str, Any] = field(default_factory=dict)
    """Checkpoint, prompts, reward, batches and the other settings."""

    def save(self, path: Path) -> Path:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(_for_json(asdict(self)), indent=2) + "\n")
        return path


def _for_json(value: Any) -> Any:
    """Replace numbers that JSON cannot hold by null, at any depth."""
    if isinstance(value, dict):
        return {key: _for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(item) for item in value]
    return finite_or_none(value) if isinstance(value, float) else value


def measure(
    found: Mapping[str, Sequence[Products]], names: Sequence[str], about: Mapping[str, Any] | None = None
) -> AlignmentResult:
    """Return every rule's statistics with intervals, and how stable their order is. The true rule is the first."""
    rules = []
    for k, name in enumerate(names):
        values = {metric: statistics(found[metric][k]) for metric in METRICS}
        intervals = {metric: {s: interval(found[metric][k], s) for s in STATISTICS} for metric in METRICS}
        gains = {metric: gain(found[metric][k], found[metric][0]) for metric in METRICS}
        rules.append(RuleAlignment(name, values, intervals, gains))
    # In the plain metric the true gradient has one length for all rules: the agreement has the order of the alignment.
    stable = {"plain": stability(found["plain"], "agreement"), "adamw": stability(found["adamw"])}
    return AlignmentResult(rules, stable, dict(about or {}))


def stability(found: Sequence[Products], by: str = "alignment") -> float:
    """Return Spearman's correlation, over the rules, of a statistic in the even and in the odd batches."""
    from scipy import stats

    count = len(found[0].own)
    if count < 2 * LEAST_BATCHES or len(found) < 3:
        return math.nan
    halves = [[statistics(each.of(range(start, count, 2)))[by] for each in found] for start in (0, 1)]
    if not np.isfinite(halves).all():
        return math.nan
    return float(stats.spearmanr(*halves).statistic)
