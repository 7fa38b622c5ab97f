"""One training of a study, as a process that does not outlive the study: `python -m t2i_gcpo.study.trial train ...`.

Its standard input is a pipe that only the study holds, and that ends when the study does, after `kill -9` too. The
training then gets a SIGTERM: it finishes its step, saves and stops.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

from t2i_gcpo import cli


def main(argv: Sequence[str]) -> int:
    """Run a command of `t2i-gcpo` until it or the study ends. Returns the command's exit status."""
    threading.Thread(target=_end_with_the_study, name="study", daemon=True).start()
    return cli.main(argv)


def _end_with_the_study() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
