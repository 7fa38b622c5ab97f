"""The `geneval` reward: detect what is in a picture, judge it by its prompt's GenEval row. B images, H, W their sides."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rewards.base import RewardOutput
from rewards.geneval.detectors import Detector
from rewards.geneval.detectors import load as load_detector
from rewards.geneval.rules import ColorNamer, Verdict, judge


class GenEvalReward:
    """GenEval's verdict as a score in [0, 1].

    Args:
        detector: a detector's name, or a detector: images -> detections.
        score: "strict" gives 1 to a correct picture and 0 to any other, as GenEval counts; "clauses" gives the share of
            its clauses that hold, a denser signal.
        colors: names the colours of detections that come without one.

    Parts: `strict` and `clauses`, both scores whichever is asked for, and the strict one again per task as `task/<tag>`
    (NaN for images of other tasks).
    """

    def __init__(
        self,
        *,
        detector: str | Detector = "shapes",
        score: Literal["strict", "clauses"] = "strict",
        colors: ColorNamer | None = None,
    ) -> None:
        if score not in ("strict", "clauses"):
            raise ValueError(f"score {score!r} is unknown; allowed: strict, clauses")
        self.detector = load_detector(detector) if isinstance(detector, str) else detector
        self.score = score
        self.colors = colors

    def verdicts(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[Verdict]:
        """B verdicts. ValueError for an image without GenEval metadata, naming its prompt."""
        for prompt, row in zip(prompts, metadata, strict=True):
            if not row or not (row.get("include") or row.get("exclude")):
                raise ValueError(
                    f"the geneval reward has no metadata for the prompt {prompt!r}; it needs a GenEval row with 'tag' and "
                    "'include' (take prompts from shapes:train or a GenEval .jsonl file)"
                )
        found = self.detector(images)
        return [judge(objects, row, colors=self.colors) for objects, row in zip(found, metadata, strict=True)]

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        verdicts = self.verdicts(images, prompts, metadata)
        strict = torch.tensor([float(verdict.correct) for verdict in verdicts])
        clauses = torch.tensor([sum(verdict.clauses) / len(verdict.clauses) for verdict in verdicts])
        parts = {"strict": strict, "clauses": clauses}
        tags = [row.get("tag") for row in metadata]
        for tag in sorted({tag for tag in tags if tag}):
            mine = torch.tensor([other == tag for other in tags])
            parts[f"task/{tag}"] = strict.masked_fill(~mine, float("nan"))
        return RewardOutput(strict if self.score == "strict" else clauses, parts)
