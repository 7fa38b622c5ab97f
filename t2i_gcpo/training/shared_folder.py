"""Looks, before a run begins, whether all processes see the main one's run folder.

Each writes its own part of a checkpoint. A part that lies on another machine's disk is not missed before the run is to
go on.
"""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from pathlib import Path

from t2i_gcpo.utils.files import ASIDE, write_atomically
from t2i_gcpo.utils.processes import Processes

#: Seconds in which a file must be seen that another machine has written.
PATIENCE = 15.0
NOTE = f"{ASIDE}shared"


def check_shared(folder: Path, processes: Processes) -> None:
    """Raise ValueError, naming the processes, where one does not see the main one's folder. Every process calls it.

    folder: exists on the main process.
    """
    if processes.count == 1:
        return
    token = processes.from_main(uuid.uuid4().hex)
    try:
        if processes.is_main:
            write_atomically(folder / NOTE, token)
        processes.wait()
        seen = processes.gather(None if _sees(folder / NOTE, token) else f"{socket.gethostname()}:{folder.absolute()}")
    finally:
        if processes.is_main:
            (folder / NOTE).unlink(missing_ok=True)
    blind = {rank: place for rank, place in enumerate(seen) if place is not None}
    if blind:
        places = ", ".join(f"rank {rank} ({place})" for rank, place in blind.items())
        raise ValueError(
            f"the run folder of rank 0 is not seen by {places}; name a folder on a disk that all machines share, by "
            "its whole path (--output-dir)"
        )


def _sees(file: Path, token: str) -> bool:
    """Return whether the file has this content, now or soon: a network's file system takes its time."""
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if file.read_text(encoding="utf-8") == token:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
