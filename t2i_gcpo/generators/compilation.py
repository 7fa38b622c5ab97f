"""Decide when a sampling step is compiled, and in batches of which size.

A compiled step has one shape, and is worth its half minute only if it is used often. R rows sampled at once.
"""

from __future__ import annotations

import shutil
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch

from t2i_gcpo.generators.base import chunks

CompileChoice = bool | Literal["auto", "graphs"]
"""Off, on, on where it pays, or on and with CUDA graphs."""

Item = TypeVar("Item")
Built = TypeVar("Built")

#: "auto" compiles from this many rollouts on: the first one takes half a minute longer, each one saves a second or
#: more.
FROM_ROLLOUTS = 30

#: Compiled shapes (and their buffers) that are kept.
CACHED_SHAPES = 4


class Compilation:
    """A generator's choice to compile.

    It depends on the options alone, never on what ran before: a resumed run does what the first one did.
    """

    def __init__(self, choice: CompileChoice, device: torch.device) -> None:
        """Take the option and the device.

        ValueError: another option, True or "graphs" where torch.compile cannot compile, or "graphs" off CUDA.
        """
        if choice not in (True, False, "auto", "graphs"):
            raise ValueError(f"compile is {choice!r}; allowed: True, False, auto, graphs")
        if choice == "graphs" and device.type != "cuda":
            raise ValueError(f"compile is graphs, which are CUDA's, and the device is {device.type}; say on, or auto")
        if choice in (True, "graphs") and not can_compile(device):
            raise ValueError(
                "compile is on, but torch.compile finds no C++ compiler (CPU) or Triton "
                "(GPU); install one, or turn it off"
            )
        self.choice, self.device = choice, device
        self.rollouts_ahead = 1
        """How many rollouts of like size the caller will ask for in all; "auto" goes by it."""
        self.usual_rows: int | None = None
        """Rows of those rollouts, if the caller said it: one that needs no filling up has a shape of its own."""

    def __call__(self) -> bool:
        return compilation_pays(self.choice, self.rollouts_ahead) and can_compile(self.device)


def compilation_pays(choice: CompileChoice, rollouts: int) -> bool:
    """Say whether a sampling step is compiled for so many rollouts, where torch can compile."""
    return choice in (True, "graphs") or (choice == "auto" and rollouts >= FROM_ROLLOUTS)


class ShapeCache(OrderedDict[Hashable, Built]):
    """Keep what was built for the shapes that were used last, by key."""

    def get_or_build(self, key: Hashable, build: Callable[[], Built]) -> Built:
        if key not in self:
            self[key] = build()
            while len(self) > CACHED_SHAPES:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]


def compiled(function: Callable[..., Any], name: str, **options: Any) -> Callable[..., Any]:
    """Compile `function`, a closure, into one graph.

    `name` is of its shape: torch counts recompilations by code object, and all shapes' closures would count against the
    same few.
    """
    if not isinstance(function, types.FunctionType):
        raise TypeError(
            f"{function!r} is no Python function; only a function's code can be compiled under a name of its own"
        )
    code = function.__code__.replace(co_name=name)
    own = types.FunctionType(code, function.__globals__, closure=function.__closure__)
    return torch.compile(own, fullgraph=True, options=options or None)


def can_compile(device: torch.device) -> bool:
    """Say whether torch.compile has what it needs here: a C++ compiler on the CPU, Triton elsewhere."""
    if device.type == "cpu":
        from torch._inductor import config

        return any(shutil.which(name) for name in config.cpp.cxx if name)
    import importlib.util

    return importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Batch(Generic[Item]):
    """Rows that are sampled at once."""

    rows: Sequence[Item]
    asked: int
    """How many of them were asked for; those behind fill the batch up."""
    compile: bool


def batches(rows: Sequence[Item], max_batch: int | None, compile: bool, usual: int | None = None) -> list[Batch[Item]]:
    """Cut rows into batches of at most `max_batch`; compiled ones have few sizes, unless they would be mostly empty.

    usual: the rows of most calls. As many or fewer are compiled in the equal parts that these are cut into, so that
    nothing is filled up where they come; other numbers in batches of `max_batch`.
    """
    if usual is not None and len(rows) <= usual:
        max_batch = -(-usual // -(-usual // (max_batch or usual)))
    compile = compile and worth_compiling(len(rows), max_batch)
    result = []
    for part in cut(rows, max_batch, compile):
        one_shape = compile and worth_compiling(len(part), max_batch)
        size = max_batch if one_shape and max_batch is not None else len(part)
        result.append(Batch(filled(part, size), len(part), one_shape))
    return result


def worth_compiling(rows: int, max_batch: int | None) -> bool:
    """Say whether at least half of a compiled batch is filled: it always has `max_batch` rows, and costs as much."""
    return max_batch is None or 2 * rows >= max_batch


def cut(rows: Sequence[Item], max_batch: int | None, compiled: bool) -> list[Sequence[Item]]:
    """Cut rows into batches of `max_batch` and a rest where compiled, as shapes are fixed; else nearly equally."""
    if compiled and max_batch is not None:
        return [rows[start : start + max_batch] for start in range(0, len(rows), max_batch)]
    return list(chunks(rows, max_batch))


def filled(rows: Sequence[Item], count: int) -> list[Item]:
    """Fill rows up to `count` with copies of the last one."""
    return [*rows, *[rows[-1]] * (count - len(rows))]
