"""Find out, before any work is done, whether its result can be written where it should go."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

#: Several processes that check folders in one new folder at once make and remove it under each other.
ATTEMPTS = 20


def check_folder(folder: Path, *names: str, option: str = "--out") -> None:
    """Check that files of these names can be written into a folder, which need not be there.

    Nothing of the try is left.

    ValueError, naming the option: a part of the path is a file, a name is a folder's, nothing may be written there, or
    the disk is full.
    """
    try:
        for attempt in itertools.count(1):
            try:
                _try_folder(folder, names, option)
                return
            except (FileExistsError, FileNotFoundError):  # another process made or removed a folder at that moment
                if attempt == ATTEMPTS:
                    raise
    except OSError as error:
        part = next((level for level in (folder, *folder.parents) if os.path.isfile(level)), None)
        reason = f"{part} is a file, not a folder" if part is not None else error.strerror or str(error)
        raise ValueError(f"{option}: nothing can be written to the folder {folder}: {reason}") from error


def _try_folder(folder: Path, names: Sequence[str], option: str) -> None:
    """Write something into the folder, and remove all of it again."""
    made: list[Path] = []
    try:
        for level in reversed([level for level in (folder, *folder.parents) if not level.exists()]):
            level.mkdir()
            made.append(level)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
        for name in names:
            _check_name(folder / name, option)
    finally:
        for level in reversed(made):
            with contextlib.suppress(OSError):  # somebody else has put something there
                level.rmdir()


def check_file(file: Path, option: str = "--out") -> None:
    """Check that a file can be written, in a folder that need not be there; nothing of the try is left.

    ValueError, naming the option: the path is a folder's, or `check_folder` finds something.
    """
    if file.is_dir():
        raise ValueError(f"{option} {file} is a folder; name a file")
    if file.exists() and not file.is_file():  # /dev/null, /dev/stdout, a named pipe
        _check_name(file, option)
        return
    check_folder(file.parent, file.name, option=option)


def _check_name(path: Path, option: str) -> None:
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder, and a file of this name is to be written there; remove it")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{option}: {path} is there already and may not be written to; name another place")
