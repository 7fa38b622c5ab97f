"""Finds the configuration of a checkpoint, and nothing of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t2i_gcpo.generators import random_models
from t2i_gcpo.generators.checkpoints import ADAPTER, EMBEDDED, locate, tuned
from t2i_gcpo.generators.integrity import read_object
from t2i_gcpo.generators.random_models import RandomModel

#: Repository of the hub -> the published shape that its configuration has.
PUBLISHED: dict[str, str] = {
    "deepseek-community/Janus-Pro-1B": "janus-pro-1b",
    "deepseek-community/Janus-Pro-7B": "janus-pro-7b",
    "deepseek-ai/Janus-Pro-1B": "janus-pro-1b",
    "deepseek-ai/Janus-Pro-7B": "janus-pro-7b",
    "deepseek-ai/Janus-1.3B": "janus-1.3b",
    "amused/amused-512": "amused-512",
    "amused/amused-256": "amused-256",
}


@dataclass(frozen=True)
class Source:
    """Says where a model's configuration comes from: a published shape, or a local folder."""

    kind: str
    """The model type, "janus" or "amused"."""
    note: str
    """Where the sizes are from, in words."""
    random: RandomModel | None = None
    folder: Path | None = None
    adapter_rank: int = 0
    """Rank of the LoRA adapters that the checkpoint comes with; 0: it has none."""
    published: bool = False
    """Whether the shape stands for a checkpoint of the hub, whose tokenizer is not here."""


def find(name: str, *, layers: int = 0, width: int = 0, revision: str | None = None, hub: bool = False) -> Source:
    """Find the configuration of a checkpoint's name.

    hub: look on the hub as well, and download the checkpoint; without it a published shape stands for a repository.
    ValueError for a repository of the hub whose shape is not known, and for what no adapter reads.
    """
    if name.startswith(random_models.PREFIX):
        random = random_models.parse(name, layers=layers, width=width)
        return Source(random.kind, f"{random.name}: random weights of a published shape", random=random)
    random_models.check_uncut(name, layers=layers, width=width)
    local = hub or name in EMBEDDED or name in tuned() or Path(name).expanduser().is_dir()
    if not local and name in PUBLISHED:
        random = RandomModel(PUBLISHED[name])
        note = f"the published shape of {name}, which is not on this machine and was not looked for on the hub"
        return Source(random.kind, note, random=random, published=True)
    if not local:
        raise ValueError(
            f"{name!r} is no folder and no shape that a plan knows; a plan looks for nothing on the hub: give a local "
            f"folder, or one of {', '.join([*EMBEDDED, *PUBLISHED])}"
        )
    checkpoint = locate(name, revision=revision)
    rank = 0 if checkpoint.adapter is None else read_object(checkpoint.adapter / ADAPTER).get("r")
    rank = rank if isinstance(rank, int) else 0  # what is wrong with it is said when it is loaded
    if checkpoint.random is not None:
        return Source(checkpoint.model_type, f"the base of {name}", random=checkpoint.random, adapter_rank=rank)
    note = f"the configuration in {checkpoint.folder}"
    return Source(checkpoint.model_type, note, folder=checkpoint.folder, adapter_rank=rank)
