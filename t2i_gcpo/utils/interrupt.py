"""Ctrl-C as a request: the work at hand is finished first."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_interrupt(request: Callable[[], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C calls `request` instead of raising; the next one interrupts as usual.

    Nothing changes where Ctrl-C is ignored (a job in the background of a script) or cannot arrive (another thread than the main one).
    """
    previous = signal.getsignal(signal.SIGINT)

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, previous)
        request()

    try:
        if previous not in (None, signal.SIG_IGN):
            signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread
        previous = None
    try:
        yield
    finally:
        if previous not in (None, signal.SIG_IGN):
            signal.signal(signal.SIGINT, previous)
