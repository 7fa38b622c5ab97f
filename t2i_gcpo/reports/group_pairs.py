"""Compare groups of runs with each other: paired differences of their scores after training, and their budgets.

Runs of two groups are paired by their seed, their test images by prompt and noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2i_gcpo.evaluation import kept_images
from t2i_gcpo.evaluation.evaluate import EvalResult, paired_difference
from t2i_gcpo.evaluation.intervals import Estimates, pooled
from t2i_gcpo.reports import changes
from t2i_gcpo.reports import html_page as pages
from t2i_gcpo.reports.run import Run
from t2i_gcpo.reports.tables import with_interval
from t2i_gcpo.reports.verdict import direction, tasks_in_words
from t2i_gcpo.utils.json_files import finite_or_none

#: So many groups are compared each with each; of more, each is compared with the first.
EACH_WITH_EACH = 4
HEADER = ["compared", "runs", "images", "difference after training", "told apart"]


@dataclass(frozen=True)
class Difference:
    """Is by how much a group scores higher than another after training."""

    one: str
    other: str
    estimates: Estimates | None
    """The estimates of other - one; None where they cannot be paired."""
    runs: int = 0
    """Pairs of runs."""
    reason: str = ""
    """Why there are no estimates."""

    @property
    def name(self) -> str:
        return f"{self.other} less {self.one}"

    @property
    def apart(self) -> bool:
        """Return whether the interval leaves 0 out."""
        return self.estimates is not None and direction(self.estimates.ci95) != 0

    def sentence(self) -> str:
        """Say the difference with its interval, and whether these runs tell the two apart."""
        if self.estimates is None:
            return f"{self.name}: no paired difference, as {self.reason}."
        e, many = self.estimates, self.runs > 1
        told = "tell the two apart" if self.apart else "do not tell the two apart"
        seeds = f", {self.runs} seeds" if many else ", one seed: the interval holds no difference between seeds"
        return (
            f"After training, {self.name}: {with_interval(e.overall, e.ci95, signed=True)} (95 % interval, n = {e.n} "
            f"pairs of images{seeds}), so these runs {told}; {tasks_in_words(e)}."
        )

    def row(self) -> list[str]:
        """Return the row below HEADER."""
        if self.estimates is None:
            return [self.name, "0", "0", "–", self.reason]
        e = self.estimates
        change = with_interval(e.overall, e.ci95, signed=True)
        return [self.name, str(self.runs), str(e.n), change, "yes" if self.apart else "no"]

    def to_json(self) -> dict[str, Any]:
        e = self.estimates
        return {
            "one": self.one,
            "other": self.other,
            "runs": self.runs,
            "n": 0 if e is None else e.n,
            "difference": None if e is None else finite_or_none(e.overall),
            "ci95": None if e is None else [finite_or_none(bound) for bound in e.ci95],
            "reason": self.reason or None,
        }


def differences(grouped: Mapping[str, Sequence[Run]]) -> list[Difference]:
    """Return the paired differences of the groups' scores after training."""
    names = list(grouped)
    if len(names) <= EACH_WITH_EACH:
        pairs = list(itertools.combinations(names, 2))
    else:
        pairs = [(names[0], name) for name in names[1:]]
    return [_difference(one, other, grouped) for one, other in pairs]


def budget(grouped: Mapping[str, Sequence[Run]]) -> str:
    """Say whether all runs sampled equally many images, discarded ones included, and how many if not; "" of one run."""
    if sum(map(len, grouped.values())) < 2:
        return ""
    counts = {label: [run.last("images_sampled") for run in members] for label, members in grouped.items()}
    unknown = [label for label, values in counts.items() if None in values or not values]
    if unknown:
        return f"Whether the budgets are equal is not known: {', '.join(unknown)} did not log the images sampled."
    known = {label: [value for value in values if value is not None] for label, values in counts.items()}
    least, most = (end(value for values in known.values() for value in values) for end in (min, max))
    if least == most:
        return f"Equal budget: each run sampled {least:,.0f} images."
    told = "; ".join(f"{label} {_range(values)}" for label, values in known.items())
    more = f", up to {most / least - 1:.1%} more than the least".replace("%", " %") if least else ""
    return f"Not an equal budget: images sampled, discarded ones included: {told}{more}."


def pictures(grouped: Mapping[str, Sequence[Run]]) -> list[str]:
    """Show test images of the same prompts and noise side by side where the groups' first runs differ."""
    chosen = [(label, members[0]) for label, members in grouped.items()]
    results = {label: run.after for label, run in chosen if run.after is not None}
    whole = [(label, run) for label, run in chosen if label in results and (run.path / kept_images.AFTER).is_dir()]
    if len(whole) < 2 or not all(_same(results[whole[0][0]], results[label]) for label, _ in whole[1:]):
        return []
    one, other = (results[label] for label, _ in whole[:2])
    strict = changes.verdicts(*(results[label] for label, _ in whole))
    pairs = [pair for sign in (1, -1) for pair in changes.moved(one, other, sign)]
    where = {(row.index, row.image): k for k, row in enumerate(one.rows)}
    shown = changes.choose(pairs, strict=strict)
    title = f"Where {whole[0][0]} and {whole[1][0]} differ: the same prompts and noise, after training"
    cards = []
    for pair in shown:
        row = where[pair.one.index, pair.one.image]
        sides = [
            changes.side(label, run.path, kept_images.AFTER, results[label].rows[row], strict=strict)
            for label, run in whole
        ]
        cards.append(pages.pair(pair.one.text, sides))
    how = "the tasks in equal parts" if strict else "those with the largest difference"
    seeds = ", ".join(f"{label}: {run.name}" for label, run in whole)
    some = f"; {len(shown)} are shown, {how}" if len(shown) < len(pairs) else ""
    words = f"They differ on {len(pairs)} of {one.n} images{some}. Runs: {seeds}."
    return [pages.heading(title), pages.paragraph(words, "faint"), pages.pairs(cards) if cards else ""]


def _difference(one: str, other: str, grouped: Mapping[str, Sequence[Run]]) -> Difference:
    seeds = [{run.config.get("seed"): run for run in grouped[label]} for label in (one, other)]
    common = [seed for seed in seeds[0] if seed in seeds[1]]
    paired = [(seeds[0][seed], seeds[1][seed]) for seed in common]
    results = [(a.after, b.after) for a, b in paired if a.after is not None and b.after is not None]
    if not results:
        reason = "no two of their runs have the same seed" if not common else "they have no scores after training"
        return Difference(one, other, None, reason=reason)
    try:
        first = paired_difference(*results[0])
        for a, b in results[1:]:
            paired_difference(a, b)
        if len(results) == 1:
            return Difference(one, other, first, 1)
        rows = results[0][0].rows
        values = [[y.score - x.score for x, y in zip(a.rows, b.rows, strict=True)] for a, b in results]
        texts, tasks = [row.text for row in rows], [row.task for row in rows]
        if any([row.text for row in a.rows] != texts for a, _ in results):
            raise ValueError("the seeds have different test prompts")
        return Difference(one, other, pooled(values, texts, tasks), len(results))
    except ValueError as error:
        return Difference(one, other, None, reason=str(error))


def _same(one: EvalResult, other: EvalResult) -> bool:
    """Return whether two evaluations have the same prompts and noise."""
    try:
        paired_difference(one, other)
    except ValueError:
        return False
    return True


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
