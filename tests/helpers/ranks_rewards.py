"""A reward that fails on one process in a step, in the way that the environment says; FAILURE is MODE or nothing.

torchrun's restarts are counted in TORCHELASTIC_RESTART_COUNT: the reward fails the first time alone.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from torch import Tensor

#: The step and the process that fail.
STEP, RANK = 3, 1
_calls = 0


def score(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    global _calls
    _calls += 1
    red = images[:, 0].float().mean(dim=(1, 2)) / 255
    mode = os.environ.get("FAILURE", "")
    number = {name: int(os.environ.get(name, "0")) for name in ("RANK", "TORCHELASTIC_RESTART_COUNT")}
    if _calls != STEP or number != {"RANK": RANK, "TORCHELASTIC_RESTART_COUNT": 0}:
        return red
    if mode == "raise":
        raise RuntimeError("the scorer died")
    if mode == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    if mode == "nan":
        return torch.full_like(red, torch.nan)
    if mode == "hang":
        time.sleep(3600)
    signals = {"kill": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
    if mode in signals:
        os.kill(os.getpid(), signals[mode])
    return red
