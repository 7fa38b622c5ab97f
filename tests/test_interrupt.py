"""Signals as requests: which are passed on, which interrupt, and that the handlers of before come back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from t2i_gcpo.utils.interrupt import on_interrupt, on_save_request


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    numbers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGUSR1: signal.SIG_DFL,
    }
    previous = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    assert {number: signal.getsignal(number) for number in numbers} == numbers, "the handlers of before are not back"
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_the_first_ctrl_c_is_a_request_and_the_second_interrupts() -> None:
    asked: list[str] = []
    with on_interrupt(asked.append):
        signal.raise_signal(signal.SIGINT)
        assert asked == ["Ctrl-C"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert asked == ["Ctrl-C"]


def test_a_sigterm_is_a_request_however_often_it_comes() -> None:
    asked: list[str] = []
    with on_interrupt(asked.append):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
    assert asked == ["SIGTERM", "SIGTERM", "Ctrl-C", "SIGTERM"]


def test_a_sigusr1_asks_for_a_checkpoint_and_the_inner_one_gets_it() -> None:
    asked: list[int] = []
    with on_save_request(lambda: asked.append(1)):
        with on_save_request(lambda: asked.append(2)):
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
    assert asked == [2, 1]


def test_what_is_ignored_stays_ignored_and_other_threads_change_nothing() -> None:
    asked: list[str] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with on_interrupt(asked.append):
        signal.raise_signal(signal.SIGINT)
        assert asked == [] and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def elsewhere() -> None:
        with on_interrupt(asked.append), on_save_request(lambda: asked.append("save")):
            asked.append("ran")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert asked == ["ran"]
