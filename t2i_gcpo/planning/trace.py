"""Count the bytes and FLOPs of a piece of code by running it on the meta device, where tensors have no values.

A tensor that an operation makes is counted until it is freed, as the caching allocator of a GPU counts it. So what is
counted is the code that trains, with the layers, adapters and checkpointing that it has. Attention is taken for a fused
kernel, which keeps no scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")

#: Matrix products of fused attention, each of 2 FLOPs a score and channel: the scores and their sum; in the backward
#: pass the scores again and four gradients (FlashAttention, 2205.14135).
PRODUCTS_FORWARD, PRODUCTS_BACKWARD = 2, 5


#: On a device a convolution's result has its input's layout; on meta it is contiguous, and layers that follow would
#: then copy less or more.
CONVOLUTIONS = (torch.ops.aten.convolution.default,)


@dataclass(frozen=True)
class Trace:
    """Holds what a forward pass, and the backward pass that follows it, need."""

    kept: int
    """Bytes held when the forward pass has ended: what the backward pass reads, and the result."""
    peak: int
    """The most bytes held at a time beside the gradients of the parameters."""
    flops: int
    """FLOPs of the matrix products and convolutions of both passes."""
    logits: int = 0
    """The most bytes of logits, and of tensors as wide as these, that are held at a time."""
    kept_logits: int = 0
    """Bytes of logits that are held when the forward pass has ended."""


def on_line(first: Trace, second: Trace, steps: float) -> Trace:
    """Return the trace on the line through two: 0 steps is the first, 1 the second."""
    pairs = {field.name: (vars(first)[field.name], vars(second)[field.name]) for field in fields(Trace)}
    return Trace(**{name: round(a + (b - a) * steps) for name, (a, b) in pairs.items()})


def in_a_row(passes: Sequence[Trace]) -> Trace:
    """Return the trace of passes made one after the other, through which one backward pass goes, the last first."""
    kept = kept_logits = peak = logits = 0
    for one in passes:
        peak, logits = max(peak, kept + one.peak), max(logits, kept_logits + one.logits)
        kept, kept_logits = kept + one.kept, kept_logits + one.kept_logits
    return Trace(kept, peak, sum(one.flops for one in passes), logits, kept_logits)


def trace(
    forward: Callable[[], Tensor], *, backward: bool, parameters: Sequence[Tensor] = (), codebook: int = 0
) -> Trace:
    """Run `forward` on meta tensors, and where wanted the backward pass of its result.

    codebook: V; a tensor with such a dimension is one of logits.
    parameters: those whose gradients are not counted. Which of them stay, and beside what, is the update's business;
    and a peak with them would be on no line over rows and layers: at few rows they are most of what is held.
    """
    with _fused_attention() as attention, _Ledger(codebook) as ledger, torch.set_grad_enabled(backward):
        result = forward()
        kept, kept_logits = ledger.held, ledger.held_logits()
        if backward:
            with _thrown_away(parameters, ledger):
                result.backward(torch.empty_like(result))
        peak, logits = ledger.peak_of_the_rest()
    return Trace(kept, peak, ledger.flops + attention.flops, logits, kept_logits)


@contextmanager
def _thrown_away(parameters: Sequence[Tensor], ledger: _Ledger) -> Iterator[None]:
    """Inside, let each parameter's gradient go once the backward pass has made it, and leave it out of the ledger."""

    def forget(parameter: Tensor) -> None:
        if parameter.grad is not None:
            ledger.leave_out(parameter.grad)
            parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(forget) for parameter in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Ledger(TorchDispatchMode):
    """Count the storages that operations made and that are still alive, and FLOPs."""

    def __init__(self, codebook: int = 0) -> None:
        super().__init__()
        self.codebook = codebook
        self.held = self.flops = 0
        self._changes: list[tuple[int, int]] = []  # number of a storage, and bytes: less them when it is freed
        self._numbers: dict[int, int] = {}  # key of a storage -> the number of the last one that had it
        self._left_out: set[int] = set()
        self._logits: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_key(tensor) for tensor in _tensors((args, kwargs))}
        result = function(*args, **kwargs)
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        if function in CONVOLUTIONS:
            result = _as_laid_out(result, args[0])
        for tensor in _tensors(result):
            if _key(tensor) not in given:  # else a view, or written in place
                given.add(_key(tensor))
                self._hold(tensor)
        return result

    def leave_out(self, tensor: Tensor) -> None:
        """Leave the tensor out of `peak_of_the_rest`, from when it was made."""
        self._left_out.add(self._numbers[_key(tensor)])

    def held_logits(self) -> int:
        """Return the bytes of logits that are held now."""
        return sum(change for number, change in self._changes if number in self._logits)

    def peak_of_the_rest(self) -> tuple[int, int]:
        """Return the most bytes held at a time by tensors that were not left out, and the most by logits among them."""
        held = logits = most = most_logits = 0
        for number, change in self._changes:
            if number not in self._left_out:
                held += change
                logits += change if number in self._logits else 0
                most, most_logits = max(most, held), max(most_logits, logits)
        return most, most_logits

    def _hold(self, tensor: Tensor) -> None:
        storage, number = tensor.untyped_storage(), len(self._changes)
        size, self._numbers[_key(tensor)] = storage.nbytes(), number
        if self.codebook in tensor.shape:
            self._logits.add(number)
        self._change(number, size)
        weakref.finalize(storage, self._change, number, -size)

    def _change(self, number: int, size: int) -> None:
        self._changes.append((number, size))
        self.held += size


@contextmanager
def _fused_attention() -> Iterator[_Count]:
    """Let `scaled_dot_product_attention` keep what a fused kernel keeps; on meta torch takes the one that keeps all
    scores.

    The function itself is replaced: a `TorchFunctionMode` is off in the backward pass, where layers that are
    checkpointed run again.
    """
    count, functional = _Count(), torch.nn.functional
    original = functional.scaled_dot_product_attention

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)  # added to the scores
        return _Attention.apply(query, key, value, attn_mask, count)

    functional.scaled_dot_product_attention = attention
    try:
        yield count
    finally:
        functional.scaled_dot_product_attention = original


@dataclass
class _Count:
    """Counts the FLOPs of attention."""

    flops: int = 0


class _Attention(torch.autograd.Function):
    """Keeps what a fused kernel keeps: its inputs, its output, and a number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, count: _Count) -> Tensor:
        batch, heads, length, width = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        total = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, total, mask)
        ctx.count, ctx.flops = count, 2 * batch * heads * length * key.shape[2] * width
        count.flops += PRODUCTS_FORWARD * ctx.flops
        return output

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        ctx.count.flops += PRODUCTS_BACKWARD * ctx.flops
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None, None


def _as_laid_out(result: Tensor, given: Tensor) -> Tensor:
    """Lay the result [b, c, h, w] of a convolution out in memory as cuDNN and oneDNN do: as its input."""
    last = given.ndim == 4 and not given.is_contiguous() and given.is_contiguous(memory_format=torch.channels_last)
    return result.contiguous(memory_format=torch.channels_last) if last else result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
