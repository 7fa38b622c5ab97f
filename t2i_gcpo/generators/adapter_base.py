"""What a LoRA adapter was trained on: written beside it, and compared with the base that it is put on.

    DIR/base.json    the base's weight files, as `deltas.fingerprint` describes them

An adapter on other weights than its own loads without an error and draws other images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_gcpo.generators.deltas import fingerprint, same_files
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import check_shape, read_json

if TYPE_CHECKING:
    from t2i_gcpo.generators.checkpoints import Checkpoint

FILE = "base.json"


def write(folder: Path, base: Checkpoint) -> None:
    """Write what the adapter in `folder` was trained on."""
    content = {"base": base.name, "base_files": _files(base)}
    write_atomically(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def check(folder: Path, base: Checkpoint) -> None:
    """Check that the base is the one that the adapter in `folder` was trained on, where it says so.

    ValueError: its weight files are others.
    """
    if not (folder / FILE).is_file():
        return  # written by another program, or before this file was
    about: dict[str, Any] = read_json(folder / FILE)
    wanted = about.get("base_files")
    check_shape(wanted, dict, f"{folder / FILE}: base_files")
    if not same_files(wanted, _files(base)):
        raise ValueError(
            f"the LoRA adapter in {folder} was trained on other weights than those in {base.folder}; give it the base "
            f"of its training ({about.get('base')}), or train it anew on the present one"
        )


def _files(base: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return the weight files of the base, those of its delta included; a random model has none."""
    if base.random is not None:
        return {}
    own = fingerprint(base.folder)
    delta = {} if base.delta is None else fingerprint(base.delta)
    return own | {f"delta/{name}": value for name, value in delta.items()}
