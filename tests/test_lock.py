"""A folder's lock: one process at a time, whatever way the others end."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from t2i_gcpo.utils import lock
from t2i_gcpo.utils.lock import holder, locked

#: Takes the lock of a folder, says so and waits to be killed.
OTHER = """
import sys, time
from t2i_gcpo.utils.lock import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


def other(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    return process


def test_another_process_is_refused_and_named_until_it_is_killed(tmp_path: Path) -> None:
    process = other(tmp_path)
    named = rf"process {process.pid} on host {socket.gethostname()} since 20"
    with pytest.raises(ValueError, match=rf"is in use by {named}.*; stop it$"), locked(tmp_path, remedy="stop it"):
        pass
    assert str(holder(tmp_path)).startswith(f"process {process.pid} on host")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / lock.NAME).is_file() and holder(tmp_path) is None, "what it left is stale"
    with locked(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_thread_may_take_its_lock_again_and_another_may_not(tmp_path: Path) -> None:
    refused: list[str] = []

    def take() -> None:
        try:
            with locked(tmp_path):
                pass
        except ValueError as error:
            refused.append(str(error))

    with locked(tmp_path):
        with locked(tmp_path / "." / ".." / tmp_path.name):
            thread = threading.Thread(target=take)
            thread.start()
            thread.join()
        assert len(refused) == 1 and f"process {os.getpid()}" in refused[0] == refused[-1]
        assert holder(tmp_path) is not None
    assert holder(tmp_path) is None
    take()
    assert len(refused) == 1


def test_a_child_of_a_fork_neither_holds_nor_frees_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = os.fork()
        if not child:
            os._exit(0 if holder(tmp_path) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert holder(tmp_path) is not None


def test_a_lock_file_that_is_removed_while_it_is_waited_for_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = lock.fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if not calls:  # the holder ends in this very moment
            (tmp_path / lock.NAME).unlink()
        calls.append(how)
        real(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(calls) == 2 and (tmp_path / lock.NAME).is_file()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_flock_the_note_is_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def no_flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", no_flock)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    here = socket.gethostname()
    for pid, host, free in [(int(ended.stdout), here, True), (os.getppid(), here, False), (1, "elsewhere", False)]:
        note = {"pid": pid, "host": host, "since": "2026-01-01 00:00:00"}
        (tmp_path / lock.NAME).write_text(json.dumps(note))
        assert (holder(tmp_path) is None) == free
        if free:
            with locked(tmp_path):
                assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
        else:
            with pytest.raises(ValueError, match=f"process {pid} on host {host}"), locked(tmp_path):
                pass
            assert json.loads((tmp_path / lock.NAME).read_text()) == note
    (tmp_path / lock.NAME).write_text("{")
    with locked(tmp_path):
        pass
