"""Going on by itself where torchrun started all processes again (`--max-restarts`) after one of them failed.

A run folder notes which torchrun began it. One that starts its processes again goes on with the run; the folder of any
other run is refused as ever.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.processes import Processes

#: File in the run folder.
NOTE = ".torchrun"


def note(folder: Path) -> None:
    """Note in a run folder which torchrun the run is of; without torchrun there is nothing to note."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        write_atomically(folder / NOTE, _launch())


def goes_on(folder: Path, processes: Processes) -> bool:
    """Return whether this torchrun began the run in the folder, and has started its processes again since."""
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    noted = folder / NOTE
    own = processes.is_main and again and noted.is_file() and noted.read_text(encoding="utf-8") == _launch()
    return processes.from_main(own)


def _launch() -> str:
    """Name the torchrun that started this process: its own process lives as long as its restarts go on."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID')} {socket.gethostname()} {os.getppid()}"
