"""Numbers on the command line: functions for argparse's `type`, each refusing what its option cannot mean."""

from __future__ import annotations

import argparse
import math

from t2i_gcpo.utils.checks import LARGEST_SEED


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1, None, "an integer of at least 1")


def count(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, 0, None, "an integer of at least 0")


def seed(text: str) -> int:
    """Read a seed: a whole number of at least 0 that torch takes."""
    return _whole(text, 0, LARGEST_SEED, "a seed: an integer from 0 to 2**63 - 1")


def port(text: str) -> int:
    """Read a TCP port, 0 for any free one."""
    return _whole(text, 0, 65535, "a port: an integer from 0 to 65535")


def finite(text: str) -> float:
    """Read a number that is neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _whole(text: str, low: int, high: int | None, what: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low or (high is not None and value > high):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value
