"""Score images for the page: verdicts per clause where GenEval's rules cover the prompt, scores elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.base import Reward, check
from rewards.geneval.reward import GenEvalReward
from rewards.geneval.rules import Verdict
from rewards.geneval.words import clause_words, why
from t2i_gcpo.data.shapes.grammar import understand
from t2i_gcpo.records import Prompt


@dataclass(frozen=True)
class Judged:
    """Is what the scorer says of one image."""

    score: float
    """NaN where there is no score."""
    verdict: Verdict | None = None
    """GenEval's."""
    reasons: tuple[str, ...] = ()
    """What failed, a line for each clause, and what the image shows; () for a right one."""

    @property
    def right(self) -> bool:
        return self.verdict is not None and self.verdict.correct

    @property
    def caption(self) -> str:
        """Return what stands below the image."""
        if self.verdict is not None:
            held = self.verdict.clauses
            return f"{'✓' if self.verdict.correct else '✗'} {sum(held)}/{len(held)}"
        return "no score" if self.score != self.score else f"score {self.score:.3g}"


@dataclass(frozen=True)
class ImageScores:
    """Holds the scores of B images of one prompt."""

    scores: Tensor
    """[B] fp32; NaN where there is no score."""
    verdicts: list[Verdict] | None = None
    """B verdicts of GenEval's rules."""
    clauses: tuple[str, ...] = ()
    """What each clause asks for, in words."""
    why_not: str = ""
    """Why there are no scores."""
    reasons: tuple[tuple[str, ...], ...] = ()
    """B times why the image is wrong, () where it is right."""

    @property
    def scored(self) -> bool:
        return not self.why_not

    def caption(self, index: int) -> str:
        """Return what stands below image `index`."""
        if not self.scored:
            return ""
        return Judged(float(self.scores[index]), None if self.verdicts is None else self.verdicts[index]).caption

    def summary(self) -> str:
        """Return one line about all images."""
        if self.verdicts is not None:
            return f"{sum(verdict.correct for verdict in self.verdicts)} of {len(self.verdicts)} correct"
        known = self.scores[self.scores.isfinite()]
        return f"mean score {float(known.mean()):.3g}" if len(known) else ""


class Scorer:
    """Scores with one reward; a prompt that GenEval's rules do not cover stays without a score under that reward."""

    def __init__(self, reward: Reward, name: str) -> None:
        self.reward, self.name = reward, name

    def prompt(self, text: str) -> Prompt:
        """Return a text as a prompt, with GenEval's metadata where ShapeScenes' grammar covers it."""
        return understand(text) or Prompt(text)

    def can_score(self, prompt: Prompt) -> bool:
        return bool(prompt.metadata) or not isinstance(self.reward, GenEvalReward)

    def __call__(self, images: Tensor, prompt: Prompt) -> ImageScores:
        """Score B images [B, 3, H, W] uint8 of one prompt."""
        count = len(images)
        if not self.can_score(prompt):
            reason = (
                "GenEval's rules do not cover this prompt (they cover e.g. “a photo of a red circle and a blue star”)"
            )
            return ImageScores(torch.full((count,), torch.nan), why_not=reason)
        judged = self.judge(images, [prompt] * count)
        scores = torch.tensor([one.score for one in judged])
        verdicts = [one.verdict for one in judged if one.verdict is not None]
        if not verdicts:
            return ImageScores(scores)
        reasons = tuple(one.reasons for one in judged)
        return ImageScores(scores, verdicts, tuple(clause_words(prompt.metadata)), reasons=reasons)

    def judge(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Judged]:
        """Score B images [B, 3, H, W] uint8, each of a prompt of its own that can be scored."""
        texts, metadata = [prompt.text for prompt in prompts], [dict(prompt.metadata) for prompt in prompts]
        if not isinstance(self.reward, GenEvalReward):
            output = self.reward(images, texts, metadata)
            return [Judged(score) for score in self._checked(output, texts)]
        verdicts = self.reward.verdicts(images, texts, metadata)
        scores = self._checked(self.reward.output(verdicts, metadata), texts)
        return [
            Judged(score, verdict, why(verdict, row))
            for score, verdict, row in zip(scores, verdicts, metadata, strict=True)
        ]

    def _checked(self, output: Any, texts: list[str]) -> list[float]:
        scores: list[float] = check(output, len(texts), self.name, texts, failure="mark").scores.cpu().tolist()
        return scores
