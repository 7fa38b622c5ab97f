"""What identifies a file's content."""

from __future__ import annotations

import hashlib
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
