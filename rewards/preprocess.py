"""uint8 images to what an image encoder takes: resized as its authors do, cropped or padded, normalised; the whole batch at once.

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
    """How an encoder wants its images."""

    size: int
    """S, pixels."""
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    """The side that becomes S; then "shortest" crops the centre, "longest" pads with black around the centre; "squash": both sides."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Always anti-aliased, as Pillow does it."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, 3, H, W] uint8 -> [B, 3, S, S] of `dtype`, normalised."""
        height, width = images.shape[-2:]
        side = {"shortest": min(height, width), "longest": max(height, width)}.get(self.resize)
        if side is None:
            target = (self.size, self.size)
        else:
            target = (max(round(height * self.size / side), 1), max(round(width * self.size / side), 1))
        pixels = images.float()
        if target != (height, width):
            pixels = functional.interpolate(
                pixels, size=target, mode=self.interpolation, align_corners=False, antialias=True
            )
            pixels = pixels.round().clamp(0, 255)  # as images that were resized as bytes
        pixels = self._centre(pixels) / 255
        mean, std = (
            rearrange(torch.tensor(values, device=images.device), "c -> c 1 1") for values in (self.mean, self.std)
        )
        return ((pixels - mean) / std).to(dtype)

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
