"""Signals as requests: which are passed on, which interrupt, and that the handlers of before come back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from t2i_gcpo.utils.interrupt import (
    STATUS,
    HungUp,
    Terminated,
    ended_by_signal,
    held_back,
    on_interrupt,
    on_save_request,
)


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    numbers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_are_requests_however_often_they_come(number: signal.Signals) -> None:
    asked: list[str] = []
    with on_interrupt(asked.append):
        for each in (number, number, signal.SIGINT, number):
            signal.raise_signal(each)
    assert asked == [number.name, number.name, "Ctrl-C", number.name]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_what_can_be_done_again(number: signal.Signals, status: int) -> None:
    with pytest.raises(Terminated) as end, ended_by_signal():
        signal.raise_signal(number)
    assert end.value.by == number.name and STATUS[end.value.by] == status


def test_further_signals_do_not_disturb_the_end_that_the_first_one_began() -> None:
    handled = False
    with ended_by_signal():
        try:
            try:
                signal.raise_signal(signal.SIGHUP)
            finally:
                signal.raise_signal(signal.SIGTERM)
        except Terminated as end:
            signal.raise_signal(signal.SIGTERM)
            handled = end.by == "SIGHUP"
        assert handled
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated), (signal.SIGHUP, HungUp)],
)
def test_what_is_held_back_comes_after_and_an_error_before_it(
    number: signal.Signals, error: type[BaseException]
) -> None:
    done: list[int] = []

    def work(divisor: int) -> None:
        with held_back():
            signal.raise_signal(number)
            done.append(1 // divisor)

    with ended_by_signal():
        with pytest.raises(error):
            work(1)
        with pytest.raises(ZeroDivisionError):
            work(0)
    assert done == [1]


def test_what_ends_the_process_by_itself_is_not_held_back() -> None:
    with held_back():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_sigusr1_asks_for_a_checkpoint_and_the_inner_one_gets_it() -> None:
    asked: list[int] = []
    with on_save_request(lambda: asked.append(1)):
        with on_save_request(lambda: asked.append(2)):
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
    assert asked == [2, 1]


def test_what_is_ignored_stays_ignored_and_other_threads_change_nothing() -> None:
    asked: list[str] = []
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(number, signal.SIG_IGN)
        for inside in (on_interrupt(asked.append), ended_by_signal()):
            with inside:
                signal.raise_signal(number)
                assert asked == [] and signal.getsignal(number) == signal.SIG_IGN
        signal.signal(number, handler)

    def elsewhere() -> None:
        with on_interrupt(asked.append), on_save_request(lambda: asked.append("save")):
            asked.append("ran")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert asked == ["ran"]
