"""Score images for the page: verdicts per clause where GenEval's rules cover the prompt, scores elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.base import Reward, check
from rewards.geneval.reward import GenEvalReward
from rewards.geneval.rules import Detection, Verdict, kept_objects
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
        wrong = [k for k, verdict in enumerate(verdicts) if not verdict.correct]
        seen = dict(zip(wrong, self.reward.detector(images[wrong]) if wrong else [], strict=True))
        return [
            Judged(score, verdict, why(verdict, row, seen[k]) if k in seen else ())
            for k, (score, verdict, row) in enumerate(zip(scores, verdicts, metadata, strict=True))
        ]

    def _checked(self, output: Any, texts: list[str]) -> list[float]:
        scores: list[float] = check(output, len(texts), self.name, texts, failure="mark").scores.cpu().tolist()
        return scores


def why(verdict: Verdict, metadata: Mapping[str, Any], detections: Sequence[Detection]) -> tuple[str, ...]:
    """Say why an image is wrong: a line for each clause that failed, and last what the detector saw."""
    failed = [words for words, held in zip(clause_words(metadata), verdict.clauses, strict=True) if not held]
    lines = [f"{words}: {_instead(line)}" for words, line in zip(failed, verdict.reason.split("\n"), strict=True)]
    return (*lines, f"in the image: {objects_words(detections, metadata)}")


def _instead(reason: str) -> str:
    """Return what there is in place of what a line of `Verdict.reason` expected."""
    _, found, instead = reason.partition(", found ")
    if not found:
        return reason  # a relation to an object that is not there
    return f"there are {instead}" if instead.isdigit() else f"it is {instead}"


def objects_words(detections: Sequence[Detection], metadata: Mapping[str, Any]) -> str:
    """Count the objects that the verdict took into account, e.g. "1 white star, 2 yellow circle"."""
    objects = [one for same in kept_objects(detections, metadata.get("tag")).values() for one in same]
    counted = Counter(f"{one.color} {one.class_name}" if one.color else one.class_name for one in objects)
    return ", ".join(f"{number} {words}" for words, number in counted.items()) or "nothing that the detector finds"


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
