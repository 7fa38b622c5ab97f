"""Attention of one new query a row over the columns from the row's first to the newest, by torch's FlexAttention.

Torch's `scaled_dot_product_attention` takes a mask for rows that begin at different columns, and with a mask CUDA has
no flash kernel. FlexAttention (2412.05496) is told which blocks of columns a row reads, and what is masked within them:
so buffers are handed over whole, with a fixed shape, and are read as far as they are filled. Compiled for CUDA it is
inductor's kernel for few queries (`torch._inductor.kernel.flex.flex_decoding`).

R rows, H heads, K key-value heads, C columns, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

NAME = "t2i_gcpo_row_attention"
"""What transformers calls it: a value of a config's `_attn_implementation`."""

COLUMNS = 64
"""Columns of a block: the fewest that the kernels read at once for heads of 128 numbers in bfloat16."""
QUERIES = 128
"""Queries of a block, FlexAttention's default; there is one."""


def register() -> None:
    """Let transformers know the name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def whole_blocks(columns: int) -> int:
    """Round up to whole blocks."""
    return -(-columns // COLUMNS) * COLUMNS


def block_mask(first: Tensor, newest: Tensor, columns: int) -> BlockMask:
    """Show each row the columns from `first` [R] to `newest` [1], both int64, of `columns`: whole blocks.

    Everything is computed on the device: no value is asked for.
    """
    blocks = columns // COLUMNS
    start, end = first // COLUMNS, newest // COLUMNS
    # [R, 1 head, 1 block of queries]: how many blocks are read, and which; those behind the last one are not looked at.
    number = (end - start + 1)[:, None, None]
    which = (start[:, None] + torch.arange(blocks, device=first.device)).clamp(max=blocks - 1)[:, None, None]

    def seen(row: Tensor, head: Tensor, query: Tensor, column: Tensor) -> Tensor:
        return (column >= first[row]) & (column <= newest[0])

    return BlockMask.from_kv_blocks(
        number.int(),
        which.int(),
        BLOCK_SIZE=(QUERIES, COLUMNS),
        mask_mod=seen,
        seq_lengths=(1, columns),
        compute_q_blocks=False,  # for the backward pass only
    )


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks for it: query [R, H, 1, D], keys, values [R, K, C, D] -> [R, 1, H, D], no weights."""
    del module
    grouped = query.shape[1] != key.shape[1]
    result = flex_attention(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=grouped)
    return result.transpose(1, 2).contiguous(), None
