"""The precision of image decoders: bfloat16 on CPUs that multiply it natively, as nobody trains through a decoder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch

DecodeDtype = Literal["auto", "float32", "bfloat16"]

#: What `torch.cpu.get_capabilities` calls the instructions that multiply bfloat16.
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16")


def check_decode_dtype(name: str) -> None:
    """Raise a ValueError, listing what is allowed, for an unknown name."""
    if name not in get_args(DecodeDtype):
        raise ValueError(f"decode_dtype is {name!r}; allowed: {', '.join(get_args(DecodeDtype))}")


def decoding(name: DecodeDtype, device: torch.device, weights: torch.dtype) -> AbstractContextManager[object]:
    """Run a decoder with `weights` on `device` in the precision `name` inside a `with` block; norms stay in float32.

    "auto" is bfloat16 where a CPU has instructions for it (pixels move by about 3 of 255), else the weights' own
    precision.
    """
    lower = name == "bfloat16" or (name == "auto" and device.type == "cpu" and native_bfloat16())
    return torch.autocast(device.type, torch.bfloat16) if lower and weights == torch.float32 else nullcontext()


def native_bfloat16() -> bool:
    """Say whether this CPU multiplies bfloat16 natively; elsewhere it is emulated, and slower than float32."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # newer releases of torch have it
    return any(capabilities.get(name) for name in NATIVE_BFLOAT16)
