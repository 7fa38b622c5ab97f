"""Writes a checkpoint, which all processes begin, each writes its part of, and all make whole.

`write` exchanges nothing, so a thread can do it while training goes on; `finish` is for a step's end.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from t2i_gcpo.utils.files import ASIDE, NO_ROOM, describe, no_room, sync
from t2i_gcpo.utils.manifest import MANIFEST
from t2i_gcpo.utils.processes import ALONE, Processes

FOLDER, STATE = "checkpoints", "trainer.pt"
#: What several processes have in shards, in a checkpoint's folder.
SHARDS = "shards"


class Shards(Protocol):
    """Writes the part that one process has of a sharded state."""

    def write(self) -> list[Path]:
        """Write this process's files, force them to disk and return them. Nothing is exchanged."""

    def conclude(self) -> list[Path]:
        """Write on the main process what describes the files of all, and return that. Every process calls it."""


class CheckpointWrite:
    """Writes `checkpoints/step_N` whole or not at all."""

    def __init__(
        self,
        run_dir: str | Path,
        step: int,
        *,
        state: Mapping[str, Any],
        save_model: Callable[[Path], object],
        plan_shards: Callable[[Path], Shards | None] = lambda folder: None,
        processes: Processes = ALONE,
    ) -> None:
        """Begin it. Every process calls it, and `finish` after it; `write` comes between, from any thread.

        `save_model(path)` writes the generator's files into the folder `path`, on the main process;
        `plan_shards(path)` returns what each process has of its own to write into it.
        """
        self.step, self.processes = step, processes
        self.folder = Path(run_dir) / FOLDER
        self.path, self._aside = self.folder / f"step_{step:06d}", self.folder / f"{ASIDE}step_{step:06d}"
        self._state, self._save_model = state, save_model
        self._files: dict[str, Any] = {}  # of this process, as the manifest describes them
        self._error: Exception | None = None
        self._no_room: int | None = None
        try:
            if processes.is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                remove(self._aside)
                self._aside.mkdir()
            processes.wait()
            self._shards = plan_shards(self._aside)
        except BaseException as error:
            self._fail(error, no_room_in(self.folder, error))

    def write(self) -> None:
        """Write this process's files. An error waits for `finish`, which all processes reach."""
        try:
            written = [] if self._shards is None else self._shards.write()
            if self.processes.is_main:
                self._save_model(self._aside)
                torch.save(dict(self._state), self._aside / STATE)
                written += [path for path in files(self._aside) if path.relative_to(self._aside).parts[0] != SHARDS]
            self._describe(written)
        except Exception as error:
            self._error = error
            self._no_room = no_room_in(self.folder, error)  # asked before the half-written folder gives its room back
        except BaseException:  # a second Ctrl-C, where no thread writes
            shutil.rmtree(self._aside, ignore_errors=True)
            raise
        finally:
            del self._state, self._save_model  # which may be copies

    def _describe(self, written: list[Path]) -> None:
        for path in written:
            sync(path)
            self._files[str(path.relative_to(self._aside))] = describe(path)

    def finish(self) -> Path:
        """Make the checkpoint whole, and return its folder. Every process calls it when it has written its files.

        OSError, with what to do, where the disk is full; the checkpoints that were there stay as they were.
        """
        try:
            self.processes.wait()  # no process writes any more
            if self._error is not None:
                raise self._error
            if self._shards is not None:
                self._describe(self._shards.conclude())
            parts = self.processes.gather(self._files)
            if self.processes.is_main:
                self._make_whole({name: about for part in parts for name, about in part.items()})
            self.processes.wait()
        except BaseException as error:
            self._fail(error, self._no_room or no_room_in(self.folder, error))
        return self.path

    def _make_whole(self, described: Mapping[str, Any]) -> None:
        content = {"step": self.step, "files": {name: described[name] for name in sorted(described, key=Path)}}
        (self._aside / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")
        folders = [path for path in self._aside.rglob("*") if path.is_dir()]
        for path in (self._aside / MANIFEST, *folders, self._aside):
            sync(path)
        remove(self.path)  # written before by a run that was resumed from an earlier step
        self._aside.rename(self.path)
        sync(self.folder)

    def _fail(self, error: BaseException, number: int | None) -> NoReturn:
        """Remove what was written, and raise the error; of a disk without room one that says what to do."""
        shutil.rmtree(self._aside, ignore_errors=True)
        if number is None:
            raise error
        raise OSError(
            number,
            f"{NO_ROOM[number]}: the checkpoint of step {self.step} was not written. "
            "Free some space, or keep fewer (--checkpoint.keep), and go on with --resume",
            str(self.folder),
        ) from error


def files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def remove(path: Path) -> None:
    """Remove a folder; renamed first, so that a crash half-way leaves a `.tmp_*` and no half checkpoint."""
    if not path.exists():
        return
    doomed = path.with_name(f".tmp_old_{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def no_room_in(folder: Path, error: BaseException) -> int | None:
    """Return the number of an error that says there is no room. Where it does not say, the disk itself is asked."""
    number = no_room(error)
    if number is None and isinstance(error, Exception) and shutil.disk_usage(folder).free < 2**20:
        number = errno.ENOSPC
    return number
