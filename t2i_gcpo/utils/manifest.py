"""Keep a folder's manifest, so that damage is seen before anything is loaded.

It has the size of every file and, up to 64 MiB, its SHA-256.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from t2i_gcpo.utils.files import describe
from t2i_gcpo.utils.json_files import read_json

MANIFEST = "manifest.json"
SHAPE = {"step": int, "files": {str: {"bytes": int}}}


def damage(folder: str | Path, *, needed: Collection[str] = (), ignored: Collection[str] = ()) -> str | None:
    """Return, as a sentence, what keeps a folder from being what its manifest says, or None.

    needed: files that the manifest must name. ignored: files that may be missing or changed.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).exists():
        return f"it has no {MANIFEST}"
    try:
        files = read_json(folder / MANIFEST, SHAPE)["files"]
        unnamed = [name for name in needed if name not in files]
        if unnamed:
            return f"its {MANIFEST} names no {unnamed[0]}"
        checked = ((name, expected) for name, expected in files.items() if name not in ignored)
        problems = (_damaged_file(folder / name, name, expected) for name, expected in checked)
        return next(filter(None, problems), None)
    except (ValueError, OSError) as error:
        return f"its {MANIFEST} is damaged ({error})"


def _damaged_file(file: Path, name: str, expected: Mapping[str, Any]) -> str | None:
    if not file.is_file():
        return f"{name} is missing"
    if file.stat().st_size != expected["bytes"]:
        return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
    if "sha256" in expected and describe(file) != expected:
        return f"{name} is damaged (SHA-256 differs)"
    return None
