"""How torchrun started a process is read from its environment; what is wrong with it is said in one line."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist

from t2i_gcpo.training.launch import Launch, heard_once, is_first, meet, read_launch
from t2i_gcpo.training.options import RanksConfig

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WHOLE = dict(zip(NAMES, ("3", "4", "1", "2", "10.0.0.1", "29500"), strict=True))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def given(environment: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in {**WHOLE, **changes}.items():
        environment.setenv(name, value)


def test_torchruns_environment(environment: pytest.MonkeyPatch) -> None:
    assert read_launch() is None and is_first()
    given(environment)
    assert read_launch() == Launch(3, 4, 1, 2, "10.0.0.1", 29500) and not is_first()
    given(environment, WORLD_SIZE="1", RANK="0")
    assert read_launch() is None


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_variable_that_is_missing(missing: str, environment: pytest.MonkeyPatch) -> None:
    given(environment)
    environment.delenv(missing)
    with pytest.raises(ValueError, match=f"WORLD_SIZE is 4, and {missing} is not set; start with torchrun"):
        read_launch()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two', which is no whole number"),
        ("MASTER_PORT", "", "MASTER_PORT is '', which is no whole number"),
        ("RANK", "4", "RANK is 4, and WORLD_SIZE is 4"),
        ("RANK", "-1", "RANK is -1, and WORLD_SIZE is 4"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is 0; it must be at least 1"),
        ("LOCAL_RANK", "2", "LOCAL_RANK is 2, and LOCAL_WORLD_SIZE is 2"),
        ("MASTER_PORT", "99999", "MASTER_PORT is 99999; a port is a number from 1 to 65535"),
    ],
)
def test_a_value_that_is_none_of_torchruns(
    name: str, value: str, message: str, environment: pytest.MonkeyPatch
) -> None:
    given(environment, **{name: value})
    with pytest.raises(ValueError, match=message):
        read_launch()


@pytest.mark.parametrize("size", [None, "1"])
def test_a_rank_without_others_speaks_and_is_refused(size: str | None, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RANK", "1")
    if size is not None:
        environment.setenv("WORLD_SIZE", size)
    with pytest.raises(ValueError, match="a wrong option"), heard_once():
        raise ValueError("a wrong option")
    with pytest.raises(ValueError, match=f"RANK is 1, and WORLD_SIZE is {size or 'not set'}; start with torchrun"):
        read_launch()


def meeting(environment: pytest.MonkeyPatch, rank: int) -> Launch:
    """Return how one of two processes is started whose other one never comes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given(environment, RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    made = read_launch()
    assert made is not None
    return made


def test_a_process_that_never_comes(environment: pytest.MonkeyPatch) -> None:
    main = meeting(environment, 0)
    message = f"not all of the 2 processes came to 127.0.0.1:{main.port} in 1 seconds .*1/2 clients joined.*; start all"
    with pytest.raises(ConnectionError, match=message):
        meet(main, 1.0)


def test_a_main_process_that_is_not_there(environment: pytest.MonkeyPatch) -> None:
    other = meeting(environment, 1)
    with pytest.raises(ConnectionError, match=f"rank 1 cannot reach the main process at 127.0.0.1:{other.port}"):
        meet(other, 1.0)


def test_cuda_is_the_own_card_before_anything_is_loaded(environment: pytest.MonkeyPatch) -> None:
    """Scorers on "cuda" are loaded before the generator, which names its card."""
    done: list[object] = []
    environment.setattr(torch.cuda, "is_available", lambda: True)
    environment.setattr(torch.cuda, "device_count", lambda: 2)
    environment.setattr(torch.cuda, "set_device", done.append)

    def begin(*given: object, **options: object) -> None:
        done.append("meet")
        raise dist.DistStoreError("1/4 clients joined")

    environment.setattr(dist, "rendezvous", begin)
    for local_rank in (1, 2):  # there is no third card: the generator's device says so
        with pytest.raises(ConnectionError):
            meet(Launch(3, 4, local_rank, 3, "10.0.0.1", 29500), 1.0)
    assert done == [1, "meet", "meet"]


def test_a_time_out_that_no_clock_holds() -> None:
    with pytest.raises(ValueError, match=r"ranks.timeout is 1e\+15 seconds; it must be at most a year, 31536000"):
        RanksConfig(timeout=1e15)
    RanksConfig(timeout=365 * 24 * 3600.0)
