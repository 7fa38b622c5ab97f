"""Copies nested tensors and plain values into the host's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def host_copy(value: Any) -> Any:
    """Return a copy of a nested mapping, list or tuple, its tensors in the host's memory; nothing in it changes later.

    Mappings become dicts.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: host_copy(part) for key, part in value.items()}
    if isinstance(value, list):
        return [host_copy(part) for part in value]
    if isinstance(value, tuple):
        parts = tuple(host_copy(part) for part in value)
        # What cannot change stays one object where it is in several places, and is saved once.
        return value if all(new is old for new, old in zip(parts, value, strict=True)) else parts
    return value
