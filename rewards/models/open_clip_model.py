"""Loads an open_clip model with its tokenizer and preprocessing, from a tag, a state_dict or a model folder."""

from __future__ import annotations

import difflib
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.models import weights
from rewards.models.batches import require
from rewards.models.device import check_dtype, place, short
from rewards.models.loading import one_at_a_time
from rewards.models.open_clip_encoder import OpenClipEncoder, UnfitText
from rewards.models.preprocess import Preprocess
from rewards.models.remote_code import check_text_model, reason
from rewards.models.torchvision_mend import mend

#: open_clip's names for the weights of a model folder, the preferred one first.
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")

#: The other files of a model folder: its config and its tokenizer.
FOLDER_FILES = ("open_clip_config.json", "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model")

#: open_clip stretches these tables to the model's size without a word; a stretched table belongs to another
#: architecture.
POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")

_LOADING_ERRORS = (RuntimeError, ValueError, KeyError, TypeError, AssertionError, AttributeError, OSError)


@dataclass(frozen=True)
class _Source:
    """Holds what open_clip needs to build a model."""

    model: str
    """Name of an architecture, or `local-dir:` and a folder."""
    weights: Path
    quick_gelu: bool
    preprocess: dict[str, Any] = field(default_factory=dict)
    """What differs from open_clip's default preprocessing; a folder's config is read by open_clip."""


