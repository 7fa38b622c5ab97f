"""Reinforcement learning with token-level credit (GRPO, DAPO, GCPO) for discrete-token text-to-image models."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"


def _check_rewards_package() -> None:
    """ImportError unless the `rewards` package that Python finds is the one shipped here: PyPI has an unrelated one of that name."""
    spec = find_spec("rewards")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if any((Path(folder) / "vocabulary.py").is_file() for folder in folders):
        return
    if spec is None:
        raise ImportError("the package `rewards`, which is part of t2i-gcpo, is missing; install t2i-gcpo again")
    raise ImportError(
        f"`import rewards` finds an unrelated package in {folders[0] if folders else spec.origin}, not the one of t2i-gcpo. "
        "Run `pip uninstall rewards` and install t2i-gcpo again; "
        "if the folder is your own, rename it or move it off the Python path."
    )


_check_rewards_package()
