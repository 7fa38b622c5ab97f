"""Measure how well a CLIP model tells ShapeScenes apart: retrieval among 100 scenes, and one wrong word.

Text-to-image retrieval among 100 scenes, and captions with one wrong word.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from rewards.models.open_clip_encoder import OpenClipEncoder
from t2i_gcpo.data.shapes.prompts import SPLITS, split
from t2i_gcpo.data.shapes.scene import Scene, sample_scene
from t2i_gcpo.evaluation.intervals import Estimates, estimate
from t2i_gcpo.pretrain.clip.captions import KINDS, changed_word, mirrored, neighbours, shows
from t2i_gcpo.records import Prompt

#: Pictures that a caption has to find its own among.
CANDIDATES = 100
#: Scenes of each caption.
ROUNDS = 5


@dataclass(frozen=True)
class Retrieval:
    """The result of both measures."""

    top1: Estimates
    """Share of captions whose own picture is the most similar of the 100, per task; overall: mean over the tasks."""
    words: Estimates
    """Share of captions with one wrong word that are less similar to the picture than its own; the "tasks" are the
    kinds of words."""

    mirrors: Estimates
    """Share of pictures whose own caption scores higher than the one that says the opposite with the same words, per
    task; chance is a half."""

    @property
    def share(self) -> float:
        """Return the share over all captions alike, whatever their task."""
        return sum(value * self.top1.n_by_task[task] for task, value in self.top1.by_task.items()) / self.top1.n

    def to_json(self) -> dict[str, Any]:
        return {"top1": _numbers(self.top1), "words": _numbers(self.words), "mirrors": _numbers(self.mirrors)}


def measure(
    encoder: OpenClipEncoder,
    *,
    candidates: int = CANDIDATES,
    rounds: int = ROUNDS,
    seed: int = 0,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Retrieval:
    """Take both measures on the test prompts, whose combinations were never trained on, with `rounds` scenes of each.

    A caption's candidates are its own picture and those of `candidates - 1` other captions, all distinct, drawn from
    those pictures of test prompts that do not show what the caption says: a picture of a red star is no wrong answer to
    "a photo of a star". Where the test prompts have too few of them (two short of 100 for "a photo of a star"),
    validation prompts make up the number. `transform` maps the pictures [B, 3, H, W] uint8 to the same before they are
    encoded. ValueError: too few pictures for so many candidates.
    """
    prompts, rng = split("test"), random.Random(seed)
    known = {prompt.text for prompt in prompts}
    reserve = [prompt for prompt in split("val") if prompt.text not in known]
    texts = encoder.texts([prompt.text for prompt in prompts])
    top1: list[tuple[float, str, str]] = []
    words: list[tuple[float, str, str]] = []
    mirrors: list[tuple[float, str, str]] = []
    for _ in range(rounds):
        scenes = [sample_scene(prompt.metadata, rng) for prompt in (*prompts, *reserve)]
        pictures = render(scenes)
        features = encode(encoder, transform(pictures) if transform is not None else pictures)
        hits = retrieve(texts @ features.T, shows(scenes, prompts), candidates, rng)
        top1 += [(float(hit), p.text, p.task) for hit, p in zip(hits, prompts, strict=True)]
        words += _wrong_words(encoder, prompts, scenes[: len(prompts)], features[: len(prompts)])
        for prompt, own, feature in zip(prompts, texts, features[: len(prompts)], strict=True):
            opposite = mirrored(prompt)
            if opposite is not None:
                higher = own @ feature > encoder.texts([opposite])[0] @ feature
                mirrors.append((float(higher), prompt.text, prompt.task))
    return Retrieval(*(estimate(*zip(*rows, strict=True), seed=seed) for rows in (top1, words, mirrors)))


def retrieve(similarity: Tensor, truth: np.ndarray, candidates: int, rng: random.Random) -> list[bool]:
    """Say whether each caption finds its own picture among the candidates.

    similarity: [C, P], C captions and P >= C pictures, the first C of them the captions' own, in their order; the
    others are drawn only where the first ones do not suffice. truth: [P, C], whether a picture shows what a caption
    says. A tie is a miss. ValueError: too few pictures.
    """
    hits = []
    captions, pictures = similarity.shape
    for row, values in enumerate(similarity):
        first, rest = (
            [k for k in part if k != row and not truth[k, row]] for part in (range(captions), range(captions, pictures))
        )
        drawn = rng.sample(first, min(candidates - 1, len(first)))
        missing = candidates - 1 - len(drawn)
        if missing > len(rest):
            raise ValueError(
                f"caption {row} has {len(first) + len(rest)} pictures that do not show what it says; {candidates} "
                f"candidates need {candidates - 1}"
            )
        drawn += rng.sample(rest, missing)
        hits.append(bool(values[row] > values[drawn].max()))
    return hits


def _wrong_words(
    encoder: OpenClipEncoder, prompts: Sequence[Prompt], scenes: Sequence[Scene], features: Tensor
) -> list[tuple[float, str, str]]:
    """Score captions that differ from a picture's own in one word and are not true of it.

    Returns (1 or 0, caption, kind) for each such caption of any split.
    """
    rows: list[tuple[float, str, str]] = []
    near = neighbours(SPLITS)
    for prompt, scene, feature in zip(prompts, scenes, features, strict=True):
        wrong = [other for others in near[prompt.text].values() for other in others]
        true = shows([scene], wrong)[0]
        wrong = [other for other, shown in zip(wrong, true, strict=True) if not shown]
        values = encoder.texts([prompt.text, *(other.text for other in wrong)]) @ feature
        for other, value in zip(wrong, values[1:], strict=True):
            kind = changed_word(prompt.text, other.text)
            assert kind in KINDS
            rows.append((float(value < values[0]), prompt.text, kind))
    return rows


def render(scenes: Sequence[Scene]) -> Tensor:
    """Render scenes to pictures [B, 3, H, W] uint8."""
    return rearrange(
        torch.from_numpy(np.stack([scene.render() for scene in scenes])), "b h w c -> b c h w"
    ).contiguous()


def encode(encoder: OpenClipEncoder, pictures: Tensor, batch: int = 64) -> Tensor:
    return torch.cat([encoder.images(part) for part in pictures.split(batch)])


def _numbers(found: Estimates) -> dict[str, Any]:
    return {
        "overall": found.overall,
        "ci95": list(found.ci95),
        "n": found.n,
        "by_task": found.by_task,
        "by_task_ci95": {task: list(pair) for task, pair in found.by_task_ci95.items()},
        "n_by_task": found.n_by_task,
    }