@one_at_a_time
def load_open_clip(
    name: str,
    *,
    checkpoint: str | None = None,
    architecture: str | None = None,
    pretrained: str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    quick_gelu: bool | None = None,
    resize: str | None = None,
    unfit_text: UnfitText = "warn",
    device: str = "cpu",
    dtype: str = "float32",
) -> OpenClipEncoder:
    """Load an open_clip model for the reward `name`, from one of three places.

    - `architecture` and `pretrained`: one of open_clip's own tags, `ViT-B-32` and `laion2b_s34b_b79k`.
    - `architecture` and `checkpoint`: a state_dict, as a local file, or as `filename` in a folder or hub repository.
    - `checkpoint` alone: a model folder or hub repository with `open_clip_config.json`. Where its `text_cfg` has a
      `hf_tokenizer_name` ("." will do), the tokenizer's files lie in the same folder, so a folder can be moved.

    Args:
        revision: of the hub repository.
        quick_gelu: whether the weights were trained with QuickGELU. Weights do not show it and the wrong one scores
            badly
            without an error, so it must be said for a state_dict whose architecture exists both ways.
        resize: the preprocessing's resize mode, where it is not the model's own.
        unfit_text: what happens to a text that is cut or has unknown words.

    ValueError: an unknown architecture or tag, weights that are missing or do not fit the architecture, a QuickGELU
    that does not fit the weights, an unknown device, dtype or mode.
    """
    check_dtype(dtype, name)
    if unfit_text not in ("warn", "raise"):
        raise ValueError(f"unfit_text {unfit_text!r} of reward {name!r} is unknown; allowed: warn, raise")
    mend()
    open_clip = require("open_clip", name)
    if pretrained is not None:
        if checkpoint is not None or architecture is None:
            raise ValueError(f"reward {name!r}: pretrained {pretrained!r} goes with an architecture and no checkpoint")
        source = _tag(open_clip, name, architecture, pretrained, quick_gelu, revision)
    elif checkpoint is None:
        raise ValueError(f"reward {name!r} needs a checkpoint, or an architecture and one of its pretrained tags")
    elif architecture is not None:
        source = _state_dict(open_clip, name, architecture, checkpoint, filename, quick_gelu, revision)
    else:
        source = _folder(name, checkpoint, quick_gelu, revision)
    model, tokenizer = _build(open_clip, name, source)
    return OpenClipEncoder(
        place(model, name, device, dtype),
        tokenizer,
        _preprocess(model.visual.preprocess_cfg, resize, name),
        context_length=tokenizer.context_length,
        unfit_text=unfit_text,
        name=name,
    )


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """Read the state_dict in a `.safetensors` or torch file, its own or under the key `state_dict`.

    Nothing else is unpickled.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # safetensors' own error, pickle's, torch's, by what the file is
        raise ValueError(f"reward {name!r}: {path} cannot be read as weights: {short(error)}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"reward {name!r}: {path} holds no state_dict (names and tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _tag(
    open_clip: Any, name: str, architecture: str, tag: str, quick_gelu: bool | None, revision: str | None
) -> _Source:
    config = _architecture(open_clip, name, architecture)
    about = open_clip.get_pretrained_cfg(architecture, tag)
    if not about:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise ValueError(f"reward {name!r}: {architecture} has no pretrained {tag!r}; it has: {tags}")
    trained, built = bool(about.get("quick_gelu")), bool(config.get("quick_gelu") or quick_gelu)
    if trained != built or (quick_gelu is not None and quick_gelu != trained):
        words = {True: "with", False: "without"}
        advice = f"architecture {architecture}-quickgelu" if trained else "quick_gelu false"
        raise ValueError(
            f"reward {name!r}: {tag!r} was trained {words[trained]} QuickGELU, but {architecture} with quick_gelu="
            f"{quick_gelu} is built {words[not trained]}; take {advice}"
        )
    return _Source(architecture, _tag_weights(open_clip, name, about, revision), trained, _without_size(about))


def _without_size(about: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key != "size"}  # the architecture knows its size


def _tag_weights(open_clip: Any, name: str, about: dict[str, Any], revision: str | None) -> Path:
    what = f"weights for reward {name!r}"
    repository, _, filename = about.get("hf_hub", "").rpartition("/")
    if repository:
        try:
            return weights.file(repository, filename or WEIGHTS_NAMES[0], revision=revision, what=what)
        except ValueError:
            if filename:
                raise
            return weights.file(repository, WEIGHTS_NAMES[-1], revision=revision, what=what)
    try:
        return Path(open_clip.download_pretrained(about))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"no {what}: {about.get('url')} cannot be had: {short(error)}") from error


def _state_dict(
    open_clip: Any,
    name: str,
    architecture: str,
    checkpoint: str,
    filename: str | None,
    quick_gelu: bool | None,
    revision: str | None,
) -> _Source:
    config = _architecture(open_clip, name, architecture)
    built = bool(config.get("quick_gelu"))
    if quick_gelu is None and not built and open_clip.get_model_config(f"{architecture}-quickgelu") is not None:
        raise ValueError(
            f"reward {name!r}: {architecture} exists with and without QuickGELU, and a state_dict does not say which; "
            "set quick_gelu to true (OpenAI, DFN and MetaCLIP weights) or false (LAION and DataComp weights)"
        )
    if built and quick_gelu is False:
        raise ValueError(f"reward {name!r}: {architecture} is built with QuickGELU, but quick_gelu is false")
    path = weights.file(
        checkpoint, filename or WEIGHTS_NAMES[0], revision=revision, what=f"weights for reward {name!r}"
    )
    return _Source(architecture, path, built or bool(quick_gelu))


def _folder(name: str, checkpoint: str, quick_gelu: bool | None, revision: str | None) -> _Source:
    what = f"open_clip model for reward {name!r}"
    if Path(checkpoint).expanduser().is_file():
        raise ValueError(f"reward {name!r}: {checkpoint} is a file; say its architecture, or give a model folder")
    for names in (WEIGHTS_NAMES[:-1], WEIGHTS_NAMES[-1:]):  # a repository has the same weights several times
        folder = weights.folder(checkpoint, revision=revision, files=(*FOLDER_FILES, *names), what=what)
        files = [folder / file for file in WEIGHTS_NAMES if (folder / file).is_file()]
        if files:
            break
    else:
        raise ValueError(f"no {what}: {folder} holds none of {', '.join(WEIGHTS_NAMES)}")
    config = folder / "open_clip_config.json"
    try:
        built = bool(json.loads(config.read_text(encoding="utf-8"))["model_cfg"].get("quick_gelu"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no {what}: {config} is missing or has no model_cfg ({short(error)})") from error
    if quick_gelu is not None and quick_gelu != built:
        raise ValueError(f"reward {name!r}: {config} says quick_gelu {built}, but the option says {quick_gelu}")
    return _Source(f"local-dir:{folder.absolute()}", files[0], built)


def _architecture(open_clip: Any, name: str, architecture: str) -> dict[str, Any]:
    config: dict[str, Any] | None = open_clip.get_model_config(architecture)
    if config is None:
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=5, cutoff=0.0)
        raise ValueError(f"reward {name!r}: open_clip has no architecture {architecture!r}; near it: {', '.join(near)}")
    return config


def _build(open_clip: Any, name: str, source: _Source) -> tuple[Any, Any]:
    """Build the model with its weights, on the CPU in float32, and its tokenizer."""
    shapes = {key: value.shape for key, value in read_tensors(source.weights, name).items() if key in POSITIONS}
    what = source.model.removeprefix("local-dir:")
    try:
        text = (open_clip.get_model_config(source.model) or {})["text_cfg"]
        if text.get("hf_model_name"):
            check_text_model(text["hf_model_name"])
        model = open_clip.create_model(
            source.model,
            None if source.model.startswith("local-dir:") else str(source.weights),
            force_quick_gelu=source.quick_gelu,
            force_preprocess_cfg=source.preprocess,
            pretrained_text=False,
            require_pretrained=True,
            weights_only=True,
        )
    except (*_LOADING_ERRORS, pickle.UnpicklingError) as error:
        raise ValueError(f"reward {name!r}: {source.weights} does not fit {what}: {reason(error)}") from error
    for key, built in model.state_dict().items():
        given = shapes.get(key, shapes.get(key.removeprefix("text."))) if key in POSITIONS else None
        if given is not None and given != built.shape:
            raise ValueError(
                f"reward {name!r}: {source.weights} does not fit {what}: {key} is {list(given)} in the weights and "
                f"{list(built.shape)} in the architecture; take the image size and context length of the weights"
            )
    try:
        # A folder's own `tokenizer_kwargs` could say True; what is passed here wins. open_clip's own tokenizer does not
        # take it.
        no_code = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
        return model, open_clip.get_tokenizer(source.model, **no_code)
    except _LOADING_ERRORS as error:
        raise ValueError(f"reward {name!r}: the tokenizer of {what} cannot be loaded: {reason(error)}") from error


def _preprocess(config: dict[str, Any], resize: str | None, name: str) -> Preprocess:
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = resize or config["resize_mode"]
    if height != width or (mode == "longest" and config["fill_color"] != 0):
        raise ValueError(
            f"reward {name!r}: the preprocessing {config} is not supported; S x S pixels, padded with black"
        )
    mean, std = (
        tuple(value) if isinstance(value, list | tuple) else (value,) * 3 for value in (config["mean"], config["std"])
    )
    interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    return Preprocess(height, resize=mode, interpolation=interpolation, mean=mean, std=std)  # type: ignore[arg-type]
