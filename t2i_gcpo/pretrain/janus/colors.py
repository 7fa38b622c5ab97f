"""Split an image token's cross-entropy into that of the colour it shows and that of it among the codes of its colour.

What a prompt decides of a token is mostly its colour, a nat or two on a few tokens. Which of a hundred alike codes it
is are nats of texture on every token, and their noise hides the rest for thousands of steps. Both parts are proper
scores: whatever their weights, their sum is least, on average, where the model's distribution is that of the scenes.

B rows, T image tokens, V codebook, C colours that prompts name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from rewards.geneval.detectors.shapes import nearest_colors
from rewards.geneval.vocabulary import COLORS
from t2i_gcpo.pretrain.janus.codes import PATCH

#: Pixels of a patch that must have another colour than the background for the patch to show it.
LEAST_PIXELS = 4


def shown_color(patches: Tensor) -> Tensor:
    """Return the colour that patches [N, 192] in [-1, 1] show, [N] int64.

    k + 1 is the k-th of `COLORS`: of those that pixels are nearest to, the one of most pixels. 0 is the background,
    where fewer than `LEAST_PIXELS` are nearest to anything else.
    """
    pixels = rearrange((patches + 1) * 127.5, "n (c y x) -> n y x c", y=PATCH, x=PATCH)
    nearest = torch.from_numpy(nearest_colors(pixels.numpy())).long()
    counts = F.one_hot(nearest.flatten(1), len(COLORS) + 1).sum(dim=1)
    counts[:, 0] = 0
    return torch.where(counts.sum(dim=1) >= LEAST_PIXELS, counts.argmax(dim=1), 0)


def split_cross_entropy(logits: Tensor, tokens: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each token's colour, and of the token given its colour, each [B, T] fp32, in nats.

    logits: [B, T, V]. tokens: [B, T]. colors: [V, C + 1] fp32, 1 at each code's colour and 0 elsewhere.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = logits.float().log_softmax(dim=-1)
        share = ((log_probs.exp() @ colors) * colors[tokens]).sum(dim=-1)
    whole = -log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    color = -share.clamp_min(torch.finfo(share.dtype).tiny).log()
    return color, whole - color
