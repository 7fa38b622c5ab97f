"""Checkpoints may ask to run Python code of their own (`auto_map` in their configuration). It is never run, and nobody
is asked.

Every `from_pretrained` of this repository passes `trust_remote_code=False`; what is here says so in words that help.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewards.models.device import short

#: What a user reads in place of a library's advice to pass `trust_remote_code=True`.
REFUSED = (
    "it asks to run Python code of its own (auto_map in its configuration), which is never done; "
    "take a checkpoint that the library reads without"
)

#: Keys of a configuration that may name kernels of the hub, without leading underscores.
_KERNEL_KEYS = (
    "attn_implementation",
    "attn_implementation_internal",
    "experts_implementation",
    "experts_implementation_internal",
)


def reason(error: Exception) -> str:
    """Return a library's error in one line, or `REFUSED` where the error is that the checkpoint's own code was not
    run."""
    return REFUSED if "trust_remote_code" in str(error) else short(error)


def check_text_model(name_or_path: str | Path) -> None:
    """Check that transformers reads the configuration of a text model without code from its repository. ValueError
    otherwise.

    open_clip builds such a model by name (`hf_model_name`) and cannot be told not to ask for its code.
    """
    from transformers import MODEL_MAPPING, AutoConfig

    config: Any = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    own = vars(config).get("auto_map") or {}
    if "AutoModel" in own and type(config) not in MODEL_MAPPING:
        raise ValueError(f"{name_or_path}: {REFUSED}")


def check_kernels(config: Any, path: Path) -> None:
    """Check that a configuration names no compute kernels of the hub, which are code too. ValueError otherwise.

    transformers fetches and runs `owner/name` where a configuration, or a part of one, has it as its attention or
    experts.
    """
    if isinstance(config, list):
        for part in config:
            check_kernels(part, path)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        names = [value] if isinstance(value, str) else list(value.values()) if isinstance(value, dict) else []
        if key.strip("_") in _KERNEL_KEYS and any("/" in str(name) for name in names):
            raise ValueError(
                f"{path}: {key} is {value!r}, which is code from the hub and never run; remove the entry, "
                "then the library's own is taken"
            )
        check_kernels(value, path)
