"""Signals as requests: the work at hand is finished first.

Ctrl-C (SIGINT) and SIGTERM, which schedulers send, ask for an end; SIGUSR1, with which Slurm warns of one, asks for a
checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CTRL_C, TERMINATE = "Ctrl-C", "SIGTERM"
#: What asked for an end -> the exit status of a command that ended for it.
STATUS: dict[str, int] = {CTRL_C: 128 + signal.SIGINT, TERMINATE: 128 + signal.SIGTERM}


@contextmanager
def on_interrupt(request: Callable[[str], object]) -> Iterator[None]:
    """Inside, the first Ctrl-C and every SIGTERM call `request` with their name; a second Ctrl-C interrupts as usual.

    A SIGTERM never interrupts at once: schedulers send it more than once, and kill what takes too long. Nothing changes
    where a signal is ignored (Ctrl-C in a job in the background of a script) or cannot arrive (in another thread than
    the main one).
    """
    with contextlib.ExitStack() as handlers:

        def ctrl_c(*_: object) -> None:
            signal.signal(signal.SIGINT, previous)
            request(CTRL_C)

        previous = handlers.enter_context(_handling(signal.SIGINT, ctrl_c))
        handlers.enter_context(_handling(signal.SIGTERM, lambda *_: request(TERMINATE)))
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


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, a SIGTERM raises `Terminated`, so that the caller can say how to go on, where it would else kill.

    Nothing changes where it is ignored or cannot arrive.
    """

    def end(*_: object) -> None:
        raise Terminated

    with _handling(signal.SIGTERM, end):
        yield


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
