"""Reads from a socket until a moment in time: a peer that drips bytes holds nobody longer than that."""

from __future__ import annotations

import io
import socket
import time
from typing import Any


class DeadlineReader(io.RawIOBase):
    """Reads a socket's incoming bytes. TimeoutError where the deadline has passed, or nothing came for `silence`
    seconds."""

    def __init__(self, connection: socket.socket, seconds: float, *, silence: float | None = None) -> None:
        self.connection, self.silence = connection, silence
        self.received = 0
        """Bytes so far."""
        self.extend(seconds)

    def extend(self, seconds: float) -> None:
        """Set the deadline to so many seconds from now."""
        self.deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        self.connection.settimeout(left if self.silence is None else min(left, self.silence))
        count = self.connection.recv_into(buffer)
        self.received += count
        return count
