"""A run that goes on where its folder says, to a step, on as many processes as torchrun starts.

Argv: the folder, the step to stop after, the case.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from helpers.ranks_cases import make
from helpers.training import weights
from t2i_gcpo.training.checkpoint import FOLDER
from t2i_gcpo.training.ranks import torchrun
from t2i_gcpo.training.trainer import StepRecord, Trainer
from t2i_gcpo.utils.processes import ALONE, Processes


def go_on(folder: Path, until: int, case: str, processes: Processes = ALONE) -> None:
    """Train to step `until`, save, and write the weights beside the run."""
    run = make(case, folder, processes)

    def stop(run: Trainer, record: StepRecord) -> None:
        if record.step == until:
            run.stop("it is time")

    run.callbacks = [stop]
    if (folder / "run" / FOLDER).is_dir():
        run.resume()
    run.train()
    if processes.is_main:
        torch.save(weights(run.generator), folder / f"weights_{until}.pt")  # type: ignore[arg-type]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torchrun(timeout=600) as ranks:
        go_on(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], ranks)
