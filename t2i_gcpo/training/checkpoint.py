"""Checkpoints that are whole or not there: written aside, synced to disk, then renamed.

    RUN/checkpoints/step_000100/    the generator's own files (`--checkpoint` takes this folder), and beside them
        trainer.pt                  optimiser, schedule, random generators, ...: tensors and plain values
        manifest.json               every file's size, and its SHA-256 up to 64 MiB; written last
    RUN/checkpoints/best.json       {"step", "score"} of the best score on the validation prompts

A folder without a manifest that fits is not whole and is never resumed from. Leftovers of a killed process are called `.tmp_*`
and removed by `clean`.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from t2i_gcpo.utils.files import describe, sync, write_atomically
from t2i_gcpo.utils.nested import flatten

FOLDER = "checkpoints"
STATE, MANIFEST, BEST = "trainer.pt", "manifest.json", "best.json"

#: Options that a resumed run may change, by dotted name or group; everything else decides what is trained on what.
MAY_CHANGE = (
    "output_dir", "steps", "checkpoint", "logging", "evaluate", "pictures", "kl_stop", "max_nonfinite", "micro_batch",
    "generator.device", "generator.compile", "generator.max_batch", "generator.gradient_checkpointing", "generator.fold_passes",
    "prompts.validation", "prompts.test", "reward.url", "reward.timeout", "reward.retries",
)  # fmt: skip


def save(run_dir: str | Path, step: int, *, state: Mapping[str, Any], save_model: Callable[[Path], object]) -> Path:
    """Write `checkpoints/step_N` whole or not at all. `save_model(path)` writes the generator's files into the folder `path`.

    OSError, with what to do, where the disk is full; the checkpoints that were there stay as they were.
    """
    folder = Path(run_dir) / FOLDER
    final, aside = folder / f"step_{step:06d}", folder / f".tmp_step_{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    _remove(aside)
    try:
        aside.mkdir()
        save_model(aside)
        torch.save(dict(state), aside / STATE)
        files = {str(path.relative_to(aside)): describe(path) for path in _files(aside)}
        (aside / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
        for path in (*_files(aside), *(p for p in aside.rglob("*") if p.is_dir()), aside):
            sync(path)
        if final.exists():  # written before by a run that was resumed from an earlier step
            _remove(final)
        aside.rename(final)
        sync(folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if _disk_is_full(error, folder):
            raise OSError(
                errno.ENOSPC,
                f"the disk is full: the checkpoint of step {step} was not written. "
                "Free some space, or keep fewer (--checkpoint.keep), and go on with --resume",
                str(folder),
            ) from error
        raise
    return final


def load(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint folder. ValueError where the folder is not whole."""
    problem = flaw(path)
    if problem:
        raise ValueError(f"{path} is no whole checkpoint: {problem}")
    return torch.load(Path(path) / STATE, map_location="cpu", weights_only=True)


def flaw(path: str | Path) -> str | None:
    """What keeps a folder from being a whole checkpoint, or None."""
    path = Path(path)
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is damaged"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if "sha256" in expected and describe(file) != expected:
            return f"{name} is damaged (SHA-256 differs)"
    return None


def newest(run_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a run; warns of newer ones that are damaged."""
    for path in reversed(_steps(run_dir)):
        problem = flaw(path)
        if problem is None:
            return path
        warnings.warn(f"{path} is passed over: {problem}", stacklevel=2)
    return None


def step_of(path: str | Path) -> int:
    """`.../step_000100` -> 100."""
    return int(Path(path).name.removeprefix("step_"))


def record_best(run_dir: str | Path, step: int, score: float) -> bool:
    """Note that the checkpoint of `step` scores `score`; returns whether it is the best so far (a tie goes to the earlier)."""
    known = best(run_dir)
    if math.isnan(score) or (known is not None and score <= known[1]):
        return False
    write_atomically(Path(run_dir) / FOLDER / BEST, json.dumps({"step": step, "score": score}))
    return True


def best(run_dir: str | Path) -> tuple[int, float] | None:
    """(step, score) of the best checkpoint that is still there."""
    file = Path(run_dir) / FOLDER / BEST
    if not file.is_file():
        return None
    row = json.loads(file.read_text(encoding="utf-8"))
    return (row["step"], row["score"]) if (file.parent / f"step_{row['step']:06d}").is_dir() else None


def prune(run_dir: str | Path, keep: int, *, keep_best: bool = True) -> list[Path]:
    """Remove all but the `keep` newest whole checkpoints (0 removes none) and, with `keep_best`, the best; returns the removed."""
    if keep == 0:
        return []
    top = best(run_dir) if keep_best else None
    whole = [path for path in _steps(run_dir) if flaw(path) is None]
    removed = [path for path in whole[:-keep] if top is None or step_of(path) != top[0]]
    for path in removed:
        _remove(path)
    return removed


def clean(run_dir: str | Path) -> None:
    """Remove what a killed process left half-written. Call it once at the start of a run."""
    for path in (Path(run_dir) / FOLDER).glob(".tmp_*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_resumable(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """ValueError, listing them, where options changed that must not. `old`, `new`: nested mappings as in config.yaml."""
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
            + f"\nStart a new run with another --output-dir, or leave these as they were. Free to change: {', '.join(MAY_CHANGE)}"
        )


def _steps(run_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    folders = (path for path in (Path(run_dir) / FOLDER).glob("step_*") if path.name.removeprefix("step_").isdigit())
    return sorted(folders, key=step_of)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _remove(path: Path) -> None:
    """Remove a folder; renamed first, so that a crash half-way leaves a `.tmp_*` and no half checkpoint."""
    if not path.exists():
        return
    doomed = path.with_name(f".tmp_old_{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _disk_is_full(error: BaseException, folder: Path) -> bool:
    """torch and safetensors report a full disk as errors of their own, so the disk itself is asked as well."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, Exception) and shutil.disk_usage(folder).free < 2**20
