"""Run two checkpoints over many held-out prompts with the same noise: paired counts that grow, and where they differ.

One image a prompt and checkpoint, N prompts of ShapeScenes' test split, the six tasks in equal parts. Image k of either
checkpoint has the noise of (seed, prompt k), as in `t2i-gcpo eval`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from t2i_gcpo import heatmap
from t2i_gcpo.algorithms import resolve, token_weights
from t2i_gcpo.data.prompts import limit, read
from t2i_gcpo.demo.models import Models
from t2i_gcpo.demo.scoring import Judged, Scorer
from t2i_gcpo.evaluation.evaluate import EvalResult, ScoredImage, paired_difference
from t2i_gcpo.evaluation.intervals import Estimates
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Prompt, Sampling, ScoredRollout

SOURCE = "shapes:test"
#: Prompts at once: as many as the embedded checkpoints sample in a second or two.
BATCH = 12
#: Scores closer than this are equal.
EQUAL = 1e-9


@dataclass(frozen=True)
class Side:
    """Is what one checkpoint made of the prompts."""

    name: str
    judged: tuple[Judged, ...] = ()
    maps: heatmap.Heatmap | None = None
    """The images with the weights that GCPO would give their tokens; None before the first batch."""


@dataclass(frozen=True)
class PairedRun:
    """Is how far a run over many prompts is."""

    prompts: tuple[Prompt, ...]
    """All that are asked for."""
    sampling: Sampling
    left: Side
    right: Side
    same_noise: bool = True
    """False where the two are different kinds of generators, whose noise cannot be the same."""
    stopped: bool = False

    @property
    def done(self) -> int:
        return len(self.right.judged)

    @property
    def verdicts(self) -> bool:
        """Return whether the reward gives verdicts, so that an image is right or wrong."""
        return all(judged.verdict is not None for side in (self.left, self.right) for judged in side.judged)

    def better(self, index: int) -> int:
        """Return which side scores higher on prompt `index`: -1 left, 1 right, 0 neither or a failed score."""
        one, other = self.left.judged[index].score, self.right.judged[index].score
        return 0 if math.isnan(one + other) or abs(one - other) <= EQUAL else (-1 if one > other else 1)

    def differing(self, side: int | None = None) -> list[int]:
        """Return the prompts on which one side scores higher: the left (-1), the right (1) or either (None)."""
        found = ((index, self.better(index)) for index in range(self.done))
        return [index for index, better in found if better and side in (None, better)]

    def counts(self) -> dict[str, int]:
        """Count the prompts: both, left, right, neither (verdicts); left, right, equal, failed (other rewards)."""
        left, right = len(self.differing(-1)), len(self.differing(1))
        if self.verdicts:
            both = sum(
                one.right and other.right for one, other in zip(self.left.judged, self.right.judged, strict=True)
            )
            return {"both": both, "left": left, "right": right, "neither": self.done - both - left - right}
        failed = sum(
            math.isnan(one.score + other.score) for one, other in zip(self.left.judged, self.right.judged, strict=True)
        )
        return {"left": left, "right": right, "equal": self.done - left - right - failed, "failed": failed}

    def difference(self) -> Estimates:
        """Return right - left, image by image, with the interval of `t2i-gcpo eval --against`."""
        return paired_difference(self._result(self.left), self._result(self.right))

    def _result(self, side: Side) -> EvalResult:
        rows = tuple(
            ScoredImage(k, 0, prompt.text, prompt.task, judged.score)
            for k, (prompt, judged) in enumerate(zip(self.prompts, side.judged, strict=False))
        )
        return EvalResult(rows, self.sampling.seed, self.sampling, side.name, SOURCE)


def held_out(count: int) -> tuple[Prompt, ...]:
    """Return so many prompts of the test split, the tasks in equal parts; fewer where there are fewer."""
    return tuple(limit(read(SOURCE), count))


def run(
    models: Models,
    scorer: Scorer,
    left: str,
    right: str,
    *,
    prompts: Sequence[Prompt],
    seed: int,
    guidance: float,
    stopped: Callable[[], bool],
) -> Iterator[PairedRun]:
    """Yield the run as it grows: first without images, then after each batch of prompts.

    `stopped()` is asked between batches. ValueError: the same checkpoint twice, or a prompt that one cannot read.
    """
    if left == right:
        raise ValueError(f"Both sides are {left}; choose two checkpoints.")
    generators = [models.get(name) for name in (left, right)]
    for generator in generators:
        generator.check_prompts(prompts)
    sampling = Sampling(group_size=1, guidance=guidance, seed=seed, contrast=True, stats=())
    state = PairedRun(tuple(prompts), sampling, Side(left), Side(right), len(models.families([left, right])) == 1)
    yield state
    for first in range(0, len(prompts), BATCH):
        if stopped():
            yield replace(state, stopped=True)
            return
        part = prompts[first : first + BATCH]
        sides = [
            _grown(side, generator, scorer, part, sampling, first)
            for side, generator in zip((state.left, state.right), generators, strict=True)
        ]
        state = replace(state, left=sides[0], right=sides[1])
        yield state


@torch.no_grad()
def _grown(
    side: Side, generator: ImageGenerator, scorer: Scorer, part: Sequence[Prompt], sampling: Sampling, first: int
) -> Side:
    """Return a side with the images of some more prompts."""
    rollout = generator.sample(part, sampling, prompt_indices=range(first, first + len(part)))
    images = generator.decode(rollout.tokens).cpu()
    judged = scorer.judge(images, part)
    scores = torch.tensor([one.score for one in judged])
    algorithm = resolve("gcpo")
    weights = token_weights(algorithm, rollout)
    maps = heatmap.Heatmap.of(ScoredRollout(rollout, images, scores), weights=weights, algorithm=algorithm)
    together = maps if side.maps is None else heatmap.Heatmap.cat([side.maps, maps])
    return Side(side.name, (*side.judged, *judged), together)
