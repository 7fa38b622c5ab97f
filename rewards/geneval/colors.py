"""Names the colours of detected objects by CLIP, as GenEval does.

N objects, H, W a picture's sides, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from rewards.geneval.rules import Detection
from rewards.geneval.vocabulary import COLORS
from rewards.models.batches import TextCache, in_batches
from rewards.models.open_clip_model import load_open_clip

#: GenEval's ten colours, in its order: the first of equal ones wins.
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)

#: A colour's feature is the mean over these, of unit length.
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")

#: What lies around an object in its crop: #999999.
BACKGROUND = 0x99


class ClipColors:
    """Names the colour of an object: the one of ten whose texts lie nearest to its crop.

    The model is OpenAI's CLIP ViT-L/14 (MIT).

    The object is cut out along its mask, laid on #999 and cropped to its box (GenEval, 2310.11513, `evaluation`).
    CLIP's features of a class's thirty texts are kept.

    Args:
        architecture, pretrained, checkpoint, filename, revision, quick_gelu: as in the `clip` reward; a `checkpoint` is
            a
            state_dict of the architecture and takes the place of `pretrained`.
        dtype: float32, float16 or bfloat16; cosines are float32.
        batch_size: crops at a time.
    """

    def __init__(
        self,
        *,
        architecture: str = "ViT-L-14-quickgelu",
        pretrained: str = "openai",
        checkpoint: str | None = None,
        filename: str | None = None,
        revision: str | None = None,
        quick_gelu: bool | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        self.encoder = load_open_clip(
            "geneval",
            checkpoint=checkpoint,
            architecture=architecture,
            pretrained=None if checkpoint else pretrained,
            filename=filename,
            revision=revision,
            quick_gelu=quick_gelu,
            device=device,
            dtype=dtype,
        )
        self.batch_size = batch_size
        self.texts = TextCache(self._classifiers, batch_size=batch_size, name="geneval")

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor], objects: Sequence[Detection]) -> list[str]:
        """Name the colour of one object in each of N pictures [3, H, W] uint8, of any sizes."""
        if not objects:
            return []
        features = in_batches(self._features, images, objects, batch_size=self.batch_size, name="geneval")
        cosines = torch.einsum("nd,ncd->nc", features, self.texts([one.class_name for one in objects]))
        return [COLOR_NAMES[index] for index in cosines.argmax(dim=1).tolist()]

    def _features(self, images: Sequence[Tensor], objects: Sequence[Detection]) -> Tensor:
        crops = [crop(image, one).to(self.encoder.device) for image, one in zip(images, objects, strict=True)]
        pixels = [self.encoder.preprocess(rearrange(one, "c h w -> 1 c h w"), self.encoder.dtype) for one in crops]
        return self.encoder.pixels(torch.cat(pixels))

    def _classifiers(self, class_names: list[str]) -> Tensor:
        """Return features [N, 10, D] of unit length, of N classes in ten colours."""
        texts = [
            template.format(color=color, name=name)
            for name in class_names
            for color in COLOR_NAMES
            for template in TEMPLATES
        ]
        features = rearrange(
            self.encoder.texts(texts), "(n c t) d -> n c t d", n=len(class_names), c=len(COLOR_NAMES), t=len(TEMPLATES)
        )
        return functional.normalize(features.mean(dim=2), dim=-1)


def crop(image: Tensor, one: Detection) -> Tensor:
    """Cut an object's box out of an image [3, H, W] uint8, grey outside of its mask; without a mask, as it is."""
    if one.mask is not None:
        mask = torch.from_numpy(one.mask).to(image.device)
        image = image.where(mask, torch.tensor(BACKGROUND, dtype=torch.uint8, device=image.device))
    left, top, right, bottom = (round(side) for side in one.box)
    return image[:, max(top, 0) : bottom, max(left, 0) : right]
