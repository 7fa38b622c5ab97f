"""Checks images, cuts batches of a bounded size, and keeps features of texts: what scorers with a model share.

B images, H, W their sides, D feature width.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

#: Texts whose features are kept, the latest used ones: 1,024 features of 1,024 numbers are 4 MiB.
MOST_TEXTS = 16_384


def check_images(images: Tensor, name: str) -> None:
    """Raise ValueError unless images are [B, 3, H, W] uint8."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        given = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"reward {name!r} takes uint8 images [B, 3, H, W]; got {given}")


def check_prompts(images: Tensor, prompts: Sequence[str], name: str) -> None:
    """Raise ValueError unless each image has a prompt."""
    if len(prompts) != len(images):
        raise ValueError(f"reward {name!r} got {len(images)} images and {len(prompts)} prompts; one prompt an image")


def check_batch_size(batch_size: int, whose: str) -> None:
    """Raise ValueError for a batch size below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size of {whose} is {batch_size}; it must be at least 1")


def in_batches(function: Callable[..., Tensor], *rows: Sequence[Any] | Tensor, batch_size: int, name: str) -> Tensor:
    """Call `function` with at most `batch_size` rows at a time, and join its results along the rows.

    ValueError: batch_size below 1, or a batch that does not fit in memory (says which size to try).
    """
    check_batch_size(batch_size, f"reward {name!r}")
    results = []
    for start in range(0, len(rows[0]), batch_size):
        part = [row[start : start + batch_size] for row in rows]
        with memory_errors(name, len(part[0])):
            results.append(function(*part))
    return torch.cat(results)


class TextCache:
    """Keeps features of texts on the scorer's device, so that a prompt is encoded once."""

    def __init__(self, encode: Callable[[list[str]], Tensor], *, batch_size: int, name: str) -> None:
        """Keep what `encode` makes of N texts: [N, ...] features."""
        self.encode, self.batch_size, self.name = encode, batch_size, name
        self.encoded = 0
        """Texts that went through `encode` so far."""
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return features [B, ...] of B texts, in their order."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if missing:
            fresh = in_batches(self.encode, missing, batch_size=self.batch_size, name=self.name)
            self._kept.update(zip(missing, fresh, strict=True))
            self.encoded += len(missing)
        rows = []
        for text in texts:
            self._kept.move_to_end(text)
            rows.append(self._kept[text])
        while len(self._kept) > MOST_TEXTS:
            self._kept.popitem(last=False)
        return torch.stack(rows)


@contextmanager
def memory_errors(name: str, rows: int) -> Iterator[None]:
    """Turn an out-of-memory error into a ValueError that says which batch to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = f"try batch_size {max(rows // 2, 1)}" if rows > 1 else "take a smaller model, or another device"
        raise ValueError(f"reward {name!r} ran out of memory with a batch of {rows}; {advice}") from error


def require(package: str, name: str, extra: str = "rewards") -> Any:
    """Import the module `package`; ImportError with the extra to install, where it is missing."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise ImportError(
            f"reward {name!r} needs {error.name}; install it: pip install 't2i-gcpo[{extra}]'", name=error.name
        ) from error
