"""Defines the `aesthetic` reward: how much people like a picture, by LAION's predictors.

B images, H, W their sides, D feature width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.base import Reward, RewardOutput
from rewards.models import weights
from rewards.models.batches import check_images, in_batches
from rewards.models.open_clip_model import load_open_clip, read_tensors

#: The hub's copy of `sac+logos+ava1-l14-linearMSE.pth`, and the revision at which it was looked at.
IMPROVED = "trl-lib/ddpo-aesthetic-predictor"
IMPROVED_FILE = "aesthetic-model.pth"
IMPROVED_REVISION = "7f639699bec8126062148a47ecb1a4312d8e6688"

#: Places of the linear layers in the improved predictor; those between them are dropout, which rests here.
MLP_LAYERS = (0, 2, 4, 6, 7)


class AestheticReward(Reward):
    """Rates pictures as LAION does, with a head on normalised CLIP ViT-L/14 features.

    It was trained on ratings from 1 to 10; a rating is not bounded.

    Two heads, told apart by their files:

    - the improved predictor (V2): five linear layers without activations, trained on SAC, LOGOS and AVA1 ratings
      (https://github.com/christophschuhmann/improved-aesthetic-predictor, Apache-2.0),
      `sac+logos+ava1-l14-linearMSE.pth` there and the default here;
    - V1: one linear layer (https://github.com/LAION-AI/aesthetic-predictor, MIT), `sa_0_4_vit_l_14_linear.pth`:
    download it
      and name it as `checkpoint`.

    The features are OpenAI's ViT-L/14 (arXiv 2103.00020, MIT). Prompts and metadata do not matter.

    Args:
        checkpoint: the head: a file, or a folder or hub repository that holds `filename`.
        revision: of the head's hub repository.
        clip_architecture: open_clip's name of the model under the head.
        clip_pretrained: its tag, where `clip_checkpoint` is not given.
        clip_checkpoint: a state_dict of `clip_architecture` in place of the tag: a file, or a folder or hub repository
            with
            open_clip's file names.
        clip_revision: of the features' hub repository.
        dtype: of the features, float32, float16 or bfloat16; the head is float32.

    Takes [B, 3, H, W] uint8 of any size. No parts. ValueError: weights that are missing or do not fit, a head
    of another kind or width, images of another type.
    """

    name = "aesthetic"

    def __init__(
        self,
        *,
        checkpoint: str = IMPROVED,
        filename: str = IMPROVED_FILE,
        revision: str | None = None,
        clip_architecture: str = "ViT-L-14-quickgelu",
        clip_pretrained: str = "openai",
        clip_checkpoint: str | None = None,
        clip_revision: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        if checkpoint == IMPROVED and filename == IMPROVED_FILE and revision is None:
            revision = IMPROVED_REVISION
        path = weights.file(checkpoint, filename, revision=revision, what="head for reward 'aesthetic'")
        head = load_head(path)
        self.encoder = load_open_clip(
            "aesthetic",
            checkpoint=clip_checkpoint,
            architecture=clip_architecture,
            pretrained=None if clip_checkpoint else clip_pretrained,
            revision=clip_revision,
            device=device,
            dtype=dtype,
        )
        self.head = head.to(self.encoder.device)
        self.batch_size = batch_size
        given = self.encoder.images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape[-1]
        taken = head[0].in_features
        if given != taken:
            raise ValueError(
                f"reward 'aesthetic': {path} takes features of width {taken}, but {clip_architecture} gives {given}; "
                "take the model that the head was trained on (ViT-L-14-quickgelu)"
            )

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        check_images(images, "aesthetic")
        rating = in_batches(self._rate, images, batch_size=self.batch_size, name="aesthetic").to(images.device)
        return RewardOutput(rating)

    @torch.no_grad()
    def _rate(self, images: Tensor) -> Tensor:
        rating: Tensor = self.head(self.encoder.images(images))
        return rating.squeeze(-1)


def load_head(path: Path) -> nn.Sequential:
    """Load what makes ratings [B, 1] of features [B, D] of unit length.

    ValueError for a file that is neither of LAION's two heads.
    """
    state = read_tensors(path, "aesthetic")
    names = ("",) if "weight" in state else tuple(f"layers.{place}." for place in MLP_LAYERS)
    expected = {f"{name}{kind}" for name in names for kind in ("weight", "bias")}
    if set(state) != expected:
        raise ValueError(
            f"reward 'aesthetic': {path} is none of LAION's heads: it holds {', '.join(sorted(state))}; known are "
            f"weight and bias (V1), or both of layers {', '.join(map(str, MLP_LAYERS))} (V2 without activations)"
        )
    head = nn.Sequential()
    for name in names:
        outputs, inputs = state[f"{name}weight"].shape
        layer = nn.Linear(inputs, outputs)
        layer.load_state_dict({"weight": state[f"{name}weight"], "bias": state[f"{name}bias"]})
        head.append(layer)
    return head.eval().requires_grad_(False)
