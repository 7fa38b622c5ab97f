"""The device that a name stands for, and what it has and lacks."""

from __future__ import annotations

import re

import torch

_OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: torch's own, or one of the CPU's allocator or of NCCL."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))
    )


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the first GPU there is, else the CPU.

    ValueError for a device that this machine or torch does not have.
    """
    if name == "auto":
        first = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(first)
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("tensors on it have no values")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"device is {name!r}, which cannot be used here ({reason}); use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    return device


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a GPU of CUDA; None for another device, whose memory is not only its own."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free


def check_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError where the weights' dtype is bfloat16 and the GPU does not compute in it."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    if not native:
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16 (cards from compute capability 8.0 on "
            "do); set the dtype to float32, for a run --generator.dtype float32"
        )
