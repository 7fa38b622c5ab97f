"""The processes that make one run together, as one of them sees it; and the null object for a process that is alone.

What is exchanged here is small: flags, counts, scores, texts. `training/ranks.py` has the same for torchrun's
processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from t2i_gcpo.utils.device import pick_device

Item = TypeVar("Item")


class Processes(Protocol):
    """What a run asks of its processes. Every method that exchanges anything is called by all, in the same order."""

    rank: int
    """The number of this process, 0 that of the main one."""
    count: int
    """Processes of the run."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks."""

    def device(self, name: str) -> torch.device:
        """Return this process's device. ValueError where it cannot have it."""

    def part(self, n: int) -> slice:
        """Return which of n things are this process's: consecutive ones, as many as the others have, or one more."""

    def gather(self, item: Item) -> list[Item]:
        """Return the item of each process, in the order of their ranks."""

    def wait(self) -> None:
        """Return when every process is here."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a small tensor over the processes, on its own device."""

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process."""

    def from_main(self, item: Item) -> Item:
        """Return the main process's item."""

    def failed(self, error: BaseException) -> BaseException:
        """Tell the other processes of an error of this one, and return the error that ends them all.

        An error that all know of is returned as it is.
        """


class Alone:
    """The only process of a run: there is nobody to exchange anything with."""

    rank, count, is_main = 0, 1, True

    def device(self, name: str) -> torch.device:
        return pick_device(name)

    def part(self, n: int) -> slice:
        return slice(0, n)

    def gather(self, item: Item) -> list[Item]:
        return [item]

    def wait(self) -> None:
        """Return at once."""

    def sum(self, values: Tensor) -> Tensor:
        return values

    def any(self, flag: bool) -> bool:
        return flag

    def from_main(self, item: Item) -> Item:
        return item

    def failed(self, error: BaseException) -> BaseException:
        return error


ALONE: Processes = Alone()


def joined(processes: Processes, items: Iterable[Item]) -> list[Item]:
    """Return the items of all processes, in the order of their ranks."""
    return [item for part in processes.gather(list(items)) for item in part]


def all_rows(processes: Processes, values: Tensor) -> Tensor:
    """Return the rows [n, ...] of all processes, in the order of their ranks, on the device of `values`."""
    if processes.count == 1:
        return values
    return torch.cat([part.to(values.device) for part in processes.gather(values.cpu())])


def mean(processes: Processes, values: dict[str, float], weight: float) -> dict[str, float]:
    """Return the means over the processes, each value with its process's weight; a weight of 0 leaves it out."""
    if processes.count == 1:
        return values
    shares: list[tuple[dict[str, Any], float]] = [share for share in processes.gather((values, weight)) if share[1] > 0]
    total = sum(share for _, share in shares)
    names = dict.fromkeys(name for part, _ in shares for name in part)
    return {name: sum(part[name] * share for part, share in shares) / total for name in names}
