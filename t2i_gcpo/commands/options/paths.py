"""Paths on the command line: a function for argparse's `type`."""

from __future__ import annotations

import argparse
from pathlib import Path


def home_path(text: str) -> Path:
    """Read a path; `~` at its start is the home folder, which a shell leaves alone in `--out=~/x`."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no path")
    return Path(text).expanduser()
