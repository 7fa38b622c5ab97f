"""Finds a checkpoint: an embedded one, a local folder (whole model, LoRA adapter or delta).

Or a repository of the hub.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from rewards.models import weights
from t2i_gcpo.generators import deltas, random_models, run_folders
from t2i_gcpo.generators.integrity import check_json, check_manifest, read_object

ASSETS = Path(__file__).resolve().parent.parent / "assets"

#: What makes a folder a LoRA adapter: peft's configuration.
ADAPTER = "adapter_config.json"
#: The files that describe a whole model -> the key that says of which kind it is: transformers' and diffusers'.
MODEL_FILES: dict[str, str] = {"config.json": "model_type", "model_index.json": "_class_name"}

#: The checkpoints that ship with the package, by name: `assets/<name>`; and the command that trains each from nothing.
EMBEDDED: dict[str, str] = {
    "janus-mini": "t2i-gcpo pretrain janus",
    "janus-textured": "t2i-gcpo pretrain textured",
    "amused-mini": "t2i-gcpo pretrain amused",
}

#: What training made of them, by algorithm: `assets/tuned/<algorithm>`, a delta each, loaded as
#: "janus-mini-<algorithm>".
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
    random: random_models.RandomModel | None = None
    """A model whose weights are random; it has no folder (its `folder` does not exist)."""


def tuned() -> dict[str, Path]:
    """Name -> folder of the tuned checkpoints that ship with the package, those that there are."""
    folders = {f"janus-mini-{algorithm}": ASSETS / "tuned" / algorithm for algorithm in TUNED}
    return {name: folder for name, folder in folders.items() if (folder / deltas.ABOUT).is_file()}


def locate(name: str, *, revision: str | None = None) -> Checkpoint:
    """Find `name`: random models and embedded names first, then local folders, then the hub.

    ValueError says what was looked for and where, or which file of it is damaged.
    """
    return _locate(name, revision, ())


def _locate(name: str, revision: str | None, above: tuple[Path, ...]) -> Checkpoint:
    """Find `name`, the base of the last of the folders `above`, each of which is the base of the one before it."""
    if name.startswith(random_models.PREFIX):
        random = random_models.parse(name)
        return Checkpoint(name=random.name, folder=ASSETS / "none", model_type=random.kind, random=random)
    if name in EMBEDDED and not (ASSETS / name).is_dir():
        raise ValueError(
            f"the embedded checkpoint {name!r} is not in {ASSETS}: the installation is incomplete; install t2i-gcpo "
            f"again, or train it with `{EMBEDDED[name]}` and give the folder that this writes"
        )
    if name in tuned():
        return _delta(tuned()[name], name, above)
    folder = ASSETS / name if name in EMBEDDED else Path(name).expanduser().absolute()
    if not folder.is_dir():
        folder = _from_hub(name, revision)
        return Checkpoint(name=name, folder=folder, model_type=_model_type(folder), revision=revision)
    if folder.resolve() in (other.resolve() for other in above):
        raise ValueError(f"it leads back to {folder} itself: {' -> '.join(map(str, (*above, folder)))}")
    check_manifest(folder)
    if (folder / ADAPTER).is_file():
        return _adapter(folder, above)
    if (folder / deltas.ABOUT).is_file():
        return _delta(folder, str(folder), above)
    if run_folders.is_run(folder):
        step, which = run_folders.chosen(folder)
        warnings.warn(f"{folder} is the folder of a run: {step.name} is loaded, {which}", stacklevel=4)
        return _locate(str(step), revision, above)
    return Checkpoint(name=name if name in EMBEDDED else str(folder), folder=folder, model_type=_model_type(folder))


def _adapter(folder: Path, above: tuple[Path, ...]) -> Checkpoint:
    """Find a LoRA adapter by its folder, which names its base; that is looked up in turn."""
    if above:
        raise ValueError(f"{folder} is itself an adapter; merge that one first, e.g. with t2i-gcpo export")
    config = read_object(folder / ADAPTER)
    kind, base, revision = (config.get(key) for key in ("peft_type", "base_model_name_or_path", "revision"))
    if kind != "LORA" or config.get(
        "megatron_config"
    ):  # other kinds load tokenizers or import modules that the file names
        raise ValueError(
            f"the adapter in {folder} is of the kind {kind!r}"
            + (" with a megatron_config" if config.get("megatron_config") else "")
            + f"; only plain LoRA adapters are loaded (peft_type in its {ADAPTER})"
        )
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"the LoRA adapter in {folder} names no base model (base_model_name_or_path in its {ADAPTER} is {base!r})"
        )
    if not isinstance(revision, str | None):
        raise ValueError(
            f"the LoRA adapter in {folder}: revision in its {ADAPTER} is {revision!r}; it must be a text or null"
        )
    try:
        found = _locate(base, revision, (*above, folder))
    except ValueError as error:
        raise ValueError(f"the base model of the LoRA adapter in {folder}: {error}") from error
    return replace(found, adapter=folder)


def _delta(folder: Path, name: str, above: tuple[Path, ...]) -> Checkpoint:
    """Find a delta by its folder, which names its base, a whole model. It stays findable under its own `name`."""
    about = deltas.read_about(folder)
    if any((other / deltas.ABOUT).is_file() for other in above):
        raise ValueError(f"{folder} is no whole model but a delta itself")
    try:
        found = _locate(about["base"], about.get("revision"), (*above, folder))
    except ValueError as error:
        raise ValueError(f"the base model of the delta in {folder}: {error}") from error
    return replace(found, name=name, delta=folder)


def _model_type(folder: Path) -> str:
    """Return the kind of model in a folder.

    It is the model_type of transformers' config.json, or the class of diffusers' model_index.json ("amused").

    ValueError: there is neither, or a JSON file of the model is damaged.
    """
    for file, key in MODEL_FILES.items():
        if (folder / file).is_file():
            value = read_object(folder / file).get(key)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{folder / file} names no kind of model: {key} is {value!r}")
            check_json(folder)
            return value.removesuffix("Pipeline").lower()
    raise ValueError(
        f"{folder} holds no checkpoint: expected a config.json (transformers), model_index.json (diffusers), "
        f"{ADAPTER} (LoRA) or {deltas.ABOUT} in it; found "
        f"{', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}"
    )


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        return weights.folder(name, revision=revision, what="checkpoint")
    except ValueError as error:
        raise ValueError(f"{error} (nor is it an embedded checkpoint: {', '.join([*EMBEDDED, *tuned()])})") from error
