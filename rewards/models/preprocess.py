"""Makes of uint8 images what an image encoder takes: resized as its authors do, cropped or padded, normalised.

B images, H, W their sides, S the encoder's side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

#: Mean and standard deviation of OpenAI's CLIP, in RGB; most scorers kept them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Says how an encoder wants its images, and makes them so."""

    size: int
    """S, pixels."""
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    """The side that becomes S; then "shortest" crops the centre, "longest" pads with black around the centre; "squash":
    both sides."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Always anti-aliased, as Pillow does it."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Make [B, 3, S, S] of `dtype`, normalised, of images [B, 3, H, W] uint8."""
        pixels = images.float()
        height, width = self._target(*images.shape[-2:])
        # Side by side with bytes in between, as Pillow: bicubic overshoots, and each pass cuts that off. Width first,
        # as Pillow does with square pictures; the order is worth a few levels at most.
        for size in ((images.shape[-2], width), (height, width)):
            if size != tuple(pixels.shape[-2:]):
                pixels = functional.interpolate(
                    pixels, size=size, mode=self.interpolation, align_corners=False, antialias=True
                )
                pixels = pixels.round().clamp(0, 255)
        pixels = self._centre(pixels) / 255
        mean, std = (
            rearrange(torch.tensor(values, device=images.device), "c -> c 1 1") for values in (self.mean, self.std)
        )
        return ((pixels - mean) / std).to(dtype)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after the resize.

        "shortest" rounds its long side down, as torchvision and transformers do.
        """
        if self.resize == "squash":
            return self.size, self.size
        if self.resize == "shortest":
            short = min(height, width)
            return height * self.size // short, width * self.size // short
        long = max(height, width)
        return max(round(height * self.size / long), 1), max(round(width * self.size / long), 1)

    def _centre(self, pixels: Tensor) -> Tensor:
        """Crop or pad [B, 3, h, w] around the centre to [B, 3, S, S]; padding is black, as in open_clip."""
        for axis in (-2, -1):
            excess = pixels.shape[axis] - self.size
            if excess > 0:
                pixels = pixels.narrow(axis, round(excess / 2), self.size)
            elif excess < 0:
                before = -excess // 2
                sides = [0, 0, before, -excess - before] if axis == -2 else [before, -excess - before, 0, 0]
                pixels = functional.pad(pixels, sides)
        return pixels
