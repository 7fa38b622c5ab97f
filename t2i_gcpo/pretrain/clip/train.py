"""Train `clip-mini` with CLIP's contrastive loss (2103.00020) on scenes and captions that are near misses.

N pictures, M captions (the first N are the pictures' own, the others are near misses without a picture), D feature
width, S pixels a side.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.optim.swa_utils import update_bn

from t2i_gcpo.data.shapes.scene import sample_scene
from t2i_gcpo.pretrain.amused.model import TEXT_LENGTH, tokenizer
from t2i_gcpo.pretrain.clip.captions import family, shows
from t2i_gcpo.pretrain.optimisation import Optimisation
from t2i_gcpo.pretrain.scene_pairs import draw_prompts
from t2i_gcpo.records import Prompt

SPLIT = ("train",)
#: CLIP's bound on the logit scale.
MAX_SCALE = 100.0
#: Batches from which the final statistics of the batch normalisation are taken.
STATISTICS_BATCHES = 20


@dataclass(frozen=True)
class ClipSettings:
    """Says how clip-mini is trained; the defaults made the embedded checkpoint."""

    steps: int = 1000
    families: int = 24
    """Prompts of a step that are drawn, each with its near misses."""
    family: int = 4
    """Pictures of a family."""
    misses: int = 2
    """Near misses without a picture, a picture."""
    lr: float = 2e-3
    muon_lr: float = 3e-3
    warmup: int = 60
    weight_decay: float = 0.02
    ema: float = 0.998
    noise: float = 4.0
    """Largest standard deviation of the noise on a picture, levels of 255; drawn evenly from 0 on."""
    short_captions: float = 0.15
    """Share of captions without "a photo of"."""
    bfloat16: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    pixels: Tensor
    """[N, 3, S, S] in [-1, 1]."""
    tokens: Tensor
    """[M, L] int64."""
    false_negatives: Tensor
    """[N, M] bool: the caption is another picture's, and true of this one as well."""


def draw_batch(rng: random.Random, settings: ClipSettings, words: Any) -> Batch:
    """Draw families of training prompts with a scene for each prompt, and more near misses."""
    prompts: list[Prompt] = []
    for anchor in draw_prompts(rng, settings.families):
        prompts += family(anchor, settings.family, rng, SPLIT)
    extra = [miss for prompt in prompts for miss in family(prompt, 1 + settings.misses, rng, SPLIT)[1:]]
    scenes = [sample_scene(prompt.metadata, rng) for prompt in prompts]
    levels = torch.from_numpy(np.stack([scene.render() for scene in scenes])).float()
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    sigma = settings.noise * torch.rand(len(scenes), 1, 1, 1, generator=generator)
    levels = (levels + sigma * torch.randn(levels.shape, generator=generator)).clamp(0, 255)
    truth = torch.from_numpy(shows(scenes, [*prompts, *extra]))
    own = torch.eye(*truth.shape, dtype=torch.bool)
    texts = [prompt.text for prompt in (*prompts, *extra)]
    texts = [text.removeprefix("a photo of ") if rng.random() < settings.short_captions else text for text in texts]
    pixels = rearrange(levels / 127.5 - 1, "n h w c -> n c h w").contiguous(memory_format=torch.channels_last)
    return Batch(pixels, encode(texts, words), truth & ~own)


def encode(texts: list[str], words: Any) -> Tensor:
    """Encode captions to ids [M, L] int64, padded on the right, as open_clip's wrapper of the tokenizer does."""
    ids: Tensor = words(texts, return_tensors="pt", max_length=TEXT_LENGTH, padding="max_length", truncation=True)[
        "input_ids"
    ]
    return ids


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, false_negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Compute CLIP's loss without the pairs that are no negatives, and how often a picture's own caption wins.

    It wins where it is the most similar of all captions.

    images [N, D] and texts [M, D] of unit length, M >= N, the first N of them the images' own; scale: factor of the
    cosines. Each image is compared with all M captions, each of the first N captions with all N images; the loss is the
    mean of the two mean cross-entropies.
    """
    logits = (scale * images @ texts.T).masked_fill(false_negatives, -torch.inf)
    own = torch.arange(len(images))
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(images)].T, own)) / 2
    return loss, (logits.argmax(dim=1) == own).float().mean()


class ClipTrainer:
    """The training state and one step of it; `state_dict` holds everything that a resumed run needs."""

    def __init__(self, settings: ClipSettings, model: Any) -> None:
        self.settings, self.model, self.words = settings, model.train(), tokenizer()
        model.visual.to(memory_format=torch.channels_last)  # half the time of its convolutions on a CPU
        self.optimisation = Optimisation(
            model,
            settings,
            lambda name, _: "resblocks" in name,
        )
        self.rng = random.Random(settings.seed)

    @property
    def step_number(self) -> int:
        return self.optimisation.step_number

    def step(self) -> dict[str, float | Tensor]:
        """Make one optimiser step; return its loss in nats, and how often a picture's own caption wins in the batch."""
        batch = draw_batch(self.rng, self.settings, self.words)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bfloat16):
            images = self.model.encode_image(batch.pixels)
        texts = self.model.encode_text(batch.tokens)  # its matrices are too small to gain by bfloat16
        images, texts = (F.normalize(features.float(), dim=-1) for features in (images, texts))
        scale = self.model.logit_scale.exp().clamp(max=MAX_SCALE)
        loss, right = contrastive_loss(images, texts, scale, batch.false_negatives)
        norm = self.optimisation.step(loss)
        return {"loss": loss.detach(), "right": right, "scale": scale.detach(), "grad_norm": norm}

    def finished(self) -> Any:
        """Return the model in evaluation mode, with averaged weights and their statistics of batch normalisation."""
        self.optimisation.load(self.optimisation.average)
        rng = random.Random(self.settings.seed + 1)
        pictures = [draw_batch(rng, self.settings, self.words).pixels for _ in range(STATISTICS_BATCHES)]
        update_bn(pictures, self.model.visual)
        return self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        return {**self.optimisation.state_dict(), "rng": self.rng.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimisation.load_state_dict(state)
        version, internal, gauss = state["rng"]
        self.rng.setstate((version, tuple(internal), gauss))
