"""Defines the `pickscore` reward: which picture people would pick for a prompt, by PickScore.

B images, H, W their sides, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from rewards.base import Reward, RewardOutput, check_each
from rewards.models.batches import TextCache, check_images, check_prompts, in_batches
from rewards.models.open_clip_encoder import UnfitText
from rewards.models.text_tokens import TextReader
from rewards.models.transformers_model import load_model, read_preprocess

#: The model that PickScore was trained from: its tokenizer and preprocessing belong to PickScore too.
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScoreReward(Reward):
    """Scores by PickScore (arXiv 2305.01569): a CLIP trained on what people picked compares image and prompt.

    The model is a ViT-H-14.

    The published score is the cosine times the model's learned logit scale, 100 in the released weights: it lies in
    [-100, 100] and is about 15 to 25 for generated pictures. Its differences are log-odds of being picked.
    `score="cosine"` leaves the factor out: [-1, 1], the same order. Weights: `yuvalkirstain/PickScore_v1`; see its page
    for their licence.

    Args:
        score: "logit", as published, or "cosine".
        checkpoint: folder or hub repository of the `CLIPModel`.
        revision: of that hub repository.
        processor: folder or hub repository with tokenizer and preprocessing.
        processor_revision: of that hub repository.
        unfit_text: a prompt that is cut to the model's 77 tokens: "warn" once, or "raise".
        dtype: float32, float16 or bfloat16; cosines are float32.

    Takes [B, 3, H, W] uint8 of any size; a picture that is not square is cropped. Part: `cosine`. ValueError: weights
    that are missing or do not fit, unknown names, images of another type.
    """

    name = "pickscore"

    def __init__(
        self,
        *,
        score: Literal["logit", "cosine"] = "logit",
        checkpoint: str = "yuvalkirstain/PickScore_v1",
        revision: str | None = None,
        processor: str = PROCESSOR,
        processor_revision: str | None = None,
        unfit_text: UnfitText = "warn",
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        if score not in ("logit", "cosine"):
            raise ValueError(f"score {score!r} of reward 'pickscore' is unknown; allowed: logit, cosine")
        self.model, _ = load_model("pickscore", "CLIPModel", checkpoint, revision=revision, device=device, dtype=dtype)
        self.preprocess = read_preprocess(
            "pickscore", processor, side=self.model.config.vision_config.image_size, revision=processor_revision
        )
        self.read = TextReader(
            "pickscore",
            processor,
            length=self.model.config.text_config.max_position_embeddings,
            revision=processor_revision,
            unfit_text=unfit_text,
        )
        self.scale = float(self.model.logit_scale.float().exp()) if score == "logit" else 1.0
        self.batch_size = batch_size
        self.texts = TextCache(self._texts, batch_size=batch_size, name="pickscore")

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Raise PromptError for the first prompt that does not fit, where `unfit_text` is "raise"."""
        check_each(lambda prompt, row: self.read.check(prompt), prompts, metadata)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        check_images(images, "pickscore")
        check_prompts(images, prompts, "pickscore")
        features = in_batches(self._images, images, batch_size=self.batch_size, name="pickscore")
        cosine = (features * self.texts(prompts)).sum(dim=-1).to(images.device)
        return RewardOutput(self.scale * cosine, {"cosine": cosine})

    @torch.no_grad()
    def _images(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] uint8 into [B, D] of length 1."""
        pixels = self.preprocess(images.to(self.model.device), self.model.dtype)
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        return functional.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def _texts(self, texts: list[str]) -> Tensor:
        """Encode N texts into [N, D] of length 1."""
        tokens = {key: values.to(self.model.device) for key, values in self.read(texts).items()}
        return functional.normalize(self.model.get_text_features(**tokens).pooler_output.float(), dim=-1)
