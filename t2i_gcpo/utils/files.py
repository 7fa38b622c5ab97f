"""Files that are replaced as a whole, forced to disk, and identified by their content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

#: Of larger files not all is hashed: hashing 13 GB at every start would take longer than it is worth.
HASHED_BYTES = 64 * 2**20
#: Parts that `identify` hashes of a larger file; together they are `HASHED_BYTES`.
PARTS = 64
#: How the name of a file begins that is being written: a process that is killed leaves it behind.
ASIDE = ".tmp_"

#: What a file system answers that cannot force something to disk; CIFS and some FUSE file systems cannot for folders.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
_CANNOT_OPEN_FOLDER = {errno.EACCES, errno.EPERM, errno.EISDIR}
#: Number of an error -> what it says: there is no room, or the size of a file has a limit (`ulimit -f`, 4 GiB on FAT).
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file is larger than the file system or `ulimit -f` allows",
}
#: How libraries word it whose errors are no OSError: safetensors gives the number, torch's writer that it wrote less
#: than it wanted.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_SHORT_WRITE = re.compile(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed writing")


def describe(path: Path) -> dict[str, Any]:
    """Return what identifies a file's content: its bytes, and up to `HASHED_BYTES` of them its SHA-256."""
    size = path.stat().st_size
    if size > HASHED_BYTES:
        return {"bytes": size}
    return {"bytes": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def identify(path: Path) -> dict[str, Any]:
    """Return what tells the weights in a file from those of a training on them, which have the same size.

    That is what `describe` returns; of a larger file it is also the SHA-256 of `PARTS` parts of it, evenly spread from
    its first to its last byte.
    """
    about = describe(path)
    if "sha256" in about:
        return about
    part, last = HASHED_BYTES // PARTS, about["bytes"] - HASHED_BYTES // PARTS
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(PARTS):
            file.seek(number * last // (PARTS - 1))
            digest.update(file.read(part))
    return {**about, "sha256_of_parts": digest.hexdigest()}


def write_atomically(path: str | Path, content: str | bytes | Callable[[IO[bytes]], object]) -> Path:
    """Replace a file as a whole and return its path.

    A reader, a crash or a full disk leaves the old content or the new.

    `content` is a text (written as UTF-8), bytes, or a function that writes into the open file it is given, as in
    `write_atomically(path, lambda file: torch.save(state, file))`. A link is followed; a device or a pipe is written to
    directly. Raises an OSError that names `path`, also where a library reports a full disk as an error of its own.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    with disk_errors(path):
        if _is_stream(path):
            with path.open("wb") as file:
                _write(file, content)
            return path
        aside = target.with_name(f"{ASIDE}{os.getpid()}_{target.name}")
        try:
            with aside.open("wb") as file:
                _write(file, content)
            sync(aside)
            aside.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
        sync(target.parent)
    return path


def _is_stream(path: Path) -> bool:
    """Return whether there is nothing to replace: a device, a pipe, or what a process has open already."""
    opened = str(path).startswith(("/dev/std", "/dev/fd/", "/proc/"))
    return path.exists() and (opened or not (path.is_file() or path.is_dir()))


def _write(file: IO[bytes], content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk. Do nothing where the file system cannot do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if path.is_dir() and error.errno in _CANNOT_OPEN_FOLDER | _CANNOT_SYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def no_room(error: BaseException) -> int | None:
    """Return the number (ENOSPC, EDQUOT or EFBIG) of an error that says there is no room for a file, else None.

    Libraries have errors of their own for it, so their text and the errors that led to them are looked at as well.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    short = False
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError):
            if cause.errno in NO_ROOM:
                return cause.errno
        elif isinstance(cause, Exception):
            short = short or bool(_SHORT_WRITE.search(str(cause)))
            number = _OS_ERROR.search(str(cause))
            if number and int(number[1]) in NO_ROOM:
                return int(number[1])
        cause = cause.__cause__ or cause.__context__
    return errno.ENOSPC if short else None


@contextlib.contextmanager
def disk_errors(path: Path, advice: str = "free some space, or name another place") -> Iterator[None]:
    """Inside, an error of any type that says there is no room becomes an OSError that names `path` and what to do."""
    try:
        yield
    except Exception as error:
        number = no_room(error)
        if number is None:
            raise
        raise OSError(number, f"{NO_ROOM[number]}; {advice}", str(path)) from error
