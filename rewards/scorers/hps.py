"""Defines the `hps` reward: which picture people would prefer for a prompt, by HPS v2 and v2.1.

B images, H, W their sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from rewards.base import Reward, RewardOutput, check_each
from rewards.models.batches import TextCache
from rewards.models.open_clip_encoder import UnfitText, cosines
from rewards.models.open_clip_model import load_open_clip

#: Version -> its file in the repository.
FILES = {"v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HpsReward(Reward):
    """Scores by Human Preference Score v2 (arXiv 2306.09341): the cosine of a CLIP trained on people's choices.

    The model is a ViT-H-14, and a score lies in [-1, 1].

    Published tables show it times 100, with averages of 20 to 35. Weights: `xswu/HPSv2`, Apache-2.0. The two versions
    are on different scales: compare scores of one version only.

    Args:
        version: "v2" or "v2.1", the latter trained on better data.
        checkpoint: hub repository, folder with the version's file, or a file of your own.
        revision: of the hub repository.
        architecture: open_clip's name of it.
        unfit_text: a prompt that is cut to the context length: "warn" once, or "raise".
        dtype: float32, float16 or bfloat16; cosines are float32.

    Takes [B, 3, H, W] uint8 of any size; a picture that is not square is padded with black, not cropped. No parts.
    ValueError: weights that are missing or do not fit, unknown version or names, images of another type.
    """

    name = "hps"

    def __init__(
        self,
        *,
        version: Literal["v2", "v2.1"] = "v2.1",
        checkpoint: str = "xswu/HPSv2",
        revision: str | None = None,
        architecture: str = "ViT-H-14",
        unfit_text: UnfitText = "warn",
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        if version not in FILES:
            raise ValueError(f"version {version!r} of reward 'hps' is unknown; allowed: {', '.join(FILES)}")
        self.encoder = load_open_clip(
            "hps",
            checkpoint=checkpoint,
            architecture=architecture,
            filename=FILES[version],
            revision=revision,
            quick_gelu=False,
            resize="longest",
            unfit_text=unfit_text,
            device=device,
            dtype=dtype,
        )
        self.batch_size = batch_size
        self.texts = TextCache(self.encoder.texts, batch_size=batch_size, name="hps")

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Raise PromptError for the first prompt that does not fit, where `unfit_text` is "raise"."""
        check_each(lambda prompt, row: self.encoder.check(prompt), prompts, metadata)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        cosine = cosines(self.encoder, self.texts, images, prompts, self.batch_size)
        return RewardOutput(cosine)
