"""Score images for the page: verdicts per clause where GenEval's rules cover the prompt, scores elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.base import Reward, check
from rewards.geneval.reward import GenEvalReward
from rewards.geneval.rules import Verdict
from t2i_gcpo.data.shapes.grammar import understand
from t2i_gcpo.records import Prompt


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

    @property
    def scored(self) -> bool:
        return not self.why_not

    def caption(self, index: int) -> str:
        """Return what stands below image `index`."""
        if not self.scored:
            return ""
        if self.verdicts is not None:
            held = self.verdicts[index].clauses
            return f"{'✓' if self.verdicts[index].correct else '✗'} {sum(held)}/{len(held)}"
        score = float(self.scores[index])
        return "no score" if score != score else f"score {score:.3g}"

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
        texts, metadata = [prompt.text] * count, [prompt.metadata] * count
        verdicts: list[Verdict] | None = None
        clauses: tuple[str, ...] = ()
        if isinstance(self.reward, GenEvalReward):
            verdicts, clauses = self.reward.verdicts(images, texts, metadata), tuple(clause_words(prompt.metadata))
            output = self.reward.output(verdicts, metadata)
        else:
            output = self.reward(images, texts, metadata)
        scores = check(output, count, self.name, texts, failure="mark").scores.cpu()
        return ImageScores(scores, verdicts, clauses)


def clause_words(metadata: Mapping[str, Any]) -> list[str]:
    """Say in words what each clause of a GenEval row asks for, in the order of `Verdict.clauses`."""
    include = metadata.get("include") or []
    words = []
    for clause in include:
        count, color = clause.get("count") or 1, clause.get("color")
        text = f"{count} × " * (count > 1) + f"{color} " * bool(color) + clause["class"]
        if clause.get("position"):
            relation, target = clause["position"]
            text += f" {relation} {include[target]['class']}"
        words.append(text)
    return words + [f"at most {(c.get('count') or 1) - 1} × {c['class']}" for c in metadata.get("exclude") or []]
