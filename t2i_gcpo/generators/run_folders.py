"""Finds the checkpoint of a run's folder: the best on its validation prompts, else the newest that is whole."""

from __future__ import annotations

import re
from pathlib import Path

from t2i_gcpo.utils import manifest
from t2i_gcpo.utils.json_files import read_json

#: Where a run keeps its checkpoints, and what it notes of the best of them.
FOLDER, BEST = "checkpoints", "best.json"
STEP = re.compile(r"step_([0-9]{1,18})")


def is_run(folder: Path) -> bool:
    """Say whether a folder is a run's: it has checkpoints, and is no model itself."""
    steps = folder / FOLDER
    return steps.is_dir() and any(STEP.fullmatch(path.name) for path in steps.iterdir())


def chosen(folder: Path) -> tuple[Path, str]:
    """Return the checkpoint to load, and which it is in words. ValueError where none is whole."""
    paths = [path for path in (folder / FOLDER).iterdir() if STEP.fullmatch(path.name)]
    whole = sorted((path for path in paths if manifest.damage(path) is None), key=_step)
    if not whole:
        raise ValueError(f"{folder} is the folder of a run, but none of its {len(paths)} checkpoints is whole")
    best = _best(folder)
    for path in whole:
        if _step(path) == best:
            return path, "the best on its validation prompts"
    return whole[-1], "its newest that is whole"


def _best(folder: Path) -> int | None:
    """Return the step of the best checkpoint, where the run noted one."""
    file = folder / FOLDER / BEST
    if not file.is_file():
        return None
    try:
        return int(read_json(file, {"step": int, "score": float})["step"])
    except ValueError:  # damaged: the run's own reader warns of it
        return None


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))
