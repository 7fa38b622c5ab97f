"""Loads a model of transformers and its image preprocessing, from a folder or a hub repository."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rewards.models import weights
from rewards.models.batches import require
from rewards.models.device import check_dtype, place, short
from rewards.models.loading import one_at_a_time
from rewards.models.preprocess import Preprocess
from rewards.models.remote_code import check_kernels, reason
from rewards.models.torchvision_mend import mend

#: Configuration, tokenizer and chat template of a model folder.
TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")

#: Its weights, the preferred form first; many repositories hold both. Neither can run code here.
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")

#: Pillow's resampling filters, by their number in a preprocessor's configuration.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


@one_at_a_time
def load_model(
    name: str, architecture: str, checkpoint: str, *, revision: str | None = None, device: str, dtype: str
) -> tuple[Any, Path]:
    """Load the frozen model of transformers' class `architecture` on its device; also return its folder.

    `name`: the reward's.

    ValueError: a checkpoint that is missing, of another kind, or without some of the weights; an unknown device or
    dtype.
    """
    check_dtype(dtype, name)
    mend()
    kind = getattr(require("transformers", name), architecture)
    folder = model_folder(name, checkpoint, revision=revision)
    config = _read(folder / "config.json", name)
    check_kernels(config, folder / "config.json")
    given, wanted = config.get("model_type"), kind.config_class.model_type
    if given != wanted:
        raise ValueError(
            f"reward {name!r} takes a checkpoint of model_type {wanted!r} ({architecture}); {folder} holds {given!r}"
        )
    try:
        model, report = kind.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, weights_only=True
        )
    except Exception as error:  # transformers' errors, safetensors' own, pickle's, by what the folder holds
        raise ValueError(f"reward {name!r}: {folder} does not fit {architecture}: {reason(error)}") from error
    parameters = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    missing = sorted(parameters.intersection(report["missing_keys"]))  # buffers are made anew
    if missing:
        raise ValueError(
            f"reward {name!r}: {folder} lacks {len(missing)} of the weights of {architecture}, such as {missing[0]}; "
            "take a checkpoint that was saved whole, for this task"
        )
    return place(model, name, device, dtype), folder


def model_folder(name: str, checkpoint: str, *, revision: str | None = None) -> Path:
    """Return the local folder with configuration, tokenizer and weights.

    ValueError where there are no weights in it.
    """
    what = f"model for reward {name!r}"
    for pattern in WEIGHTS:  # a repository has the same weights several times
        folder = weights.folder(checkpoint, revision=revision, files=(*TEXT_FILES, pattern), what=what)
        if any(folder.glob(pattern)):
            return folder
    raise ValueError(f"no {what}: {folder} holds none of {', '.join(WEIGHTS)}")


def load_image_processor(name: str, folder: Path) -> Any:
    """Load the image processor of a model's folder. ValueError where there is none."""
    mend()
    return load_part("AutoImageProcessor", "image processor", folder, name)


def read_preprocess(name: str, checkpoint: str, *, side: int, revision: str | None = None) -> Preprocess:
    """Read CLIP's kind of preprocessing from the configuration of a folder or hub repository.

    `side`: S of the S x S images that the model takes. ValueError for another kind, or another size.
    """
    folder = weights.folder(checkpoint, revision=revision, files=TEXT_FILES, what=f"preprocessing for reward {name!r}")
    path = folder / "preprocessor_config.json"
    if path.is_file():
        config = _read(path, name)
    else:  # transformers 5 saves it within the processor's
        path = folder / "processor_config.json"
        config = _read(path, name).get("image_processor", {})
    try:
        size = _side(config["size"])
        crop = _side(config["crop_size"]) if config.get("do_center_crop") else size
        shortest = isinstance(config["size"], int) or "shortest_edge" in config["size"]
        mean, std = (tuple(float(value) for value in config[key]) for key in ("image_mean", "image_std"))
        interpolation = _INTERPOLATIONS[config.get("resample", 3)]
        if crop != size or len(mean) != 3 or len(std) != 3:
            raise ValueError(f"size {config['size']}, crop {config.get('crop_size')}, mean {mean}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"reward {name!r}: the preprocessing of {path} is not of CLIP's kind (size, crop_size alike, image_mean, "
            f"image_std; bilinear or bicubic): {short(error)}"
        ) from error
    if size != side:
        raise ValueError(
            f"reward {name!r}: {path} makes images of {size} pixels, but the model takes {side}; take the "
            f"preprocessing of the "
            "model's own repository"
        )
    return Preprocess(size, "shortest" if shortest else "squash", interpolation, mean, std)  # type: ignore[arg-type]


def _side(size: int | dict[str, int]) -> int:
    """Return S of an S x S image; TypeError or ValueError for any other size."""
    sides: Sequence[int] = [size] if isinstance(size, int) else list(size.values())
    if len(set(sides)) != 1:
        raise ValueError(f"size {size}")
    return int(sides[0])


@one_at_a_time
def load_part(loader: str, what: str, folder: Path, name: str) -> Any:
    """Load what transformers' class `loader` reads from a folder. ValueError where it cannot."""
    try:
        return getattr(require("transformers", name), loader).from_pretrained(folder, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"reward {name!r}: the {what} of {folder} cannot be loaded: {reason(error)}") from error


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"reward {name!r}: {path} is missing or no JSON: {short(error)}") from error
    if not isinstance(config, dict):
        raise ValueError(f"reward {name!r}: {path} holds a {type(config).__name__} instead of an object")
    return config
