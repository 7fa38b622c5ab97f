"""Where a checkpoint is: an embedded one, a local folder (whole model or LoRA adapter), or a repository of the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rewards import weights

ASSETS = Path(__file__).resolve().parent.parent / "assets"

#: The checkpoints that ship with the package, by name: `assets/<name>`.
EMBEDDED: tuple[str, ...] = ("janus-mini", "amused-mini")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are on this machine."""

    name: str
    """A name that finds it again from any working directory: embedded name, absolute path or hub repository."""
    folder: Path
    """The folder of the whole model."""
    model_type: str
    revision: str | None = None
    adapter: Path | None = None
    """The folder of a LoRA adapter to put on the model."""


def locate(name: str, *, revision: str | None = None) -> Checkpoint:
    """Find `name`: embedded names first, then local folders, then the hub. ValueError says what was looked for, and where."""
    if name in EMBEDDED and not (ASSETS / name).is_dir():
        raise ValueError(
            f"the embedded checkpoint {name!r} is not in {ASSETS}: the installation is incomplete; install t2i-gcpo again"
        )
    folder = ASSETS / name if name in EMBEDDED else Path(name).expanduser().absolute()
    if not folder.is_dir():
        folder = _from_hub(name, revision)
        return Checkpoint(name=name, folder=folder, model_type=_model_type(folder), revision=revision)
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder)
    return Checkpoint(name=name if name in EMBEDDED else str(folder), folder=folder, model_type=_model_type(folder))


def _adapter(folder: Path) -> Checkpoint:
    """A LoRA adapter's folder names its base, which is looked up in turn."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the LoRA adapter in {folder} names no base model (base_model_name_or_path in its adapter_config.json)"
        )
    try:
        found = locate(base, revision=config.get("revision"))
    except ValueError as error:
        raise ValueError(f"the base model of the LoRA adapter in {folder}: {error}") from error
    return Checkpoint(found.name, found.folder, found.model_type, found.revision, adapter=folder)


def _model_type(folder: Path) -> str:
    """model_type of transformers' config.json, or the pipeline's class name of diffusers' model_index.json ("amused")."""
    for file, key in (("config.json", "model_type"), ("model_index.json", "_class_name")):
        if (folder / file).is_file():
            value = str(json.loads((folder / file).read_text(encoding="utf-8")).get(key, ""))
            return value.removesuffix("Pipeline").lower()
    raise ValueError(
        f"{folder} holds no checkpoint: expected a config.json (transformers), model_index.json (diffusers) or "
        f"adapter_config.json (LoRA) in it; found {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}"
    )


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        return weights.folder(name, revision=revision, what="checkpoint")
    except ValueError as error:
        raise ValueError(f"{error} (nor is it an embedded checkpoint: {', '.join(EMBEDDED)})") from error
