"""Bounds what all clients of a server hold together: connections, bytes that arrived, pixels.

Bytes are counted as they arrive, never as they are announced. Where something runs short, the request that has been
arriving for longest at the lowest rate has to go, so that clients who drip bytes cannot keep others out.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus

from rewards.remote.protocol import Refusal

#: Seconds for which an arriving request is not ended in favour of another one.
GRACE = 2.0

BUSY = "the server is busy; try again"


class Arrival:
    """Holds how much of one connection's request is here, and whether it is whole."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.began = time.monotonic()
        self.held = 0
        """Bytes of its body."""
        self.whole = False
        """Everything has arrived: it is not ended any more."""
        self.ended = False
        """It had to make room for others."""

    def rate(self, now: float) -> float:
        """Return the bytes a second since it began."""
        return self.held / max(now - self.began, 1e-9)


class Arrivals:
    """Counts the requests of a server, from the moment that a connection is accepted until it is closed."""

    def __init__(self, *, connections: int, size: int) -> None:
        """`connections`: open ones at most; `size`: bytes of all bodies together at most."""
        self.connections, self.left = connections, size
        self._there: dict[socket.socket, Arrival] = {}
        self._lock = threading.Lock()

    def begin(self, connection: socket.socket) -> None:
        """Count a connection that was accepted. Refusal, 503, where there are too many that cannot be ended."""
        with self._lock:
            while sum(not arrival.ended for arrival in self._there.values()) >= self.connections:
                self._end_slowest()
            self._there[connection] = Arrival(connection)

    def of(self, connection: socket.socket) -> Arrival:
        """Return the arrival of a connection that was begun."""
        return self._there[connection]

    def add(self, arrival: Arrival, count: int) -> None:
        """Count bytes that arrived. Refusal, 503, where there is no room for them."""
        with self._lock:
            while count > self.left:
                self._end_slowest()
            if arrival.ended:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, BUSY)
            self.left -= count
            arrival.held += count

    def free(self, arrival: Arrival) -> None:
        """Free what a request holds: it is about to be answered."""
        with self._lock:
            self._free(arrival)

    def end(self, connection: socket.socket) -> None:
        """Forget a connection that is closed, and free what it held."""
        with self._lock:
            arrival = self._there.pop(connection, None)
            if arrival is not None:
                self._free(arrival)

    def _end_slowest(self) -> None:
        now = time.monotonic()
        slow = [one for one in self._there.values() if not one.whole and not one.ended and now - one.began > GRACE]
        if not slow:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, BUSY)
        slowest = min(slow, key=lambda one: one.rate(now))
        slowest.ended = True
        self._free(slowest)
        with suppress(OSError):
            slowest.connection.shutdown(socket.SHUT_RD)  # its thread stops reading, and says why

    def _free(self, arrival: Arrival) -> None:
        self.left += arrival.held
        arrival.held = 0


class Budget:
    """Shares out something of which there is only so much for all requests together."""

    def __init__(self, most: int) -> None:
        self.left = most
        self._lock = threading.Lock()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Take some of it for a while. Refusal, 503, where it is used up."""
        with self._lock:
            if amount > self.left:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, BUSY)
            self.left -= amount
        try:
            yield
        finally:
            with self._lock:
                self.left += amount
