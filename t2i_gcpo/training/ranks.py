"""The processes that torchrun started: who is who, which device is whose, and the exchange of small things.

Everything small goes over gloo on the CPU as (error, item): a process that failed sends its error in the place of what
the others wait for, so that all of them end together with the same message, which names the rank. A process that is
gone, or hangs for longer than the time-out, is found by a roll call over torchrun's store, and named too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rewards.models.device import short
from t2i_gcpo.training.cards import check_cards, own_card
from t2i_gcpo.training.launch import Launch, meet, read_launch
from t2i_gcpo.training.options import RanksConfig
from t2i_gcpo.utils.device import is_out_of_memory, pick_device
from t2i_gcpo.utils.interrupt import HungUp, Terminated, held_back
from t2i_gcpo.utils.processes import ALONE, Processes

Item = TypeVar("Item")

#: Seconds that the processes have to answer when one of them is missed.
ROLL_CALL = 5.0
GO_ON = "the run goes on from its newest checkpoint with --resume"
#: Name in torchrun's store, before a rank, of why that process left an exchange.
LEFT = "t2i_gcpo/left/"
#: Errors that keep their kind on every process: they are messages for the user, or requests.
_KINDS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        ValueError,
        OSError,
        ImportError,
        FloatingPointError,
        torch.OutOfMemoryError,
        KeyboardInterrupt,
        HungUp,  # before what it is a kind of
        Terminated,
    )
}


class RankFailed(RuntimeError):
    """Says which process failed, where its error is no message for the user."""


class LostRank(ConnectionError):
    """Says which process is gone, or which ones hang."""


class Ranks:
    """The processes of one torchrun. Make it with `torchrun()`."""

    def __init__(self, timeout: float, launch: Launch) -> None:
        self.rank, self.count = launch.rank, launch.count
        self.local_rank, self.local_count = launch.local_rank, launch.local_count
        self.timeout = timeout
        self._small = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._shared: BaseException | None = None  # the error that all processes know of
        self.speaks = self.rank == 0
        """Whether this process tells the user of an error that all know of."""
        self._names = self.gather(f"rank {self.rank} (process {os.getpid()} on {socket.gethostname()})")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return this process's device: with CUDA the card of its LOCAL_RANK.

        ValueError where there are fewer cards than processes, or the name is that of one card for several.
        """
        wanted = pick_device(name)
        if wanted.type != "cuda":
            return wanted
        device = torch.device("cuda", own_card(wanted, self.local_rank, self.local_count, torch.cuda.device_count()))
        torch.cuda.set_device(device)
        check_cards(self.gather(f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"))
        return device

    def mesh(self, device: torch.device) -> DeviceMesh:
        """Return the mesh replicate x shard: optimiser states are sharded within a machine, and each has them all.

        One machine, or machines with different numbers of processes: sharded over all of them.
        """
        even = len(set(self.gather(self.local_count))) == 1
        shard = self.local_count if even else self.count
        return init_device_mesh(device.type, (self.count // shard, shard), mesh_dim_names=("replicate", "shard"))

    def part(self, n: int) -> slice:
        size, more = divmod(n, self.count)
        start = self.rank * size + min(self.rank, more)
        return slice(start, start + size + (self.rank < more))

    # -- the exchange --------------------------------------------------------------------------------------------------

    def gather(self, item: Item) -> list[Item]:
        """Return the item of each process. Raises the error of a process that failed, on all of them."""
        answers: list[Any] = [None] * self.count
        with held_back():
            with self.collective():
                dist.all_gather_object(answers, (None, item), group=self._small)
            if any(error is not None for error, _ in answers):
                raise self._error([error for error, _ in answers], None)
        return [answer for _, answer in answers]

    def wait(self) -> None:
        self.gather(None)

    def sum(self, values: Tensor) -> Tensor:
        total: Tensor = torch.stack(self.gather(values.detach().cpu())).sum(dim=0)
        return total.to(values.device)

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def from_main(self, item: Item) -> Item:
        return self.gather(item if self.is_main else None)[0]  # type: ignore[return-value]

    # -- failures ------------------------------------------------------------------------------------------------------

    def failed(self, error: BaseException) -> BaseException:
        if error is self._shared:
            return error
        answers: list[Any] = [None] * self.count
        try:
            with held_back(), self.collective():
                dist.all_gather_object(answers, (_described(error), None), group=self._small)
        except LostRank as lost:
            return lost
        return self._error([answer for answer, _ in answers], error)

    def _error(self, errors: list[tuple[str, str] | None], own: BaseException | None) -> BaseException:
        """Return the error that all processes raise. errors: kind and text of each process's, None where it is well.

        It names the processes of each sentence. Of several tracebacks it shows one.
        """
        by_error: dict[tuple[str, str], list[int]] = {}
        for rank, error in enumerate(errors):
            if error is not None:
                by_error.setdefault(error, []).append(rank)
        said = [(ranks, text) for (kind, text), ranks in by_error.items() if kind]
        traced = [(ranks, text) for (kind, text), ranks in by_error.items() if not kind]
        if traced:
            said.append((sorted(rank for ranks, _ in traced for rank in ranks), traced[0][1]))
        everywhere = len(by_error) == 1 and None not in errors
        text = said[0][1] if everywhere else "; ".join(f"{_named(ranks)}: {text}" for ranks, text in said)
        kind = next(iter(by_error))[0]
        self._shared = _KINDS.get(kind, RankFailed)(text)
        self._shared.__cause__ = own
        return self._shared

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """Inside, an exchange that fails becomes a LostRank, which says who is missing."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._roll_call(error)

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """Inside, an error of this process alone ends all, with its own text: the others wait for tensors, not for it.

        They hear of it from torchrun's store, when this process is gone.
        """
        try:
            yield
        except LostRank:
            raise
        except Exception as error:
            what = (
                f"ran out of memory ({short(error)})" if is_out_of_memory(error) else f"failed:\n{_described(error)[1]}"
            )
            text = f"{self._names[self.rank]}, while the processes exchanged gradients or weights, {what}; {GO_ON}"
            with contextlib.suppress(RuntimeError):
                _store().set(f"{LEFT}{self.rank}", text)
            self._shared, self.speaks = LostRank(text), True
            raise self._shared from error

    def _roll_call(self, error: RuntimeError) -> NoReturn:
        store = _store()
        deadline = time.monotonic() + ROLL_CALL
        missing = set(range(self.count))
        with contextlib.suppress(RuntimeError):  # the store may be gone with the machine that it was on
            left = [rank for rank in range(self.count) if store.check([f"{LEFT}{rank}"])]
            if left:
                self._shared, self.speaks = LostRank(store.get(f"{LEFT}{left[0]}").decode()), False
                raise self._shared from error
            store.set(f"t2i_gcpo/alive/{self.rank}", "1")
            while missing and time.monotonic() < deadline:
                missing = {rank for rank in missing if not store.check([f"t2i_gcpo/alive/{rank}"])}
                time.sleep(0.1)
        names = ", ".join(self._names[rank] for rank in sorted(missing - {self.rank}))
        reason = str(error).split("\n")[0]
        what = f"{names} is gone, or hangs" if names else "the processes lost one another"
        self._shared = LostRank(f"{what} ({reason}); {GO_ON}. A process that was killed may have run out of memory")
        self.speaks = self.rank == min(set(range(self.count)) - missing, default=self.rank)
        raise self._shared from error


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _named(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _described(error: BaseException) -> tuple[str, str]:
    """Return kind and text of an error; of one that is no message for the user the text is its traceback."""
    kind = next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "")
    return kind, str(error) if kind else "".join(traceback.format_exception(error))


@contextlib.contextmanager
def torchrun(*, timeout: float = RanksConfig.timeout, quiet: bool = False) -> Iterator[Processes]:
    """Yield the processes that torchrun started, and end them together; without torchrun this one is alone.

    timeout: seconds that one waits for another before all end. quiet: of an error that all know of only one speaks, and
    the others leave with SystemExit. ValueError and ConnectionError as of `read_launch` and
    `meet`.
    """
    launch = read_launch()
    if launch is None:
        yield ALONE
        return
    meet(launch, timeout)
    try:
        ranks = Ranks(timeout, launch)
        try:
            yield ranks
            ranks.wait()  # one that failed after the others were done is heard here
        except (Exception, KeyboardInterrupt, Terminated) as error:
            last = ranks.failed(error)
            if quiet and not ranks.speaks:
                sys.exit(2 if isinstance(last, (ValueError, OSError, ImportError)) else 1)
            if last is error:
                raise
            raise last from error
    finally:
        dist.destroy_process_group()
