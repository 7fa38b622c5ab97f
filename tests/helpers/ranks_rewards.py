"""A reward that fails on one process, in the way that the environment says: FAILURE is MODE or nothing.

It fails in the call FAILURE_CALL, which without evaluations is that of step STEP.

torchrun's restarts are counted in TORCHELASTIC_RESTART_COUNT: the reward fails the first time alone.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: The step and the process that fail.
STEP, RANK = 3, 1
#: Seconds in which the other process has come to where it waits for this one.
BEHIND = 5.0
#: Exchange in which memory runs out, by the failure's name: of the gradients, of the new weights.
EXCHANGES = {"reduce": "reduce_scatter", "publish": "all_gather"}
_calls = 0


def out_of_memory(*given: object, **options: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def score(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    global _calls
    _calls += 1
    red = images[:, 0].float().mean(dim=(1, 2)) / 255
    mode = os.environ.get("FAILURE", "")
    number = {name: int(os.environ.get(name, "0")) for name in ("RANK", "TORCHELASTIC_RESTART_COUNT")}
    if _calls != int(os.environ.get("FAILURE_CALL", STEP)) or number != {"RANK": RANK, "TORCHELASTIC_RESTART_COUNT": 0}:
        return red
    if mode == "raise":
        raise RuntimeError("the scorer died")
    if mode == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    if mode in EXCHANGES:
        setattr(dist, EXCHANGES[mode], out_of_memory)
    if mode == "step":
        torch.optim.AdamW.step = out_of_memory  # type: ignore[method-assign]
    if mode == "nan":
        return torch.full_like(red, torch.nan)
    if mode == "hang":
        time.sleep(3600)
    signals = {"kill": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP, "Ctrl-C": signal.SIGINT}
    if mode in signals:
        os.kill(os.getpid(), signals[mode])
    if mode == "all":
        time.sleep(BEHIND)
        os.kill(os.getppid(), signal.SIGTERM)  # torchrun's, which hands it on to all
        time.sleep(3600)
    return red
