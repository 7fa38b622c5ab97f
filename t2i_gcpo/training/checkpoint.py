"""Checkpoints that are whole or not there: written aside, synced to disk, then renamed.

    RUN/checkpoints/step_000100/    the generator's own files (`--checkpoint` takes this folder), and beside them
        trainer.pt                  optimiser, schedule, random generators, ...: tensors and plain values
        shards/                     of several processes: weights and optimiser, by name (shard_write.py)
        manifest.json               every file's size, and its SHA-256 up to 64 MiB; written last
    RUN/checkpoints/best.json       {"step", "score"} of the best score on the validation prompts

A folder without a manifest that fits is not whole and is never resumed from. Leftovers of a killed process are called
`.tmp_*` and removed by `clean`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rewards.models.device import short
from t2i_gcpo.training.options import CheckpointConfig
from t2i_gcpo.training.writing import FOLDER, SHARDS, STATE, CheckpointWrite, remove
from t2i_gcpo.utils import manifest
from t2i_gcpo.utils.files import ASIDE, write_atomically
from t2i_gcpo.utils.json_files import read_json
from t2i_gcpo.utils.nested import flatten

MANIFEST, BEST = manifest.MANIFEST, "best.json"

#: Options that a resumed run may change, by dotted name or group; everything else decides what is trained on what.
MAY_CHANGE = (
    "output_dir",
    "steps",
    "checkpoint",
    "logging",
    "evaluate",
    "pictures",
    "kl_stop",
    "kl_every",
    "max_nonfinite",
    "micro_batch",
    "reduce_gradients",
    "ranks",
    "generator.device",
    "generator.compile",
    "generator.merge_adapters",
    "generator.max_batch",
    "generator.gradient_checkpointing",
    "generator.head_chunk",
    "generator.fold_passes",
    "prompts.validation",
    "prompts.test",
    "reward.url",
    "reward.token_file",
    "reward.timeout",
    "reward.retries",
)


def save(run_dir: str | Path, step: int, *, state: Mapping[str, Any], save_model: Callable[[Path], object]) -> Path:
    """Write `checkpoints/step_N` of a run of one process, whole or not at all; see `CheckpointWrite`."""
    write = CheckpointWrite(run_dir, step, state=state, save_model=save_model)
    write.write()
    return write.finish()


def load(path: str | Path) -> dict[str, Any]:
    """Return the state in a checkpoint folder.

    ValueError where the folder is not whole, or its state cannot be read.
    """
    problem = damage(path)
    if problem:
        raise ValueError(f"{path} is no whole checkpoint: {problem}")
    file = Path(path) / STATE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no error of its own for a file that it cannot read
        raise ValueError(f"{path} is no whole checkpoint: {STATE} cannot be read ({short(error)})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is no whole checkpoint: {STATE} holds a {type(state).__name__}, no state of a run")
    shards = Path(path) / SHARDS
    if shards.is_dir() and isinstance(state.get("updater"), dict):
        state["updater"]["shards"] = str(shards)
    return state


def damage(path: str | Path) -> str | None:
    """Return what keeps a folder from being a whole checkpoint, as a sentence, or None."""
    return manifest.damage(path, needed=(STATE,))


def newest(run_dir: str | Path) -> Path | None:
    """Return the newest whole checkpoint of a run, or None; warn of newer ones that are damaged."""
    return next((path for path, _ in _passable(run_dir, lambda path: None)), None)


def newest_state(
    run_dir: str | Path, problem: Callable[[dict[str, Any]], str | None]
) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole checkpoint whose state can be used, with that state, or None.

    Warn of newer ones that cannot.

    `problem(state)` says, as a sentence, why a state cannot be used, or returns None.
    """

    def read(path: Path) -> dict[str, Any]:
        state = load(path)
        reason = problem(state)
        if reason:
            raise ValueError(reason)
        return state

    return next(_passable(run_dir, read), None)


def _passable(run_dir: str | Path, read: Callable[[Path], Any]) -> Iterator[tuple[Path, Any]]:
    """Yield whole checkpoints, newest first, with what `read` makes of them.

    Warn of those that are damaged or that it refuses.
    """
    for path in reversed(_steps(run_dir)):
        reason = damage(path)
        if reason is None:
            step = read_json(path / MANIFEST)["step"]
            reason = None if step == step_of(path) else f"its {MANIFEST} says that it is of step {step}"
        content = None
        if reason is None:
            try:
                content = read(path)
            except ValueError as error:
                reason = str(error).removeprefix(f"{path} is no whole checkpoint: ")
        if reason is None:
            yield path, content
        else:
            warnings.warn(f"{path} is passed over: {reason}", stacklevel=4)


def step_of(path: str | Path) -> int:
    """Return the step of a checkpoint's folder: 100 of `.../step_000100`."""
    return int(Path(path).name.removeprefix("step_"))


def record_best(run_dir: str | Path, step: int, score: float) -> bool:
    """Note that the checkpoint of `step` scores `score`.

    Returns whether it is the best so far (a tie goes to the earlier).
    """
    known = best(run_dir)
    if not math.isfinite(score) or (known is not None and score <= known[1]):
        return False
    write_atomically(Path(run_dir) / FOLDER / BEST, json.dumps({"step": step, "score": score}))
    return True


def best(run_dir: str | Path) -> tuple[int, float] | None:
    """Return (step, score) of the best checkpoint that is still there, or None.

    Warn where the note of it is damaged.
    """
    file = Path(run_dir) / FOLDER / BEST
    if not file.exists():
        return None
    try:
        row = read_json(file, {"step": int, "score": float})
    except (ValueError, OSError) as error:
        warnings.warn(f"the best checkpoint of {run_dir} is not known: {error}", stacklevel=2)
        return None
    return (row["step"], row["score"]) if (file.parent / f"step_{row['step']:06d}").is_dir() else None


def prune(
    run_dir: str | Path, keep: int, *, keep_best: bool = CheckpointConfig.keep_best, step: int | None = None
) -> list[Path]:
    """Remove all but the `keep` newest whole checkpoints (0 removes none) and, with `keep_best`, the best.

    Return the removed.

    Those after `step` (None: none) are left alone and not counted: a resumed run passed them over.
    """
    if keep == 0:
        return []
    top = best(run_dir) if keep_best else None
    whole = [path for path in _steps(run_dir) if (step is None or step_of(path) <= step) and damage(path) is None]
    removed = [path for path in whole[:-keep] if top is None or step_of(path) != top[0]]
    for path in removed:
        remove(path)
    return removed


def clean(run_dir: str | Path) -> None:
    """Remove what a killed process left half-written. Call it once at the start of a run, with the run's lock held."""
    for folder in (Path(run_dir), Path(run_dir) / FOLDER):
        for path in folder.glob(f"{ASIDE}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_resumable(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ValueError, listing them, where options changed that must not.

    `old`, `new`: nested mappings as in config.yaml.
    """
    before, after = flatten(old), flatten(new)
    changed = [
        f"  {name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not any(f"{name}.".startswith(f"{free}.") for free in MAY_CHANGE)
    ]
    if changed:
        raise ValueError(
            "a resumed run cannot change\n"
            + "\n".join(changed)
            + "\nStart a new run with another --output-dir, or leave these as they were. Free to change: "
            f"{', '.join(MAY_CHANGE)}"
        )


def _steps(run_dir: str | Path) -> list[Path]:
    """Return what may be the checkpoints of a run, oldest first."""
    paths = (path for path in (Path(run_dir) / FOLDER).glob("step_*") if re.fullmatch("step_[0-9]{1,18}", path.name))
    return sorted(paths, key=step_of)
