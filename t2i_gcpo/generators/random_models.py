"""Names models of the published shapes with random weights, for benchmarks, dry runs and plans without a hub.

A name is "random:SHAPE", e.g. "random:janus-pro-1b", and may cut the model and say its seed:
"random:janus-pro-1b:layers=2,width=64,seed=1". Each adapter's `random_model.py` makes the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

PREFIX = "random:"

#: Shape -> model type of its adapter.
SHAPES: dict[str, str] = {
    "janus-pro-1b": "janus",
    "janus-pro-7b": "janus",
    "janus-1.3b": "janus",
    "amused-512": "amused",
    "amused-256": "amused",
}

#: A cut width is a multiple of this: the image decoder's group norms have 32 groups.
WIDTH_STEP = 32

SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class RandomModel:
    """Says which model is made. ValueError for an unknown shape or a size that it cannot have."""

    shape: str
    layers: int = 0
    """Layers of the policy; 0: as published."""
    width: int = 0
    """Hidden width of the policy, with the other parts made small; 0: as published."""
    seed: int = 0
    """Seed of the weights."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"there is no shape {self.shape!r}; write random: and one of {', '.join(SHAPES)}")
        if self.layers < 0:
            raise ValueError(f"layers is {self.layers}; it must be at least 1, or 0 for all")
        if self.width < 0 or self.width % WIDTH_STEP:
            raise ValueError(
                f"width is {self.width}; it must be a multiple of {WIDTH_STEP}, or 0 for the published one"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"the seed is {self.seed}; it must be from 0 to 2**63 - 1")

    @property
    def kind(self) -> str:
        """Return the model type of its adapter."""
        return SHAPES[self.shape]

    @property
    def name(self) -> str:
        """Return the name that `parse` makes this of."""
        cuts = ",".join(f"{key}={value}" for key, value in asdict(self).items() if key != "shape" and value)
        return f"{PREFIX}{self.shape}" + (f":{cuts}" if cuts else "")

    def breadth(self, published: int) -> int:
        """Return the hidden width to make. ValueError: more than the published model has."""
        if self.width > published:
            raise ValueError(f"width is {self.width}; {self.shape} has {published}, and it can only be cut")
        return self.width or published

    def depth(self, published: int) -> int:
        """Return the layers to make. ValueError: more than the published model has."""
        if self.layers > published:
            raise ValueError(f"layers is {self.layers}; {self.shape} has {published}, and they can only be cut")
        return self.layers or published


def heads(width: int, each: int) -> int:
    """Return how many heads a hidden width has: the most of at least `each` that divide it, or one."""
    return next((count for count in range(width // each, 1, -1) if width % count == 0), 1)


def parse(name: str, *, layers: int = 0, width: int = 0) -> RandomModel:
    """Make a `RandomModel` of a name that begins with "random:"; the options go before what the name says.

    ValueError for what is no such name.
    """
    shape, _, cuts = name.removeprefix(PREFIX).partition(":")
    sizes: dict[str, int] = {}
    for cut in filter(None, cuts.split(",")):
        key, _, value = cut.partition("=")
        if key not in ("layers", "width", "seed") or not value.isascii() or not value.isdigit():
            raise ValueError(
                f"{name!r} has the part {cut!r}; after the second colon stand layers=N, "
                "width=N or seed=N, with commas between them"
            )
        sizes[key] = int(value)
    asked = {key: value for key, value in (("layers", layers), ("width", width)) if value}
    return replace(RandomModel(shape, **sizes), **asked)


def check_uncut(name: str, *, layers: int, width: int) -> None:
    """Raise ValueError where sizes are given for a checkpoint whose weights are trained."""
    if layers or width:
        raise ValueError(
            f"generator.layers and generator.width cut a model with random weights, and {name} has trained ones; leave "
            "them out, or write e.g. random:janus-pro-1b"
        )


@contextmanager
def fresh_weights(device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[None]:
    """Make modules on the device in the dtype, by the seed; torch's own random state is as before afterwards."""
    before = torch.get_default_dtype()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def byte_tokenizer(*, extra: dict[str, str], begins: bool, ends: bool, padding_side: str, length: int) -> Any:
    """Make a tokenizer whose tokens are bytes: it needs no hub, knows every text, and takes a token a byte.

    extra: further special tokens by name. begins, ends: whether BOS stands first, EOS last. length: most tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [*SPECIAL.values(), *extra.values()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    bos, eos = SPECIAL["bos_token"], SPECIAL["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} " * begins + "$A" + f" {eos}" * ends,
        special_tokens=[(token, vocabulary[token]) for token in (bos, eos)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **SPECIAL,
        **({"extra_special_tokens": extra} if extra else {}),
        padding_side=padding_side,
        model_max_length=length,
    )
