"""Keep keys and values of a decoder that goes one column at a time, in buffers of a fixed size.

A growing (concatenated) cache copies itself at every step and has a new shape each time, so nothing compiles; a static
one is read to its end from the first step on. Reading keys and values is what a decoding step costs, so this one shows
a prefix of its buffers, longer by `STRIDE` columns now and then: half the reading, and one compiled step with one
symbolic length.

Keys have one of two layouts. For the matrix products of a CPU they lie with their columns side by side: the scores of a
single query are then sums over vectors of columns, not a sum within each column. Torch's fused attention kernels want
each key in one piece; given the other layout they fall back to a kernel that copies all keys and values.

A kernel that is told which columns a row reads (`row_attention`) is shown the buffers whole.

R rows, K key-value heads, C columns of the buffers, S columns shown, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from t2i_gcpo.generators.janus.row_attention import BlockMask, block_mask, whole_blocks

#: Columns by which the part that is shown grows.
STRIDE = 16


class Buffers:
    """Lend the same memory to caches of any shape, to one at a time: what a cache left there is overwritten."""

    def __init__(self) -> None:
        self._memory: list[Tensor] = []

    def lend(self, count: int, size: int, *, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Return `count` flat tensors of `size` numbers: finite ones (that is what zeros are for), but any."""
        held = self._memory
        if len(held) < count or held[0].numel() < size or (held[0].dtype, held[0].device) != (dtype, device):
            self._memory = held = []  # given back first: both need not exist at once
            self._memory = [torch.zeros(size, dtype=dtype, device=device) for _ in range(count)]
        return [memory[:size] for memory in self._memory[:count]]

    def release(self) -> None:
        """Give the memory back. Caches that hold a part of it must be closed."""
        self._memory = []

    @property
    def bytes(self) -> int:
        """Return how much is held."""
        return sum(memory.numel() * memory.element_size() for memory in self._memory)


class GrowingCache:
    """Answer what a transformers decoder asks of `past_key_values` while it is given masks and positions: `update`."""

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        columns: int,
        width: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        keys_in_one_piece: bool = False,
        whole: bool = False,
        buffers: Buffers | None = None,
    ) -> None:
        """Plan for at least `columns` columns.

        keys_in_one_piece: the layout that fused kernels want. whole: show all columns, and say in `mask` which a row
        reads. buffers: where the memory comes from at each `start` (None: of its own).
        """
        columns = buffer_columns(columns, whole=whole)
        self._whole = whole
        self.first = torch.zeros(rows, dtype=torch.long, device=device)
        """[R] int64: each row's first column that is no padding."""
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        """[1] int64: the column that the next `update` writes; in place, as compiled code holds this tensor."""
        self._layers, self._shape = layers, (rows, heads, columns, width)
        self._options: dict[str, Any] = {"dtype": dtype, "device": device}
        self._keys_in_one_piece = keys_in_one_piece
        self._buffers = Buffers() if buffers is None else buffers
        self.keys: list[Tensor] = []
        """One tensor [R, K, C, D] a layer, contiguous over D where a key is in one piece, else over C."""
        self.values: list[Tensor] = []
        self.bias = torch.zeros(rows, 1, 1, columns, dtype=dtype, device=device)
        """[R, 1, 1, C], added to the attention scores: 0 on the columns to look at, the lowest number elsewhere."""
        self.shown_keys, self.shown_values, self.shown_bias = self.keys, self.values, self.bias
        self._shown = 0

    def start(self, keys: list[Tensor], values: list[Tensor], mask: Tensor, owner: Tensor | None = None) -> None:
        """Fill the first L columns: by layer [R, K, L, D] keys and values; mask [R, L] bool, False on padding.

        owner: [R] int64, where these hold rows that several rows of the cache begin with: the one that each has.
        """
        length = mask.shape[1]
        mask = mask if owner is None else mask[owner]
        self._place()
        self.bias.fill_(torch.finfo(self.bias.dtype).min)
        self.bias[:, 0, 0, :length].masked_fill_(mask, 0.0)
        for buffers, filled in ((self.keys, keys), (self.values, values)):
            for buffer, part in zip(buffers, filled, strict=True):
                buffer[:, :, :length].copy_(part if owner is None else part[owner])
        self._shown = 0
        self.column.fill_(length)
        self.first.copy_(mask.int().argmax(dim=1))
        if self._whole:
            self.shown_keys, self.shown_values = self.keys, self.values

    def _place(self) -> None:
        """Lay keys and values into the memory that the buffers lend."""
        rows, heads, columns, width = self._shape
        memory = self._buffers.lend(2 * self._layers, rows * heads * columns * width, **self._options)
        self.values = [flat.view(self._shape) for flat in memory[self._layers :]]
        if self._keys_in_one_piece:
            self.keys = [flat.view(self._shape) for flat in memory[: self._layers]]
        else:
            self.keys = [flat.view(rows, heads, width, columns).mT for flat in memory[: self._layers]]

    def close(self) -> None:
        """Let go of the memory until the next `start`."""
        self.keys, self.values, self.shown_keys, self.shown_values = [], [], [], []
        self._shown = 0

    def open(self, column: int) -> None:
        """Let the next `update` write `column`, and every row look at it."""
        self.column.fill_(column)
        if self._whole:
            return
        self.bias[..., column] = 0.0
        shown = rounded_up(column + 1)
        if shown == self._shown:
            return
        self._shown = shown
        self.shown_keys = [_shown(keys, 2, shown) for keys in self.keys]
        self.shown_values = [_shown(values, 2, shown) for values in self.values]
        self.shown_bias = _shown(self.bias, 3, shown)

    @property
    def mask(self) -> Tensor | BlockMask:
        """Return what is looked at, as the attention of the chosen layout takes it."""
        if self._whole:
            return block_mask(self.first, self.column, self._shape[2])
        return self.shown_bias

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one column of a layer [R, K, 1, D], and return what is shown of it [R, K, S, D]."""
        self.shown_keys[layer].index_copy_(2, self.column, keys)
        self.shown_values[layer].index_copy_(2, self.column, values)
        return self.shown_keys[layer], self.shown_values[layer]


def buffer_columns(columns: int, *, whole: bool) -> int:
    """Return the columns of buffers for at least `columns`."""
    if whole:
        return whole_blocks(columns)
    return rounded_up(columns) + STRIDE  # never shown whole: that would be a second case to compile


def rounded_up(columns: int) -> int:
    """Round up to a multiple of `STRIDE`."""
    return -(-columns // STRIDE) * STRIDE


def _shown(buffer: Tensor, dim: int, columns: int) -> Tensor:
    view = buffer.narrow(dim, 0, columns)
    torch._dynamo.mark_dynamic(view, dim)  # compile for any length at once
    return view
