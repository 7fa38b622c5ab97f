"""A lock on a folder: of all processes only one at a time writes into it.

The lock is a `flock` on FOLDER/.lock, which the system takes back when a process ends in whatever way, `kill -9`
included. The file says who holds it: {"pid", "host", "since"}. Where a file system has no `flock`, that note is the
lock: one of a process of this host that is no more is stale, one of another host has to be removed by hand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from t2i_gcpo.utils.json_files import read_json

NAME = ".lock"
#: What `flock` answers where somebody else holds the lock, and where the file system has none.
_HELD = {errno.EWOULDBLOCK, errno.EACCES}
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class _Held:
    """Describes a lock that this process holds: its open file, the thread that took it, and how often."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.thread, self.times = descriptor, threading.get_ident(), 1


#: Folder -> its lock, of this process.
_held: dict[Path, _Held] = {}
_guard = threading.RLock()


@contextlib.contextmanager
def locked(folder: str | Path, *, remedy: str = "wait for its end, or stop it") -> Iterator[None]:
    """Hold the lock of an existing folder. The thread that holds it may take it again.

    ValueError, naming the process, where another one holds it (or another thread of this one); `remedy` says what to do
    then.
    """
    path = Path(folder).resolve()
    _take(path, Path(folder), remedy)
    try:
        yield
    finally:
        _give_back(path)


def holder(folder: str | Path) -> str | None:
    """Return who holds the lock of a folder, as "process 12 on host a since ...", or None where it is free."""
    path = Path(folder).resolve()
    with _guard:
        if path in _held:
            return _described(path / NAME)
    try:
        descriptor = os.open(path / NAME, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None  # nobody holds it: what lies there is stale
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None if _is_stale(path / NAME) else _described(path / NAME)
        return _described(path / NAME)
    finally:
        os.close(descriptor)


def _take(path: Path, shown: Path, remedy: str) -> None:
    with _guard:
        own = _held.get(path)
        if own is not None and own.thread == threading.get_ident():
            own.times += 1
            return
        descriptor = None if own is not None else _open(path / NAME)
        if descriptor is None:
            raise ValueError(f"{shown} is in use by {_described(path / NAME)}; {remedy}")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(note).encode())
        _held[path] = _Held(descriptor)


def _open(file: Path) -> int | None:
    """Return the locked file, or None where another process holds the lock."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD or (error.errno in _NO_FLOCK and not _is_stale(file)):
                os.close(descriptor)
                return None
            if error.errno not in _NO_FLOCK:
                os.close(descriptor)
                raise
        if _is_still(file, descriptor):
            return descriptor
        os.close(descriptor)  # the holder removed the file between our opening and locking it


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _give_back(path: Path) -> None:
    with _guard:
        own = _held[path]
        own.times -= 1
        if own.times:
            return
        del _held[path]
        with contextlib.suppress(OSError):  # the folder may be gone
            (path / NAME).unlink()
        os.close(own.descriptor)


def _is_stale(file: Path) -> bool:
    """Return whether the note is empty, or of a process of this host that is no more."""
    try:
        note = read_json(file, {"pid": int, "host": str})
    except (ValueError, OSError):
        return True
    if note["host"] != socket.gethostname():
        return False
    try:
        os.kill(note["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is there, and somebody else's
        return False
    return note["pid"] == os.getpid()


def _described(file: Path) -> str:
    try:
        note = read_json(file, {"pid": int, "host": str, "since": str})
    except (ValueError, OSError):  # between locking and writing the note
        return "another process"
    return f"process {note['pid']} on host {note['host']} since {note['since']}"


def _forget() -> None:
    """Forget the locks in a forked child, which holds none.

    Closing its copy of the file leaves the parent's lock as it is.
    """
    for own in _held.values():
        with contextlib.suppress(OSError):
            os.close(own.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
