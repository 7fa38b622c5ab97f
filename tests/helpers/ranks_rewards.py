"""A reward that fails on one process in a step, in the way that the environment says; FAILURE is MODE or nothing."""

from __future__ import annotations

import os
import signal
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
    if _calls != STEP or int(os.environ.get("RANK", "0")) != RANK:
        return red
    if mode == "raise":
        raise RuntimeError("the scorer died")
    if mode == "nan":
        return torch.full_like(red, torch.nan)
    number = {"kill": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}.get(mode)
    if number is not None:
        os.kill(os.getpid(), number)
    return red
