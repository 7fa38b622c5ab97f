"""Load the generator that a checkpoint's model type asks for, from a name or a folder."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from rewards.models.loading import LOADING
from t2i_gcpo.generators import random_models
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.generators.checkpoints import locate
from t2i_gcpo.utils.device import check_dtype, pick_device

#: model_type in the checkpoint's config.json -> "module:class" of its adapter.
ADAPTERS: dict[str, str] = {
    "amused": "t2i_gcpo.generators.amused.adapter:Amused",
    "janus": "t2i_gcpo.generators.janus.adapter:Janus",
}

#: Options of masked generators alone.
MASKED_OPTIONS: tuple[str, ...] = ("masked_policy", "masked_passes", "fold_passes")

#: Options of generators that draw their tokens one after the other.
SEQUENTIAL_OPTIONS: tuple[str, ...] = ("head_chunk",)

#: model_type of checkpoints in a layout that transformers does not read -> what to load instead.
ADVICE: dict[str, str] = {
    "multi_modality": "Janus in its authors' own layout; write it in that of transformers with t2i-gcpo convert "
    "--checkpoint FOLDER --out NEW, or load a conversion, e.g. deepseek-community/Janus-Pro-1B",
}


def load(
    name_or_path: str,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    revision: str | None = None,
    layers: int = 0,
    width: int = 0,
    **options: Any,
) -> ImageGenerator:
    """Load the generator in an embedded checkpoint ("janus-mini"), a local folder, or a repository of the hub.

    A name such as "random:janus-pro-1b" makes one of a published shape with random weights; see `random_models`.

    >>> generator = load("janus-mini")
    >>> generator.grid
    (12, 12)

    A folder may hold a whole model, or a LoRA adapter or a delta (then its base is loaded as well). `dtype` is a torch
    dtype or its name ("float32", "bfloat16"). `layers` and `width` cut a model with random weights. `options` go to the
    adapter's class (e.g. `max_batch`, `compile`). ValueError: no checkpoint under that name, no adapter for its model
    type, or an option that is not for that.
    """
    if str(name_or_path).startswith(random_models.PREFIX):
        name_or_path = random_models.parse(name_or_path, layers=layers, width=width).name
    else:
        random_models.check_uncut(str(name_or_path), layers=layers, width=width)
    checkpoint = locate(str(name_or_path), revision=revision)
    target = ADAPTERS.get(checkpoint.model_type)
    if target is None:
        raise ValueError(
            f"the checkpoint in {checkpoint.folder} is of model type {checkpoint.model_type!r}; "
            f"there are adapters for {', '.join(sorted(ADAPTERS))}{advice(checkpoint.model_type)}"
        )
    with LOADING:
        module, name = target.split(":")
        adapter: Any = getattr(importlib.import_module(module), name)
        kinds = ("masked generators", "generators that draw their tokens one after the other")
        theirs, how = (SEQUENTIAL_OPTIONS, kinds[1]) if adapter.masked else (MASKED_OPTIONS, kinds[0])
        foreign = [option for option in theirs if option in options]
        if foreign:
            way = "unmasks many at a time" if adapter.masked else "draws its tokens one after the other"
            raise ValueError(
                f"{', '.join(f'generator.{option}' for option in foreign)}: for {how}, and {name_or_path} is a "
                f"{checkpoint.model_type} checkpoint, which {way}; leave the option out"
            )
        chosen, precision = pick_device(str(device)), as_dtype(dtype)
        check_dtype(chosen, precision)
        return adapter.from_checkpoint(checkpoint, device=chosen, dtype=precision, **options)


def advice(model_type: str) -> str:
    """Return, in brackets, what to do with a checkpoint that no adapter reads, or ""."""
    return f" (this is {ADVICE[model_type]})" if model_type in ADVICE else ""


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return a torch dtype from itself or its name. ValueError for what is no floating dtype."""
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}; allowed: float32, bfloat16, float16")
    return resolved
