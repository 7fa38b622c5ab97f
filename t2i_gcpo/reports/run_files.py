"""Tells which files of a run folder are its own. A folder may come from somebody else, and a page embeds what it shows.

A link, an absolute path or `..` could put any file of this machine into a page that is passed on: only regular files
that lie inside the run once all links are followed are read, and only real PNGs are shown.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from PIL import Image

#: Bytes of a picture that is embedded in a page, at most.
MOST_BYTES = 64 * 2**20
#: How the pictures and pages of a step are called: step_N, or step_N_ and more.
_STEP = re.compile(r"step_([0-9]{1,12})(_.*)?", re.ASCII)


def own_file(run: Path, name: str | Path) -> Path | None:
    """Return the path of RUN/`name` where that is a regular file inside the run, and None where it is not."""
    path = run / name
    try:
        return path if path.resolve(strict=True).is_relative_to(run.resolve()) and path.is_file() else None
    except (
        OSError,
        ValueError,
        RuntimeError,
    ):  # nothing there, a name that no file can have, links that lead to themselves
        return None


def own_png(run: Path, name: str | Path) -> Path | None:
    """Return the path of RUN/`name` where that is a whole PNG inside the run, and None where it is not."""
    path = own_file(run, name)
    try:
        if path is None or path.stat().st_size > MOST_BYTES:
            return None
        with Image.open(path, formats=("PNG",)) as picture:
            picture.verify()
        return path
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return None


def check_own(run: Path, *names: str) -> None:
    """Check that those of RUN's files that exist are its own. ValueError names one that is a link out of the run."""
    for name in names:
        if (run / name).is_file() and own_file(run, name) is None:
            raise ValueError(
                f"{run / name} is a link to a file outside the run, which is not read; copy the file itself"
            )


def step_of(path: Path) -> int | None:
    """Return the step that a picture or page is of (`step_000010_samples.png` -> 10), None for other names."""
    found = _STEP.fullmatch(path.stem)
    return int(found[1]) if found else None


def steps(run: Path, folder: str, ending: str) -> list[Path]:
    """Return the run's own files RUN/`folder`/step_*`ending` in the order of their names.

    A .png that is no picture is left out.
    """
    known = own_png if ending == ".png" else own_file
    named = (path for path in sorted((run / folder).glob(f"step_*{ending}")) if step_of(path) is not None)
    return [path for path in named if known(run, path.relative_to(run)) is not None]


def left_out(run: Path, folder: str) -> int:
    """Return how many files of RUN/`folder` are called like pictures of a step and are none, or not the run's own."""
    return len(list((run / folder).glob("step_*.png"))) - len(steps(run, folder, ".png"))
