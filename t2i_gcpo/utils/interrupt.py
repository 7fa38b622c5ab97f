"""Signals as requests: the work at hand is finished first.

Ctrl-C (SIGINT), SIGTERM, which schedulers send, and SIGHUP, which comes when the terminal is gone, ask for an end;
SIGUSR1, with which Slurm warns of one, asks for a checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

CTRL_C, TERMINATE, HANG_UP = "Ctrl-C", "SIGTERM", "SIGHUP"
#: What asked for an end -> the exit status of a command that ended for it.
STATUS: dict[str, int] = {
    CTRL_C: 128 + signal.SIGINT,
    TERMINATE: 128 + signal.SIGTERM,
    HANG_UP: 128 + signal.SIGHUP,
}


@contextmanager
def on_interrupt(request: Callable[[str], object]) -> Iterator[None]:
    """Inside, the first Ctrl-C and every SIGTERM and SIGHUP call `request` with their name.

    A second Ctrl-C interrupts as usual. The others never interrupt at once: schedulers send SIGTERM more than once, and
    kill what takes too long. Nothing changes where a signal is ignored (Ctrl-C in a job in the background of a script,
    SIGHUP under `nohup`) or cannot arrive (in another thread than the main one).
    """
    with contextlib.ExitStack() as handlers:

        def ctrl_c(*_: object) -> None:
            signal.signal(signal.SIGINT, previous)
            request(CTRL_C)

        previous = handlers.enter_context(_handling(signal.SIGINT, ctrl_c))
        handlers.enter_context(_handling(signal.SIGTERM, lambda *_: request(TERMINATE)))
        handlers.enter_context(_handling(signal.SIGHUP, lambda *_: request(HANG_UP)))
        yield


@contextmanager
def on_save_request(request: Callable[[], object]) -> Iterator[None]:
    """Inside, a SIGUSR1 calls `request`, where it would else end the process.

    Nothing changes where it is ignored or cannot arrive.
    """
    with _handling(signal.SIGUSR1, lambda *_: request()):
        yield


class Terminated(BaseException):
    """Says that a SIGTERM ended what is no step of a training and can be done again."""

    by: ClassVar[str] = TERMINATE
    """The signal's name."""


class HungUp(Terminated):
    """Says that a SIGHUP did."""

    by: ClassVar[str] = HANG_UP


#: What asked for an end -> the error that ends everything around the work that was asked.
ERRORS: dict[str, type[BaseException]] = {CTRL_C: KeyboardInterrupt, TERMINATE: Terminated, HANG_UP: HungUp}


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Inside, a SIGTERM raises `Terminated` and a SIGHUP `HungUp`, where they would else kill.

    So the caller can say how to go on. While such an error is under way or handled, further signals do nothing:
    schedulers send more than one. Nothing changes where a signal is ignored or cannot arrive.
    """

    def end(kind: type[Terminated]) -> None:
        if not isinstance(sys.exc_info()[1], Terminated):
            raise kind

    with (
        _handling(signal.SIGTERM, lambda *_: end(Terminated)),
        _handling(signal.SIGHUP, lambda *_: end(HungUp)),
    ):
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and SIGHUP wait, and come after; they are dropped where an error leaves.

    So none is raised in the middle of an exchange with other processes, of which each would then do another part.
    Nothing changes where a signal is ignored, ends the process by itself, or cannot arrive.
    """
    waiting: list[signal.Signals] = []
    with contextlib.ExitStack() as handlers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(signal.getsignal(number)):
                handlers.enter_context(_handling(number, lambda *_, number=number: waiting.append(number)))
        yield
    for number in waiting:
        signal.raise_signal(number)


@contextmanager
def _handling(number: signal.Signals, handler: Callable[..., object]) -> Iterator[Any]:
    """Inside, `handler` gets a signal. Yields what handled it before, and handles it again after."""
    previous = signal.getsignal(number)
    handled = previous not in (None, signal.SIG_IGN)
    try:
        if handled:
            signal.signal(number, handler)
    except ValueError:  # not the main thread
        handled = False
    try:
        yield previous
    finally:
        if handled:
            signal.signal(number, previous)
