"""Defines the `clip` reward: how well a picture fits its prompt, by any open_clip model. B images, H, W their sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rewards.base import Reward, RewardOutput, check_each
from rewards.models.batches import TextCache
from rewards.models.open_clip_encoder import UnfitText, cosines
from rewards.models.open_clip_model import load_open_clip

#: The embedded model, for 96 x 96 pictures of ShapeScenes and their captions.
CLIP_MINI = "clip-mini"
ASSETS = Path(__file__).parent.parent / "assets"


class ClipReward(Reward):
    """Scores the cosine of the picture's and the prompt's CLIP features (arXiv 2103.00020), times `scale`.

    It lies in [-scale, scale].

    `clip-mini`, the default, lies in this package and knows the words and pictures of ShapeScenes only. A checkpoint of
    the open_clip project (https://github.com/mlfoundations/open_clip) is `architecture="ViT-B-32"` and
    `pretrained="laion2b_s34b_b79k"` (MIT), or a repository such as `laion/CLIP-ViT-B-32-laion2B-s34B-b79K`; OpenAI's
    weights (MIT) are `ViT-B-32-quickgelu` and `openai`. Other tags have licences of their own. CLIPScore (arXiv
    2104.08718) is published as 2.5 max(cosine, 0).

    Args:
        checkpoint: "clip-mini", a folder or hub repository with `open_clip_config.json`, or a state_dict of
            `architecture`: a file, or `filename` in a folder or hub repository.
        architecture: open_clip's name of it; with `pretrained` or a state_dict only.
        pretrained: open_clip's tag for weights of `architecture`; the checkpoint is then left at its default.
        revision: of the hub repository.
        quick_gelu: for a state_dict whose architecture exists with and without QuickGELU: which of them was trained.
        scale: factor of the score.
        unfit_text: a prompt that is cut to the context length, or has words outside the vocabulary: "warn" once, or
            "raise".
        dtype: float32, float16 or bfloat16; cosines are float32.

    Takes [B, 3, H, W] uint8 of any size. Part: `cosine`, without the scale. ValueError: weights that are missing or do
    not fit, a QuickGELU that does not fit the weights, unknown names, images of another type.
    """

    name = "clip"

    def __init__(
        self,
        *,
        checkpoint: str = CLIP_MINI,
        architecture: str | None = None,
        pretrained: str | None = None,
        filename: str | None = None,
        revision: str | None = None,
        quick_gelu: bool | None = None,
        scale: float = 1.0,
        unfit_text: UnfitText = "warn",
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 64,
    ) -> None:
        self.encoder = load_open_clip(
            "clip",
            checkpoint=_place(checkpoint, architecture, pretrained),
            architecture=architecture,
            pretrained=pretrained,
            filename=filename,
            revision=revision,
            quick_gelu=quick_gelu,
            unfit_text=unfit_text,
            device=device,
            dtype=dtype,
        )
        self.scale, self.batch_size = scale, batch_size
        self.texts = TextCache(self.encoder.texts, batch_size=batch_size, name="clip")

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Raise PromptError for the first prompt that does not fit, where `unfit_text` is "raise"."""
        check_each(lambda prompt, row: self.encoder.check(prompt), prompts, metadata)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        cosine = cosines(self.encoder, self.texts, images, prompts, self.batch_size)
        return RewardOutput(self.scale * cosine, {"cosine": cosine})


def _place(checkpoint: str, architecture: str | None, pretrained: str | None) -> str | None:
    """Return the checkpoint that `load_open_clip` takes: None beside a tag, the embedded folder for "clip-mini"."""
    if checkpoint != CLIP_MINI:
        return checkpoint
    if pretrained is not None:
        return None
    if architecture is not None:
        raise ValueError(
            f"reward 'clip': architecture {architecture!r} has no weights; add "
            "pretrained (open_clip's tag), or a checkpoint"
        )
    folder = ASSETS / CLIP_MINI
    if not folder.is_dir():
        raise ValueError(
            f"reward 'clip': this installation has no clip-mini ({folder} is missing); train it with "
            "`t2i-gcpo pretrain clip`, or name another checkpoint, or an architecture and its pretrained tag"
        )
    return str(folder)
