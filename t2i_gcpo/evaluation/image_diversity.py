"""Measures how varied images are, from their pixels alone: it falls when a policy pleases its scorer with one picture.

B = P * G images, G of each prompt, H, W their sides.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

#: Bins of a colour channel; an image's histogram has LEVELS ** 3 cells.
LEVELS = 4
#: Two images are near-duplicates where their thumbnails of so many pixels a side ...
THUMBNAIL = 16
#: ... differ by less than this on average, levels of 255: an object that moved by its own width differs by more.
NEAR = 3.0


def color_entropy(images: Tensor) -> Tensor:
    """Return the entropy [B], nats, of the RGB histogram of each image [B, 3, H, W] uint8.

    It has 4 x 4 x 4 cells: 0 for one colour, ln 64 at most.
    """
    bins = images.long() * LEVELS // 256
    cells = rearrange((bins[:, 0] * LEVELS + bins[:, 1]) * LEVELS + bins[:, 2], "b h w -> b (h w)")
    counts = torch.zeros(len(images), LEVELS**3, device=images.device)
    counts.scatter_add_(1, cells, torch.ones_like(cells, dtype=counts.dtype))
    return torch.special.entr(counts / cells.shape[1]).sum(dim=1)


def near_duplicates(images: Tensor, group_size: int) -> float:
    """Return the share of pairs of siblings that look alike, 0 to 1; NaN where G is 1.

    images: [B, 3, H, W] uint8, row p * G + g of prompt p.
    """
    small = functional.adaptive_avg_pool2d(images.float(), THUMBNAIL)
    siblings = rearrange(small, "(p g) c h w -> p g (c h w)", g=group_size)
    distances = torch.cdist(siblings, siblings, p=1) / siblings.shape[-1]
    first, second = torch.triu_indices(group_size, group_size, offset=1, device=images.device)
    return float((distances[:, first, second] < NEAR).float().mean()) if len(first) else math.nan
