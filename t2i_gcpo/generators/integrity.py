"""A checkpoint's files are read here so that nothing in them runs, and so that damage is said instead of loaded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewards.models.device import short
from rewards.models.remote_code import check_kernels, reason
from t2i_gcpo.utils import manifest
from t2i_gcpo.utils.device import is_out_of_memory
from t2i_gcpo.utils.finite import all_finite

#: Name of a step's folder in a run.
STEP = re.compile(r"step_[0-9]+")
#: The trainer's state in such a folder, which a generator does without.
TRAINER_STATE = "trainer.pt"
#: What a fast tokenizer reads.
TOKENIZER = "tokenizer.json"
#: The files that a tokenizer is read from, the newest kind first.
TOKENIZERS = (TOKENIZER, "tokenizer.model", "vocab.json", "vocab.txt")
#: How the classes are called that read a tokenizer.
WITH_TOKENIZER = ("Tokenizer", "TokenizerFast", "Processor")
#: The JSON files that transformers, diffusers and tokenizers read; each holds an object.
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    TOKENIZER,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "model_index.json",
    "scheduler_config.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
)

#: safetensors' names of the dtypes that models are made in.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def check_manifest(folder: Path) -> None:
    """Check that the files of a folder are those of its manifest, where it has one.

    ValueError says which is damaged, and what to do.

    Other programs write files of that name too: one of another kind is left alone, but in a folder called step_N
    or beside a trainer's state.
    """
    if not (folder / manifest.MANIFEST).is_file():
        return
    if not (STEP.fullmatch(folder.name) or (folder / TRAINER_STATE).exists()):
        content = read_object(folder / manifest.MANIFEST)
        if not ("step" in content and "files" in content):
            return
    problem = manifest.damage(folder, ignored=(TRAINER_STATE,))
    if problem is None:
        known = read_object(folder / manifest.MANIFEST)["files"]
        strangers = [path.name for path in sorted(folder.glob("*.safetensors")) if path.name not in known]
        problem = f"its {manifest.MANIFEST} does not name {strangers[0]}" if strangers else None
    if problem is not None:
        raise ValueError(
            f"the checkpoint in {folder} is not whole: {problem}; copy it again, or take another step of the run"
        )


def check_json(folder: Path) -> None:
    """Check that the JSON files of a model hold objects, and name no code.

    ValueError names the file and what is wrong.
    """
    for name in JSON_FILES:
        for path in (folder / name, *sorted(folder.glob(f"*/{name}"))):
            if path.is_file():
                check_kernels(read_object(path), path)


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of another program. ValueError, naming the file, where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"the checkpoint in {path.parent} is not whole: it has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not valid JSON ({short(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(content).__name__} instead of an object")
    return content


def tensor_sizes(path: Path) -> dict[str, int]:
    """Return tensor -> number of its values, of a safetensors file that is as long as its header says.

    ValueError, naming it, if not.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:  # safetensors has an error of its own, which is no OSError
        raise ValueError(f"{path} is damaged: {short(error)}") from error


@contextmanager
def reading(folder: Path, part: str = "the checkpoint") -> Iterator[None]:
    """Inside, whatever a library raises over the files of `folder` becomes a ValueError that names the folder.

    Memory that is full is no fault of the files: its error goes on.
    """
    try:
        yield
    except ImportError:  # it says itself what is missing
        raise
    except Exception as error:  # transformers', diffusers', tokenizers' and safetensors' own, by what is damaged
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{part} in {folder} cannot be loaded: {reason(error)}") from error


def load_model(kind: Any, folder: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the model that `kind`, a class of transformers or diffusers, reads from the safetensors in `folder`.

    For another device than the CPU no copy of the model is made in the host's memory. Files whose weights have the
    wanted dtype are mapped there instead: the processes of a machine share their pages, and the caller moves one weight
    after the other to `device`. Weights of another dtype are cast one by one on their way to `device`, where the model
    then is.

    ValueError, naming file or folder: files that are missing or damaged, or weights that the model has and the files
    have not, which the libraries would draw at random.
    """
    _check_size(kind, folder)
    options: dict[str, Any] = {"dtype" if _of_transformers(kind) else "torch_dtype": dtype}
    if device.type != "cpu" and _dtypes(folder) - {dtype}:
        options["device_map"] = {"": device}  # one device: the libraries put no hooks on the model
    with reading(folder):
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    missing = sorted(parameters.intersection(report["missing_keys"]))  # buffers are made anew
    if missing:
        raise ValueError(
            f"the checkpoint in {folder} is not whole: its files lack {len(missing)} weights of "
            f"{kind.__name__}, such as {missing[0]}"
        )
    check_finite(model, f"the checkpoint in {folder}")
    return model


def _of_transformers(kind: Any) -> bool:
    from transformers import PreTrainedModel

    return issubclass(kind, PreTrainedModel)


def _dtypes(folder: Path) -> set[torch.dtype | None]:
    """Return the dtypes of the weights in the files of a model; None for those that no model here is made in."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
    return {DTYPES.get(name) for name in names}


def check_finite(module: nn.Module, what: str) -> None:
    """Check that no weight is NaN or infinite: images would still be drawn, from nothing. ValueError names one."""
    for name, parameter in module.named_parameters():
        if not all_finite(parameter.detach()):
            raise ValueError(f"{what} is damaged: its weight {name} is not finite; take another checkpoint")


def _check_size(kind: Any, folder: Path) -> None:
    """Check, before anything is allocated, that the files hold as many weights as the configuration describes."""
    stored = sum(sum(tensor_sizes(path).values()) for path in sorted(folder.glob("*.safetensors")))
    if not stored:
        raise ValueError(f"the checkpoint in {folder} is not whole: it has no weights (*.safetensors)")
    with reading(folder), torch.device("meta"):
        if _of_transformers(kind):
            model = kind(kind.config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        else:
            model = kind.from_config(kind.load_config(folder, local_files_only=True))
        described = sum(parameter.numel() for parameter in model.parameters())
    if described > stored:
        raise ValueError(
            f"the checkpoint in {folder} is not whole: its config.json describes "
            f"{described:,} weights, its files hold {stored:,}"
        )


def load_part(kind: Any, folder: Path) -> Any:
    """Return the tokenizer, processor or scheduler that `kind` reads from `folder`.

    ValueError, naming it, where it cannot.
    """
    try:
        with reading(folder):
            return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ValueError:
        check_tokenizer(folder / TOKENIZER)
        if kind.__name__.endswith(WITH_TOKENIZER):
            check_has_tokenizer(folder)
        raise


def check_has_tokenizer(folder: Path) -> None:
    """Raise ValueError where a folder has none of the files that a tokenizer is read from."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ValueError(f"the checkpoint in {folder} is not whole: it has no {TOKENIZER}")


def check_tokenizer(path: Path) -> None:
    """Check that a tokenizer.json, where there is one, is a tokenizer: what transformers says of it helps nobody.

    ValueError, naming it, for one that is not.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        return
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers has no error of its own
        raise ValueError(f"{path} is damaged: it holds no tokenizer ({short(error)})") from error
