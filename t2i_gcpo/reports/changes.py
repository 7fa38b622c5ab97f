"""Show which test images a training turned right or wrong: the same prompts and noise, before and after.

Scores that are not all 0 or 1 have no right and wrong: then the largest rises and falls are shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_gcpo.data.selection import evenly
from t2i_gcpo.evaluation import kept_images
from t2i_gcpo.evaluation.evaluate import EvalResult, ScoredImage
from t2i_gcpo.reports import html_page as pages
from t2i_gcpo.reports import run_files
from t2i_gcpo.reports.run import Run

#: Pairs of each kind that are shown at most.
MOST = 12
#: Scores closer than this are equal.
EQUAL = 1e-9


@dataclass(frozen=True)
class Pair:
    """Is one prompt and noise under two sets of weights."""

    one: ScoredImage
    other: ScoredImage

    @property
    def change(self) -> float:
        """Return other - one; NaN where one of them has no score."""
        return self.other.score - self.one.score


def moved(one: EvalResult, other: EvalResult, sign: int) -> list[Pair]:
    """Return the pairs of images whose score is higher (1) or lower (-1) in `other`."""
    pairs = [Pair(a, b) for a, b in zip(one.rows, other.rows, strict=True)]
    return [pair for pair in pairs if sign * pair.change > EQUAL]


def verdicts(*results: EvalResult) -> bool:
    """Return whether all scores that there are, are 0 or 1: wrong or right."""
    scores = [row.score for result in results for row in result.rows if not math.isnan(row.score)]
    return bool(scores) and all(score in (0, 1) for score in scores)


def choose(pairs: Sequence[Pair], *, strict: bool, most: int = MOST) -> list[Pair]:
    """Choose those that are shown: of verdicts the tasks in equal parts, of other scores the largest changes."""
    if strict:
        return [pairs[k] for k in evenly([pair.one.task for pair in pairs], most)]
    return sorted(pairs, key=lambda pair: -abs(pair.change))[:most]


def html(run: Run) -> list[str]:
    """Return the parts of a report that show what changed; none where the evaluations cannot be paired."""
    if run.before is None or run.after is None or run.difference()[0] is None:
        return []
    strict = verdicts(run.before, run.after)
    names = (
        ("✗ → ✓: became right", "✓ → ✗: became wrong") if strict else ("Scores that rose most", "Scores that fell most")
    )
    parts = [pages.heading("What changed: the same prompts and noise, before and after")]
    for name, sign in zip(names, (1, -1), strict=True):
        pairs = moved(run.before, run.after, sign)
        shown = choose(pairs, strict=strict)
        parts.append(pages.heading(f"{name} ({len(pairs)} of {run.after.n} images)", level=3))
        if len(shown) < len(pairs):
            how = "the tasks in equal parts" if strict else "those with the largest change"
            parts.append(pages.paragraph(f"{len(shown)} of them are shown, {how}.", "faint"))
        cards = [pages.pair(pair.one.text, _sides(run, pair, strict)) for pair in shown]
        parts.append(pages.pairs(cards) if cards else pages.paragraph("None.", "faint"))
    if not (run.path / kept_images.FOLDER).is_dir():
        parts.append(pages.paragraph("The run kept no test images (evaluate.keep_images).", "warning"))
    return parts


def _sides(run: Run, pair: Pair, strict: bool) -> list[pages.Side]:
    return [
        side("before", run.path, kept_images.BEFORE, pair.one, strict=strict),
        side("after", run.path, kept_images.AFTER, pair.other, strict=strict),
    ]


def side(label: str, run: Path, folder: str, row: ScoredImage, *, strict: bool) -> pages.Side:
    """Return an image of an evaluation with its verdict or score; without a picture where the run has none."""
    image = run_files.own_png(run, f"{folder}/{kept_images.name(row)}")
    verdict = row.score == 1 if strict and not row.failed else None
    return pages.Side(label, image, verdict, row.score, row.reasons)
