"""Puts a scorer's model on its device and in its number type, and words the errors of both."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

#: The number types that a model may run in, as torch spells them.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

#: Characters of a library's error that an error message repeats at most.
_SHOWN = 300

Model = TypeVar("Model", bound=nn.Module)


def check_dtype(dtype: str, name: str) -> None:
    """Raise ValueError unless `dtype` is one of DTYPES."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} of reward {name!r} is unknown; allowed: {', '.join(DTYPES)}")


def place(model: Model, name: str, device: str, dtype: str) -> Model:
    """Put `model` on its device, frozen, in evaluation mode.

    ValueError for a device that is not there, or too small.
    """
    check_dtype(dtype, name)
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("tensors on it have no values")
        return model.to(device=device, dtype=DTYPES[dtype]).eval().requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"reward {name!r}: its model does not fit on {device}; take another device") from error
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"reward {name!r} cannot run on device {device!r}: {short(error)}") from error


#: Says what is wrong with a file of torch's that holds objects.
MORE_THAN_TENSORS = "it is damaged, or holds more than tensors and plain values, and nothing else is loaded"


def short(error: Exception) -> str:
    """Write a library's error in one line, cut where it goes on and on.

    torch says of a file with other objects how to load it all the same, running what it holds; that is left out.
    """
    if "weights_only" in str(error):
        return MORE_THAN_TENSORS
    text = " ".join(f"{error}".split()) or type(error).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
