"""Reads and checks how torchrun started this process, and lets all processes meet."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from t2i_gcpo.training.cards import take_card

REMEDY = "start with torchrun, which sets them all"
#: Numbers that torchrun gives a process: the name of one -> the name of the number that it is below.
_BELOW = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "LOCAL_WORLD_SIZE"}
_PORTS = range(1, 2**16)


@dataclass(frozen=True)
class Launch:
    """Says which of torchrun's processes this one is, and where they meet."""

    rank: int
    count: int
    local_rank: int
    local_count: int
    address: str
    port: int


def read_launch() -> Launch | None:
    """Return how torchrun started this process; None where it is alone. ValueError where the environment is not whole.

    A RANK other than 0 without a WORLD_SIZE is refused: its process would train beside others that it knows nothing of.
    """
    if _is_alone():
        if os.environ.get("RANK", "0") != "0":
            raise ValueError(
                f"RANK is {os.environ['RANK']}, and WORLD_SIZE is {os.environ.get('WORLD_SIZE', 'not set')}; {REMEDY}, "
                "or unset RANK for one process"
            )
        return None
    wanted = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in wanted if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {', '.join(missing)} is not set; {REMEDY}, or unset "
            "WORLD_SIZE for one process"
        )
    numbers = {name: _number(name) for name in ("WORLD_SIZE", *wanted) if name != "MASTER_ADDR"}
    if numbers["WORLD_SIZE"] < 1:
        raise ValueError(f"WORLD_SIZE is {numbers['WORLD_SIZE']}; it must be at least 1: {REMEDY}")
    for name, limit in _BELOW.items():
        if not 0 <= numbers[name] < numbers[limit]:
            raise ValueError(
                f"{name} is {numbers[name]}, and {limit} is {numbers[limit]}; it must be "
                f"at least 0 and below that: {REMEDY}"
            )
    if numbers["MASTER_PORT"] not in _PORTS:
        raise ValueError(f"MASTER_PORT is {numbers['MASTER_PORT']}; a port is a number from 1 to {_PORTS[-1]}")
    return Launch(
        rank=numbers["RANK"],
        count=numbers["WORLD_SIZE"],
        local_rank=numbers["LOCAL_RANK"],
        local_count=numbers["LOCAL_WORLD_SIZE"],
        address=os.environ["MASTER_ADDR"],
        port=numbers["MASTER_PORT"],
    )


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError as error:
        raise ValueError(f"{name} is {os.environ[name]!r}, which is no whole number; {REMEDY}") from error


def meet(launch: Launch, timeout: float) -> None:
    """Begin the process group, when all processes are there. timeout: seconds that one waits for the others.

    "cuda" is this process's own card from here on, for the scorers that are loaded before the generator, too.
    ValueError where the port is taken; ConnectionError where not all of them come.
    """
    take_card(launch.local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    wait, where = timedelta(seconds=timeout), f"{launch.address}:{launch.port}"
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=wait))
        # torchrun keeps its store when it starts the processes again, and in it the addresses of those that are gone.
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=wait)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise ValueError(
                f"port {launch.port} is in use on {launch.address}; give torchrun another "
                "(--master-port, or --standalone on one machine, which finds a free one)"
            ) from error
        raise ConnectionError(
            f"rank {launch.rank} cannot reach the main process at {where} ({_first_line(error)}); start that one, too, "
            "and name its machine and port alike for all (--master-addr, --master-port)"
        ) from error
    except dist.DistStoreError as error:
        raise ConnectionError(
            f"not all of the {launch.count} processes came to {where} in {timeout:g} seconds ({_first_line(error)}); "
            "start all of them, each with a RANK of its own, or let them wait longer (--ranks.timeout)"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(".")


def _is_alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1"


def is_first() -> bool:
    """Return whether this is the main process, or the only one, before the processes know one another."""
    return _is_alone() or os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def heard_once() -> Iterator[None]:
    """Inside, what every process would print is printed by the main one."""
    with contextlib.ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except ValueError:
            if is_first():
                raise
            sys.exit(2)
