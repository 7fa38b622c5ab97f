"""Attend in float32 where the rest of a training step is in bfloat16.

For heads of 32 numbers PyTorch's CPU kernel takes three times as long backward in bfloat16 as in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NAME = "t2i_gcpo_float32_attention"
"""What transformers calls it: a value of a config's `_attn_implementation`."""


def register() -> None:
    """Let transformers know the name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' "sdpa" does; heads `[B, H, T, D]` of any dtype, the result `[B, T, H, D]` in float32."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
