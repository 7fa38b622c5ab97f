"""A run that goes on where its folder says, on as many processes as torchrun starts, until it is killed or done.

Argv: the folder, the step that is the last whole one (one more is taken, and a process is killed in it with kill -9;
the last step of the run ends it in peace), the case.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from helpers.ranks_cases import make
from helpers.training import weights
from t2i_gcpo.training.checkpoint import FOLDER
from t2i_gcpo.training.options import CheckpointPlan
from t2i_gcpo.training.ranks import torchrun
from t2i_gcpo.training.trainer import StepRecord, Trainer
from t2i_gcpo.utils.processes import ALONE, Processes


def go_on(folder: Path, until: int, case: str, processes: Processes = ALONE) -> None:
    """Train, with a checkpoint a step, and write the weights after each step beside the run."""
    run = make(case, folder, processes, checkpoint=CheckpointPlan(every=1))

    def note(run: Trainer, record: StepRecord) -> None:
        if processes.is_main:
            torch.save(weights(run.generator), folder / f"weights_{record.step}.pt")  # type: ignore[arg-type]
        if record.step > until and processes.rank == processes.count - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    run.callbacks = [note]
    if (folder / "run" / FOLDER).is_dir():
        run.resume()
    run.train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torchrun(timeout=600) as ranks:
        go_on(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], ranks)
