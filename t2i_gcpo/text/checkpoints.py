"""Find the checkpoint-N folder of TRL's trainer that a run goes on from: the newest whole one."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path

from t2i_gcpo.generators.integrity import read_object, tensor_sizes

_NAME = re.compile(r"checkpoint-([0-9]{1,18})")
#: transformers writes it after the weights and the optimiser.
_STATE = "trainer_state.json"


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, or None. Warn of newer ones that are damaged."""
    for path in sorted(filter(_is_named, folder.glob("checkpoint-*")), key=step_of, reverse=True):
        problem = _problem(path)
        if problem is None:
            return path
        warnings.warn(f"{path} is passed over: {problem}", stacklevel=2)
    return None


def step_of(path: Path) -> int:
    """Return the step of a checkpoint: 100 of `.../checkpoint-100`."""
    return int(path.name.rpartition("-")[2])


def _is_named(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None and path.is_dir()


def _problem(path: Path) -> str | None:
    """Return what keeps a folder from being a whole checkpoint, or None: a killed process leaves half of one."""
    try:
        read_object(path / _STATE)
        weights = sorted(path.glob("*.safetensors"))
        if not weights:
            return "it has no weights (*.safetensors)"
        for file in weights:
            tensor_sizes(file)
        damaged = [file.name for file in sorted(path.glob("*.pt")) if not zipfile.is_zipfile(file)]
    except ValueError as error:
        return str(error)
    return f"{damaged[0]} is damaged" if damaged else None
