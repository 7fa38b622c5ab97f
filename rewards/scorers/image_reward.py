"""Defines the `image_reward` reward: how well people would rate a picture for its prompt, by ImageReward.

B images, H, W their sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rewards.base import Reward, RewardOutput, check_each
from rewards.models import weights
from rewards.models.batches import check_images, check_prompts, in_batches
from rewards.models.blip_weights import build
from rewards.models.device import check_dtype, place
from rewards.models.open_clip_encoder import UnfitText
from rewards.models.open_clip_model import read_tensors
from rewards.models.preprocess import Preprocess
from rewards.models.text_tokens import TextReader
from rewards.models.torchvision_mend import mend

#: Mean and standard deviation of the head's output on the authors' data; a score is in these units.
MEAN, STD = 0.16717362830052426, 1.0333394966054072

#: Tokens of a prompt that count, start and end included.
LENGTH = 35


class ImageReward(Reward):
    """Rates by ImageReward v1.0 (arXiv 2304.05977): BLIP ViT-L reads the prompt over the picture, a head rates that.

    Standardised on the authors' data: mean 0 and standard deviation 1 there, not bounded, mostly within -2.5 and 2.5.
    Weights: `THUDM/ImageReward`, Apache-2.0. The prompt is read anew over each picture, so there are no text features
    to keep.

    Args:
        checkpoint: hub repository, folder with `filename`, or a file of your own.
        revision: of that hub repository.
        filename: of the state_dict in a repository or folder.
        tokenizer: folder or hub repository of BERT's tokenizer.
        tokenizer_revision: of that hub repository.
        unfit_text: a prompt that is cut to 35 tokens: "warn" once, or "raise".
        dtype: float32, float16 or bfloat16 of BLIP; the head is float32.

    Takes [B, 3, H, W] uint8 of any size; a picture that is not square is cropped. No parts. ValueError: weights that
    are missing or do not fit, unknown names, images of another type.
    """

    name = "image_reward"

    def __init__(
        self,
        *,
        checkpoint: str = "THUDM/ImageReward",
        revision: str | None = None,
        filename: str = "ImageReward.pt",
        tokenizer: str = "google-bert/bert-base-uncased",
        tokenizer_revision: str | None = None,
        unfit_text: UnfitText = "warn",
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        check_dtype(dtype, "image_reward")
        mend()
        path = weights.file(checkpoint, filename, revision=revision, what="weights for reward 'image_reward'")
        self.read = TextReader(
            "image_reward", tokenizer, length=LENGTH, revision=tokenizer_revision, unfit_text=unfit_text
        )
        parts = build(read_tensors(path, "image_reward"), path)
        words = parts.text.config.vocab_size
        if len(self.read.tokenizer) > words:
            raise ValueError(
                f"reward 'image_reward': the tokenizer {tokenizer!r} has {len(self.read.tokenizer)} tokens, the model "
                f"of {path} knows {words}; take the tokenizer of bert-base-uncased"
            )
        self.vision = place(parts.vision, "image_reward", device, dtype)
        self.text = place(parts.text, "image_reward", device, dtype)
        self.head = place(parts.head, "image_reward", device, "float32")
        self.preprocess = Preprocess(parts.vision.config.image_size)
        self.batch_size = batch_size

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Raise PromptError for the first prompt that does not fit, where `unfit_text` is "raise"."""
        check_each(lambda prompt, row: self.read.check(prompt), prompts, metadata)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        check_images(images, "image_reward")
        check_prompts(images, prompts, "image_reward")
        scores = in_batches(self._rate, images, prompts, batch_size=self.batch_size, name="image_reward")
        return RewardOutput(scores.to(images.device))

    @torch.no_grad()
    def _rate(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Rate images [B, 3, H, W] uint8 for B prompts: [B] float32."""
        device = self.vision.device
        pixels = self.preprocess(images.to(device), self.vision.dtype)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        tokens = {key: values.to(device) for key, values in self.read(prompts).items()}
        over = self.text(**tokens, encoder_hidden_states=seen).last_hidden_state
        rating: Tensor = self.head(over[:, 0].float()).squeeze(-1)
        return (rating - MEAN) / STD
