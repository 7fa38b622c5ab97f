"""Split an image token's cross-entropy into that of the layout it shows and that of it among the codes of its layout.

A patch's layout is its colour and which of its quarters are filled: what a prompt decides of a picture. Which of a
hundred alike codes it is are nats of texture on every token, and their noise hides the rest for thousands of steps.
Both parts are proper scores: whatever their weights, their sum is least, on average, where the model's distribution is
that of the scenes.

B rows, T image tokens, V codebook.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from rewards.geneval.detectors.shapes import nearest_colors
from rewards.geneval.vocabulary import COLORS
from t2i_gcpo.pretrain.janus.codes import PATCH

#: Pixels of a quarter of a patch that must have another colour than the background for it to be filled.
LEAST_PIXELS = 8
#: What a filled quarter adds to the number of a set of them, row by row.
QUARTERS = (1, 2, 4, 8)
#: Sets of filled quarters, without the empty one.
FILLINGS = sum(QUARTERS)
#: Numbers that describe a layout.
LAYOUT_FEATURES = len(COLORS) + len(QUARTERS)


def shown_layout(patches: Tensor) -> Tensor:
    """Return the layout that patches [N, 192] in [-1, 1] show, [N] int64.

    0 is the background: no quarter is filled. Else it is 15 k + s: k is the place in `COLORS` of the patch's colour,
    the nearest one of most pixels; s, 1 to 15, is the sum of 1, 2, 4 and 8 for the filled quarters, row by row.
    """
    pixels = rearrange((patches + 1) * 127.5, "n (c y x) -> n y x c", y=PATCH, x=PATCH)
    nearest = torch.from_numpy(nearest_colors(pixels.numpy())).long()
    quarters = rearrange(nearest, "n (i y) (j x) -> n (i j) (y x)", i=2, j=2)
    filled = (quarters > 0).sum(dim=-1) >= LEAST_PIXELS
    counts = F.one_hot(nearest.flatten(1), len(COLORS) + 1).sum(dim=1)[:, 1:]
    index = FILLINGS * counts.argmax(dim=1) + (filled * torch.tensor(QUARTERS)).sum(dim=1)
    return torch.where(filled.any(dim=1), index, 0)


def layout_features(layouts: Tensor) -> Tensor:
    """Describe layouts [N] by numbers [N, 10 + 4]: 1 at the colour, and 1 at each filled quarter; 0 elsewhere."""
    shown = (layouts > 0).unsqueeze(-1)
    color, filling = (layouts - 1).clamp_min(0) // FILLINGS, (layouts - 1).clamp_min(0) % FILLINGS + 1
    quarters = filling.unsqueeze(-1) // torch.tensor(QUARTERS) % 2
    return torch.cat([F.one_hot(color, len(COLORS)), quarters], dim=-1).float() * shown


def split_cross_entropy(logits: Tensor, tokens: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each token's group, and of the token given its group, each [B, T] fp32, in nats.

    logits: [B, T, V]. tokens: [B, T]. groups: [V], the group of each code.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        same = groups[tokens].unsqueeze(-1) == groups
        group = logits.masked_fill(~same, -torch.inf).logsumexp(dim=-1)
        token = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return logits.logsumexp(dim=-1) - group, group - token
