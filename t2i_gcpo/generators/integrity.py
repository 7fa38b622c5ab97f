"""A checkpoint's files are read here so that nothing in them runs, and so that damage is said instead of loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewards.models.remote_code import reason


@contextmanager
def reading(folder: Path, part: str = "the checkpoint") -> Iterator[None]:
    """Inside, whatever a library raises over the files of `folder` becomes a ValueError that names the folder."""
    try:
        yield
    except (ImportError, MemoryError):  # these say themselves what is missing
        raise
    except Exception as error:  # transformers', diffusers', tokenizers' and safetensors' own, by what is damaged
        raise ValueError(f"{part} in {folder} cannot be loaded: {reason(error)}") from error


def load_model(kind: Any, folder: Path, **options: Any) -> Any:
    """Return the model that `kind`, a class of transformers or diffusers, reads from the safetensors in `folder`.

    ValueError, naming the folder: files that are missing or damaged, or weights that the model has and the files have not,
    which the libraries would draw at random.
    """
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
    return model


def load_part(kind: Any, folder: Path) -> Any:
    """Return the tokenizer, processor or scheduler that `kind` reads from `folder`. ValueError, naming it, where it cannot."""
    with reading(folder):
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
