"""Draw what the embedded generators learn from: texts of training prompts, and the tokens of a scene for each.

From a share of the clauses the class word, the colour word or both are dropped, and the scene has anything in their
place: without it a model learns which pairs of words go together, and not what each word means.

B pairs, T image tokens, V codebook.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from rewards.geneval.vocabulary import CLASSES, PLURALS
from t2i_gcpo.data.shapes.prompts import TASKS, split
from t2i_gcpo.data.shapes.scene import Difficulty, Style, sample_scene
from t2i_gcpo.pretrain.janus.codes import as_pixels, nearest, patches
from t2i_gcpo.records import Prompt

#: Share of each task in the training scenes: the harder a task is to learn, the more of it.
TASK_SHARE = {
    "single_object": 0.04,
    "two_object": 0.12,
    "counting": 0.14,
    "colors": 0.08,
    "position": 0.22,
    "color_attr": 0.40,
}
VALIDATION_SCENES = 256
#: What stands in the place of a word that was dropped.
DROPPED = "<pad>"


def draw_prompts(
    rng: random.Random, count: int, name: str = "train", share: Mapping[str, float] | None = None
) -> list[Prompt]:
    """Draw prompts of a split, tasks by their share; None: `TASK_SHARE`."""
    by_task, share = _by_task(name), share or TASK_SHARE
    tasks = rng.choices(list(share), weights=list(share.values()), k=count)
    return [rng.choice(by_task[task]) for task in tasks]


def with_words_dropped(prompt: Prompt, share: float, rng: random.Random) -> Prompt:
    """Drop, with probability `share`, the class word, the colour word or both from each clause of the prompt.

    The metadata allow any class or colour in their place.
    """
    include = [dict(clause) for clause in prompt.metadata["include"]]
    metadata = {**prompt.metadata, "include": include}
    words = prompt.text.split()
    for clause in include:
        if rng.random() >= share:
            continue
        which = rng.choice(("color", "class", "color", "class", "both")) if "color" in clause else "class"
        if which != "class":
            words[words.index(clause.pop("color"))] = DROPPED
        if which != "color":
            old = clause["class"]
            words[words.index(old if clause["count"] == 1 else PLURALS[old])] = DROPPED
            clause["class"] = rng.choice([name for name in CLASSES if all(name != other["class"] for other in include)])
            if "exclude" in metadata:
                metadata["exclude"] = [{**excluded, "class": clause["class"]} for excluded in metadata["exclude"]]
    text = " ".join(words)
    return Prompt(text, {**metadata, "prompt": text})


@lru_cache(maxsize=3)
def _by_task(name: str) -> dict[str, list[Prompt]]:
    return {task: [prompt for prompt in split(name) if prompt.task == task] for task in TASKS}


@torch.no_grad()
def encode_scenes(
    prompts: list[Prompt], codes: Tensor, rng: random.Random, chunk: int = 100, *, style: Style = "plain"
) -> Tensor:
    """Draw a scene for each prompt and name its patches by `codes` [V, 192]: `[B, T]` int16.

    The VQ model's encoder is trained to find the same names; this is faster, and right where the encoder errs.
    """
    tokens, difficulty = [], Difficulty.of_style(style)
    for start in range(0, len(prompts), chunk):
        pictures = [sample_scene(p.metadata, rng, difficulty).render() for p in prompts[start : start + chunk]]
        points = patches(as_pixels(pictures))
        # Most patches of a plain scene are alike; unlike ones are not worth the sort.
        distinct, owner = (
            torch.unique(points, dim=0, return_inverse=True) if style == "plain" else (points, slice(None))
        )
        tokens.append(nearest(distinct, codes)[owner].view(len(pictures), -1).to(torch.int16))
    return torch.cat(tokens)


class Drawing(Protocol):
    """The choices that `draw_pairs` goes by."""

    @property
    def batch(self) -> int: ...
    @property
    def dropped_words(self) -> float: ...
    @property
    def short_prompts(self) -> float: ...


def draw_pairs(
    rng: random.Random,
    codes: Tensor,
    settings: Drawing,
    *,
    style: Style = "plain",
    share: Mapping[str, float] | None = None,
) -> tuple[list[str], Tensor]:
    """Draw texts of training prompts, words dropped and shortened, and the tokens [B, T] int64 of a scene for each."""
    drawn = draw_prompts(rng, settings.batch, share=share)
    prompts = [with_words_dropped(prompt, settings.dropped_words, rng) for prompt in drawn]
    tokens = encode_scenes(prompts, codes, rng, style=style)
    short = [rng.random() < settings.short_prompts for _ in prompts]
    texts = [p.text.removeprefix("a photo of ") if cut else p.text for p, cut in zip(prompts, short, strict=True)]
    return texts, tokens.long()
