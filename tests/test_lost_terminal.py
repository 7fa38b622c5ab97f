"""A training whose terminal is gone, as after a lost ssh connection: it finishes the step, saves and ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from helpers.ranks_command import arguments, checkpoints, command, environment, steps

#: Seconds until a busy machine has started torchrun and made a step, and seconds until all have ended.
START, END = 300.0, 120.0
#: More than are made before the end of a test, with a checkpoint after the last alone.
STEPS = "100000"


def hung_up(line: list[str], folder: Path) -> int:
    """Run a command in a terminal of its own, close that after the first step, and return the exit status."""
    terminal, own = os.openpty()

    def take() -> None:
        fcntl.ioctl(own, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may have been started with nohup

    started = subprocess.Popen(
        line, env=environment(), stdin=own, stdout=own, stderr=own, start_new_session=True,
        preexec_fn=take,
    )  # fmt: skip
    os.close(own)
    os.set_blocking(terminal, False)
    try:
        metrics, deadline = folder / "run" / "metrics.jsonl", time.monotonic() + START
        while not (metrics.is_file() and steps(folder)):
            with contextlib.suppress(BlockingIOError):
                os.read(terminal, 4096)
            assert started.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.close(terminal)
        return started.wait(END)
    finally:
        started.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("count", "status"), [(1, 129), (2, 1)])
def test_the_step_is_finished_and_saved_when_the_terminal_is_gone(count: int, status: int, tmp_path: Path) -> None:
    """torchrun hands the signal on to its processes, and ends with a status of its own."""
    line = command(count, arguments(tmp_path, "--steps", STEPS, "--checkpoint.every", STEPS))
    assert hung_up(line, tmp_path) == status
    assert checkpoints(tmp_path) == [f"step_{steps(tmp_path)[-1]:06d}"]
