"""Where a checkpoint is: an embedded one, a local folder (whole model, LoRA adapter or delta), or a repository of the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from rewards.models import weights
from t2i_gcpo.generators import deltas

ASSETS = Path(__file__).resolve().parent.parent / "assets"

#: The checkpoints that ship with the package, by name: `assets/<name>`; and the command that trains each from nothing.
EMBEDDED: dict[str, str] = {"janus-mini": "t2i-gcpo pretrain janus", "amused-mini": "t2i-gcpo pretrain amused"}

#: What training made of them, by algorithm: `assets/tuned/<algorithm>`, a delta each, loaded as "janus-mini-<algorithm>".
TUNED: tuple[str, ...] = ("grpo", "dapo", "gcpo")


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
    delta: Path | None = None
    """The folder of a delta (`deltas.py`) to add to the model's policy."""


def tuned() -> dict[str, Path]:
    """Name -> folder of the tuned checkpoints that ship with the package, those that there are."""
    folders = {f"janus-mini-{algorithm}": ASSETS / "tuned" / algorithm for algorithm in TUNED}
    return {name: folder for name, folder in folders.items() if (folder / deltas.ABOUT).is_file()}


def locate(name: str, *, revision: str | None = None) -> Checkpoint:
    """Find `name`: embedded names first, then local folders, then the hub. ValueError says what was looked for, and where."""
    if name in EMBEDDED and not (ASSETS / name).is_dir():
        raise ValueError(
            f"the embedded checkpoint {name!r} is not in {ASSETS}: the installation is incomplete; install t2i-gcpo again, or "
            f"train it with `{EMBEDDED[name]}` and give the folder that this writes"
        )
    if name in tuned():
        return _delta(tuned()[name], name)
    folder = ASSETS / name if name in EMBEDDED else Path(name).expanduser().absolute()
    if not folder.is_dir():
        folder = _from_hub(name, revision)
        return Checkpoint(name=name, folder=folder, model_type=_model_type(folder), revision=revision)
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder)
    if (folder / deltas.ABOUT).is_file():
        return _delta(folder, str(folder))
    return Checkpoint(name=name if name in EMBEDDED else str(folder), folder=folder, model_type=_model_type(folder))


def _adapter(folder: Path) -> Checkpoint:
    """A LoRA adapter's folder names its base, which is looked up in turn."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or config.get("megatron_config"):
        # Other kinds load tokenizers or import modules that the file names.
        raise ValueError(
            f"the adapter in {folder} is of the kind {config.get('peft_type')!r}"
            + (" with a megatron_config" if config.get("megatron_config") else "")
            + "; only plain LoRA adapters are loaded (peft_type in its adapter_config.json)"
        )
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the LoRA adapter in {folder} names no base model (base_model_name_or_path in its adapter_config.json)"
        )
    try:
        found = locate(base, revision=config.get("revision"))
    except ValueError as error:
        raise ValueError(f"the base model of the LoRA adapter in {folder}: {error}") from error
    if found.adapter is not None:
        raise ValueError(
            f"the base of the LoRA adapter in {folder} is itself an adapter ({found.adapter}); merge that one first"
        )
    return replace(found, adapter=folder)


def _delta(folder: Path, name: str) -> Checkpoint:
    """A delta's folder names its base, a whole model, which is looked up in turn. It stays findable under its own `name`."""
    about = deltas.read_about(folder)
    try:
        found = locate(about["base"], revision=about.get("revision"))
    except ValueError as error:
        raise ValueError(f"the base model of the delta in {folder}: {error}") from error
    if found.adapter is not None or found.delta is not None:
        raise ValueError(
            f"the base of the delta in {folder} is no whole model but an adapter or delta: {about['base']}"
        )
    return replace(found, name=name, delta=folder)


def _model_type(folder: Path) -> str:
    """model_type of transformers' config.json, or the pipeline's class name of diffusers' model_index.json ("amused")."""
    for file, key in (("config.json", "model_type"), ("model_index.json", "_class_name")):
        if (folder / file).is_file():
            value = str(json.loads((folder / file).read_text(encoding="utf-8")).get(key, ""))
            return value.removesuffix("Pipeline").lower()
    raise ValueError(
        f"{folder} holds no checkpoint: expected a config.json (transformers), model_index.json (diffusers), "
        f"adapter_config.json (LoRA) or {deltas.ABOUT} in it; found {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}"
    )


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        return weights.folder(name, revision=revision, what="checkpoint")
    except ValueError as error:
        raise ValueError(f"{error} (nor is it an embedded checkpoint: {', '.join([*EMBEDDED, *tuned()])})") from error
