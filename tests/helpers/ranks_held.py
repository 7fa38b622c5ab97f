"""A run whose second checkpoint is held up, or fails, in the last process's thread.

Argv: the folder, and what happens: "kill" (kill -9 of that process two steps later), "fail" (its disk is full from then
on), "go_on" (resume, and nothing happens), "at_once" (checkpoints are not written by threads).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from pathlib import Path

import torch

from helpers.ranks_cases import make
from t2i_gcpo.training.options import CheckpointPlan
from t2i_gcpo.training.ranks import torchrun
from t2i_gcpo.training.trainer import StepRecord, Trainer
from t2i_gcpo.training.writing import CheckpointWrite
from t2i_gcpo.utils.processes import Processes

HELD = 2


def disturb(how: str) -> None:
    """Let the thread that writes checkpoint 2, and what follows it, wait for ever or fail in its middle."""
    write = CheckpointWrite.write

    def disturbed(self: CheckpointWrite) -> None:
        if self.step < HELD:
            write(self)
            return
        (self._aside / "half").write_bytes(bytes(9))
        if how == "kill":
            threading.Event().wait()
        self._error, self._no_room = OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC

    CheckpointWrite.write = disturbed  # type: ignore[method-assign]


def main(folder: Path, how: str, processes: Processes) -> None:
    last = processes.rank == processes.count - 1
    if last and how in ("kill", "fail"):
        disturb(how)

    def note(run: Trainer, record: StepRecord) -> None:
        # Step 3 would finish the checkpoint of step 2 before it begins its own.
        if how == "kill" and last and record.step == HELD + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    plan = CheckpointPlan(every=1, keep=0, asynchronous=how != "at_once")
    run = make("gcpo", folder, processes, checkpoint=plan, callbacks=[note])
    if how == "go_on":
        step = run.resume()
        if processes.is_main:
            print(f"resumed at step {step}")
    run.train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        with torchrun(timeout=600, quiet=True) as ranks:
            main(Path(sys.argv[1]), sys.argv[2], ranks)
    except OSError as error:
        sys.exit(f"error: {error}")
