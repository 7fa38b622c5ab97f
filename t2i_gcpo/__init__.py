"""Reinforcement learning with token-level credit (GRPO, DAPO, GCPO) for discrete-token text-to-image models."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

#: Name -> the module that has it, imported when the name is first asked for: torch takes seconds to load.
EXPORTS: dict[str, str] = {
    "Trainer": "t2i_gcpo.reports.trainer",
    "StepRecord": "t2i_gcpo.training.trainer",
    "Schedule": "t2i_gcpo.training.options",
    "CheckpointPlan": "t2i_gcpo.training.options",
    "Algorithm": "t2i_gcpo.algorithms",
    "resolve": "t2i_gcpo.algorithms",
    "Prompt": "t2i_gcpo.records",
    "Sampling": "t2i_gcpo.records",
    "Rollout": "t2i_gcpo.records",
    "ScoredRollout": "t2i_gcpo.records",
}
#: Name -> a module that lies in a room and is used under this short name.
MODULES: dict[str, str] = {
    "prompts": "t2i_gcpo.data.prompts",
    "pictures": "t2i_gcpo.utils.pictures",
    "curves": "t2i_gcpo.reports.curves",
    "tables": "t2i_gcpo.reports.tables",
}


def _check_rewards_package() -> None:
    """Raise an ImportError unless the `rewards` package that Python finds is the one shipped here.

    PyPI has an unrelated one of that name.
    """
    spec = find_spec("rewards")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if any((Path(folder) / "geneval" / "vocabulary.py").is_file() for folder in folders):
        return
    if spec is None:
        raise ImportError("the package `rewards`, which is part of t2i-gcpo, is missing; install t2i-gcpo again")
    raise ImportError(
        f"`import rewards` finds an unrelated package in {folders[0] if folders else spec.origin}, not the one of "
        "t2i-gcpo. Run `pip uninstall rewards` and install t2i-gcpo again; if the folder is your own, rename it or "
        "move it off the Python path."
    )


_check_rewards_package()


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(MODULES[name])
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS, *MODULES})
