"""Let the codes of a layout share a row of the embedding and of the head, so that layouts can be learnt before codes.

A code's embedding is a row that all codes of its layout share, and one of its own; so are its row of the head and its
bias. The first steps of a training see and predict layouts alone, by the shared rows: a hundred tokens without texture.
After them the own rows begin as codes look, and small: the model still knows what it has learnt of layouts. At the end
the sums are the model's rows, and nothing of this is left in it.

V codes, G layouts that some code shows, D numbers of an embedding, H of a state that the head's last layer reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from t2i_gcpo.pretrain.janus.codes import principal_components
from t2i_gcpo.pretrain.janus.layout import LAYOUT_FEATURES, layout_features, shown_layout

#: How much a layout's colour and filled quarters count in its first embedding, and a detail of a patch in a code's own.
LAYOUT_SCALE, DETAIL_SCALE = 3.0, 0.25


class LayoutRows(nn.Module):
    """Holds the shared rows: of the embedding [G, D], of the head [G, H] and of its bias [G]."""

    layouts: Tensor
    """The layout of each code, [V], from 0 to G - 1."""
    log_sizes: Tensor
    """The logarithm of the number of codes of each layout, [G]."""

    def __init__(self, inner: Any, codes: Tensor, seed: int) -> None:
        """Start the shared rows from what layouts show, and those of `inner`, a `JanusModel`, from details of codes.

        codes: [V, 192] in [-1, 1].
        """
        super().__init__()
        shown, layouts, sizes = shown_layout(codes).unique(return_inverse=True, return_counts=True)
        self.register_buffer("layouts", layouts, persistent=False)
        self.register_buffer("log_sizes", sizes.log(), persistent=False)
        own, head = inner.generation_embeddings.weight, inner.generation_head.vision_head
        generator = torch.Generator().manual_seed(seed)
        layout = LAYOUT_SCALE * layout_features(shown)
        details = DETAIL_SCALE * principal_components(codes, own.shape[1] - LAYOUT_FEATURES, power=0.5)
        more = DETAIL_SCALE * principal_components(codes, min(head.in_features, codes.shape[1]) // 2, power=0.5)
        with torch.no_grad():
            own.copy_(torch.cat([torch.zeros(len(codes), LAYOUT_FEATURES), details], dim=1))
            head.weight.copy_(_mixed(more, head.in_features, generator))
            head.bias.copy_(-self.log_sizes[layouts])  # the codes of a layout together are as likely as it
        self.embedding = nn.Parameter(torch.cat([layout, torch.zeros(len(shown), details.shape[1])], dim=1))
        self.weight = nn.Parameter(_mixed(layout, head.in_features, generator))
        self.bias = nn.Parameter(torch.zeros(len(shown)))

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the shared part of the tokens' embeddings, [..., D]."""
        return self.embedding[self.layouts[tokens]]

    @torch.no_grad()
    def fold_into(self, inner: Any) -> None:
        """Add the shared rows to those of the `JanusModel`, which then says what both said together."""
        inner.generation_embeddings.weight += self.embedding[self.layouts]
        inner.generation_head.vision_head.weight += self.weight[self.layouts]
        inner.generation_head.vision_head.bias += self.bias[self.layouts]


def _mixed(features: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Return random directions for features [N, F], [N, width]; alike features have alike ones."""
    mixing = torch.randn(features.shape[1], width, generator=generator)
    return features @ mixing / (features.shape[1] * width) ** 0.5
