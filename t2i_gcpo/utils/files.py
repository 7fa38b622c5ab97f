"""What identifies a file's content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

#: Larger files are told apart by size alone: hashing 13 GB at every start would take longer than it is worth.
HASHED_BYTES = 64 * 2**20


def describe(path: Path) -> dict[str, Any]:
    """Its bytes, and up to `HASHED_BYTES` its SHA-256."""
    size = path.stat().st_size
    return (
        {"bytes": size}
        if size > HASHED_BYTES
        else {"bytes": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    )


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file: a reader, or a crash, sees the old text or the new."""
    aside = path.with_name(f".tmp_{path.name}")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
