"""Add LoRA adapters to the weights that they adapt for the time of a rollout, and take them away again.

A layer with an adapter is three matrix products, two of them small: in a sampling step, which has one token a row, they
cost about as much as the large one. Merged, it is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn

MergeAdapters = Literal["auto", "on", "off"]


def check_merge_adapters(choice: str) -> None:
    """Raise ValueError for what is no choice."""
    if choice not in get_args(MergeAdapters):
        raise ValueError(f"merge_adapters is {choice!r}; allowed: {', '.join(get_args(MergeAdapters))}")


def pays(choice: MergeAdapters, dtype: torch.dtype) -> bool:
    """Say whether adapters are merged. "auto" merges in fp32.

    In bf16 a sum of weight and adapter has eight bits: what an adapter adds below them is lost, and the tokens would be
    drawn from another policy than the one that is trained.
    """
    return choice == "on" or (choice == "auto" and dtype == torch.float32)


@contextmanager
def merged(module: nn.Module) -> Iterator[None]:
    """Inside, the adapters of peft are in the weights. Afterwards the weights are bit for bit what they were.

    The weights that have adapters exist twice inside: subtracting again what was added would leave rounding errors.
    Does nothing where there are no adapters, or where they are switched off or merged already.
    """
    layers = _adapted(module)
    before = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer in layers:
            with torch.no_grad():
                added = [layer.get_delta_weight(name) for name in layer.active_adapters if name in layer.lora_A]
            weight = layer.get_base_layer().weight
            weight.data = sum(added, weight.data)
            layer.merged_adapters = list(layer.active_adapters)
        yield
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters = []


def _adapted(module: nn.Module) -> list[Any]:
    """Return the layers whose adapters take part in the forward pass."""
    if not any(".lora_" in name for name, _ in module.named_parameters()):
        return []
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    return [layer for layer in layers if not layer.disable_adapters and not layer.merged]
