"""Time the `clip` reward on a batch against one picture after the other, with the same weights and captions.

The headline leaves texts out: both sides have the features of all captions. In the second line neither has seen them
before: ours encodes each text once and in one batch, the baseline one with every picture. B images.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from rewards.models.batches import TextCache
from rewards.scorers.clip import ClipReward
from t2i_gcpo.bench import positive
from t2i_gcpo.bench.measure import Report, check_same, interleave, speed_up, warm_up
from t2i_gcpo.data.prompts import limit
from t2i_gcpo.data.shapes.prompts import split
from t2i_gcpo.data.shapes.scene import sample_scene
from t2i_gcpo.pretrain.clip.retrieval import render
from t2i_gcpo.utils.device import pick_device

BASELINE = "one picture after the other"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", default="clip-mini", help="clip-mini, a folder or hub name in open_clip's layout"
    )
    parser.add_argument("--pairs", type=positive, default=20, help="pairs of passes that are measured")
    parser.add_argument("--batch", type=positive, default=64, help="images")


class Scorer:
    """A clip reward whose text encoder counts what goes through it."""

    def __init__(self, checkpoint: str, batch: int, device: torch.device) -> None:
        self.reward = ClipReward(checkpoint=checkpoint, batch_size=batch, device=str(device))
        self.texts_encoded = 0
        self._encode: Any = self.reward.encoder.model.encode_text
        self.reward.encoder.model.encode_text = self._counted

    def _counted(self, tokens: Tensor) -> Tensor:
        self.texts_encoded += len(tokens)
        features: Tensor = self._encode(tokens)
        return features

    def forget(self) -> None:
        """Forget the features of all texts."""
        self.reward.texts = TextCache(self.reward.encoder.texts, batch_size=self.reward.batch_size, name="clip")


def whole(scorer: Scorer, images: Tensor, prompts: list[str]) -> Tensor:
    """Return the scores [B] of one call."""
    return scorer.reward(images, prompts, [{} for _ in prompts]).scores


def one_by_one(scorer: Scorer, images: Tensor, prompts: list[str], *, forget: bool = False) -> Tensor:
    """Return the scores [B] of a call a picture, the baseline; with `forget`, its text is encoded each time."""
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        if forget:
            scorer.forget()
        scores.append(scorer.reward(image[None], [prompt], [{}]).scores)
    return torch.cat(scores)


def check_texts(scorer: Scorer, images: Tensor, prompts: list[str]) -> int:
    """Count the distinct texts. RuntimeError unless the first pass encodes each of them once, and the second none."""
    scorer.forget()
    counts = []
    for _ in range(2):
        before = scorer.texts_encoded
        whole(scorer, images, prompts)
        counts.append(scorer.texts_encoded - before)
    if counts != [len(set(prompts)), 0]:
        raise RuntimeError(
            f"the passes over {len(set(prompts))} distinct prompts encoded {counts[0]} and {counts[1]} texts; each "
            "should be encoded once, "
            "and none in the second pass"
        )
    return counts[0]


def run(options: argparse.Namespace, console: Console) -> Report:
    """Time both sides. ValueError: no such checkpoint. RuntimeError: they differ, or a second pass encodes texts."""
    device, rng = pick_device(options.device), random.Random(options.seed)
    prompts = limit(split("val"), options.batch, repeat=True)
    images = render([sample_scene(prompt.metadata, rng) for prompt in prompts])
    texts = [prompt.text for prompt in prompts]
    scorer = Scorer(options.checkpoint, options.batch, device)

    def fresh() -> Tensor:
        scorer.forget()
        return whole(scorer, images, texts)

    known = {"ours": lambda: whole(scorer, images, texts), "baseline": lambda: one_by_one(scorer, images, texts)}
    unknown = {"ours": fresh, "baseline": lambda: one_by_one(scorer, images, texts, forget=True)}
    warmup = warm_up(known, device, console)
    check_same("scores", known["ours"](), known["baseline"](), rtol=1e-4, atol=1e-5)
    distinct = check_texts(scorer, images, texts)
    console.print(f"checked: same scores; {distinct} texts encoded in the first pass, 0 in the second", highlight=False)
    times = interleave(known, options.pairs, device)
    with_texts = interleave(unknown, options.pairs, device)
    work, unit, seed = len(images), "images/s", options.seed
    lines = (
        speed_up("known_texts", times["ours"], times["baseline"], work=work, unit=unit, seed=seed),
        speed_up("new_texts", with_texts["ours"], with_texts["baseline"], work=work, unit=unit, seed=seed),
    )
    settings = {"checkpoint": options.checkpoint, "batch": work, "distinct_texts": distinct, "seed": seed}
    return Report("rewards", lines, BASELINE, warmup, device, settings)
