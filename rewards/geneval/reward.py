"""Defines the `geneval` reward: it detects what is in a picture, and judges it by its prompt's GenEval row.

B images, H, W their sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from rewards.base import Reward, RewardOutput, check_each
from rewards.geneval.detectors import Detector, as_detector
from rewards.geneval.detectors import load as load_detector
from rewards.geneval.graded import grade
from rewards.geneval.rows import check_row, clauses
from rewards.geneval.rules import ColorNamer, Detection, Verdict, color_names, colorless, judge
from rewards.geneval.vocabulary import COLORS
from rewards.geneval.words import objects_words, why

if TYPE_CHECKING:
    from rewards.geneval.colors import ClipColors

#: What the score of a picture may be.
Score = Literal["strict", "clauses", "graded"]


class GenEvalReward(Reward):
    """Scores a picture by GenEval's verdict (2310.11513), in [0, 1].

    Args:
        detector: a detector's name, or a detector: images -> detections. "shapes" finds ShapeScenes' objects exactly
            and on
            the CPU; "mask2former" is GenEval's own, for COCO's classes, with the colours by CLIP ViT-L/14.
        score: "strict" gives 1 to a correct picture and 0 to any other, as GenEval counts; "clauses" gives the share of
            its clauses that hold, a denser signal; "graded" is flow_grpo's and STAGE's, denser still for counts: at
            most 1, and below 0 for many surplus objects (`rewards/geneval/graded.py` has the formula).
        colors: names the colours of detections that come without one, in place of CLIP.
        device, dtype, batch_size: of the models of "mask2former" and of the colours.
        detector_options: further options of the detector (`rewards/geneval/detectors`), such as `checkpoint`.
        color_options: options of CLIP's colours (`rewards/geneval/colors.py`), such as `checkpoint`.

    Parts: `strict` and `clauses`, both scores whichever is asked for, and `graded` where it is asked for; `clause/0`,
    `clause/1`, ..., 1 where the row's clause holds, in the order of `include`, then `exclude` (NaN for images with
    fewer clauses); and the strict score again per task as `task/<tag>` (NaN for images of other tasks). Reasons: a line
    for each clause that fails, and what the detector saw.

    ValueError: an option that the detector does not have, weights that are missing, an image without GenEval metadata,
    a class that the detector cannot find, a row that cannot be judged.
    """

    name = "geneval"

    def __init__(
        self,
        *,
        detector: str | Detector | Callable[[Tensor], list[list[Detection]]] = "shapes",
        score: Score = "strict",
        colors: ColorNamer | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | None = None,
        detector_options: Mapping[str, Any] | None = None,
        color_options: Mapping[str, Any] | None = None,
    ) -> None:
        if score not in get_args(Score):
            raise ValueError(f"score {score!r} is unknown; allowed: {', '.join(get_args(Score))}")
        given = {"device": device, "dtype": dtype, "batch_size": batch_size}
        shared = {key: value for key, value in given.items() if value is not None}
        named = isinstance(detector, str)
        self.detector: Detector = as_detector(
            load_detector(detector, **{**shared, **(detector_options or {})}) if isinstance(detector, str) else detector
        )
        self.score, self.colors = score, colors
        self.clip_colors: ClipColors | None = None
        self.color_names = self.detector.color_names if colors is None else None
        if colors is None and not self.detector.names_colors:
            from rewards.geneval.colors import ClipColors

            self.clip_colors = ClipColors(**{**shared, **(color_options or {})})
            self.color_names = tuple(COLORS)
        unused = [*(color_options or ()), *(() if named else shared)] if self.clip_colors is None else []
        unused += [] if named else [*(detector_options or ())]
        if unused:
            raise ValueError(
                f"the geneval reward with {detector!r} has no use for {', '.join(unused)}: colour options are CLIP's, "
                "which names none here, and a detector that is built already has its own"
            )

    def verdicts(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[Verdict]:
        """Return B verdicts.

        ValueError for an image without GenEval metadata or of an unknown class, naming its prompt.
        """
        self.check_prompts(prompts, metadata)
        detections = self.detector(images)
        if self.clip_colors is not None:
            detections = _colored(self.clip_colors, images, detections, metadata)
        elif self.colors is not None:
            detections = [_named(objects, row, self.colors) for objects, row in zip(detections, metadata, strict=True)]
        verdicts = [
            dataclasses.replace(judge(objects, row, colors=self.colors), seen=objects_words(objects, row))
            for objects, row in zip(detections, metadata, strict=True)
        ]
        if self.score != "graded":
            return verdicts
        grades = [grade(objects, row) for objects, row in zip(detections, metadata, strict=True)]
        return [dataclasses.replace(verdict, graded=value) for verdict, value in zip(verdicts, grades, strict=True)]

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Raise PromptError for the first row that cannot be judged, or asks for what the detector cannot find."""
        check_each(self._check, prompts, metadata)

    def _check(self, prompt: str, row: dict[str, Any]) -> None:
        try:
            include = clauses(row or {}, "include")
            asked = [*include, *clauses(row or {}, "exclude")]
            if asked:
                check_row(row)
        except ValueError as error:
            raise ValueError(f"the geneval reward cannot judge the prompt {prompt!r}: {error}") from error
        if not asked:
            raise ValueError(
                f"the geneval reward has no metadata for the prompt {prompt!r}; it needs a GenEval row with 'tag' and "
                "'include' (take prompts from shapes:train or a GenEval .jsonl file, or make one of a text by "
                "t2i_gcpo.prompts.row(text))"
            )
        known = self.detector.classes
        for clause in asked:
            if known is not None and clause["class"] not in known:
                raise ValueError(
                    f"the prompt {prompt!r} asks for the class {clause['class']!r}, which the detector cannot find; it "
                    f"knows: {', '.join(known)}; take prompts or a detector that fit (shapes, mask2former)"
                )
        if not include and self.score == "graded":
            raise ValueError(
                f"the prompt {prompt!r} has no include clauses, which a graded score is made of; use score: strict"
            )
        for clause in include:
            color = clause.get("color")
            if self.color_names is not None and color is not None and color not in self.color_names:
                raise ValueError(
                    f"the prompt {prompt!r} asks for the colour {color!r}, which no object is ever said to have; known "
                    f"are: {', '.join(self.color_names)}"
                )

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        return self.output(self.verdicts(images, prompts, metadata), metadata)

    def output(self, verdicts: Sequence[Verdict], metadata: Sequence[Mapping[str, Any]]) -> RewardOutput:
        """Return the scores and parts of B verdicts, for whoever wants both and detects once."""
        strict = torch.tensor([float(verdict.correct) for verdict in verdicts])
        clauses = torch.tensor([sum(verdict.clauses) / len(verdict.clauses) for verdict in verdicts])
        parts = {"strict": strict, "clauses": clauses}
        if self.score == "graded":
            grades = [float("nan") if verdict.graded is None else verdict.graded for verdict in verdicts]
            parts["graded"] = torch.tensor(grades)
        for index in range(max((len(verdict.clauses) for verdict in verdicts), default=0)):
            parts[f"clause/{index}"] = torch.tensor(
                [
                    float(verdict.clauses[index]) if index < len(verdict.clauses) else float("nan")
                    for verdict in verdicts
                ]
            )
        tags = [row.get("tag") for row in metadata]
        for tag in sorted({tag for tag in tags if tag}):
            mine = torch.tensor([other == tag for other in tags])
            parts[f"task/{tag}"] = strict.masked_fill(~mine, float("nan"))
        reasons = tuple(why(verdict, row) for verdict, row in zip(verdicts, metadata, strict=True))
        return RewardOutput(parts[self.score], parts, reasons)


def _colored(
    namer: ClipColors, images: Tensor, detections: list[list[Detection]], metadata: list[dict[str, Any]]
) -> list[list[Detection]]:
    """Return the same detections, with a colour where a verdict asks for it; the crops of all images together."""
    asked = [
        (index, one)
        for index, (objects, row) in enumerate(zip(detections, metadata, strict=True))
        for one in colorless(objects, row)
    ]
    names = namer([images[index] for index, _ in asked], [one for _, one in asked])
    named = {(index, id(one)): name for (index, one), name in zip(asked, names, strict=True)}
    return [
        [dataclasses.replace(one, color=named.get((index, id(one)), one.color)) for one in objects]
        for index, objects in enumerate(detections)
    ]


def _named(objects: list[Detection], row: Mapping[str, Any], colors: ColorNamer) -> list[Detection]:
    """Return one picture's detections, with a colour by `colors` where a verdict asks for it."""
    asked = colorless(objects, row)
    named = dict(zip(map(id, asked), color_names(asked, colors), strict=True)) if asked else {}
    return [dataclasses.replace(one, color=named.get(id(one), one.color)) for one in objects]
