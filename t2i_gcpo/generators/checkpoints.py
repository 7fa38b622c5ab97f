"""Where a checkpoint is: an embedded one, a local folder (whole model or LoRA adapter), or a repository of the hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "assets"

#: The checkpoints that ship with the package, by name: `assets/<name>`.
EMBEDDED: tuple[str, ...] = ("janus-mini", "amused-mini")

#: owner/name, as the Hugging Face hub spells it.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

#: Seconds to wait for the hub's first answer.
HUB_TIMEOUT = 10.0

#: Files of a repository that a generator needs.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


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
    """Download a repository, or find it in the hub's cache; never waits long for a hub that cannot be reached."""
    places = f"not an embedded checkpoint ({', '.join(EMBEDDED)}), no folder {Path(name).expanduser().absolute()}"
    # "runs/first" looks like a repository, but a folder runs/ here says that a local path was meant.
    if not HUB_NAME.fullmatch(name) or Path(name).parts[0] in (".", "..") or Path(name).parent.is_dir():
        raise ValueError(f"no checkpoint {name!r}: {places}")
    import huggingface_hub
    from huggingface_hub.utils import get_session

    reachable, reason = True, ""
    try:
        get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception as error:  # the client's own errors, by version: requests, httpx, or offline mode
        reachable, reason = False, str(error)
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=HUB_PATTERNS, local_files_only=not reachable
        )
    except OSError as error:
        where = f"revision {revision!r} of " if revision else ""
        why = str(error) if reachable else f"the hub cannot be reached ({reason}) and its cache here does not have it"
        raise ValueError(f"no checkpoint {name!r}: {places}; {where}hub repository {name}: {why}") from error
    return Path(folder)
