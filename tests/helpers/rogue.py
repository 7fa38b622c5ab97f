"""Servers on loopback that answer as a test says: byte by byte, cut short, with nonsense, or not at all."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rewards.identity import Identity, fingerprint
from rewards.remote.protocol import PROTOCOL, Limits

SCORER: Identity = {"name": "scorer", "options": {}, "weights": None}
ABOUT: dict[str, Any] = {"protocol": PROTOCOL, "reward": "scorer", "identity": SCORER, "limits": vars(Limits())}

#: Gets the connection after the request was read; what it sends is the answer. The connection is closed afterwards.
Answer = Callable[[socket.socket], None]


@dataclass
class Rogue:
    """What a test sees of such a server."""

    url: str
    requests: list[str] = field(default_factory=list)
    """Paths in their order."""


def content(data: Any) -> bytes:
    """An answer with status 200 and this JSON (bytes: as they are)."""
    return head(body := data if isinstance(data, bytes) else json.dumps(data).encode()) + body


def head(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()


def scores(count: int, *, scorer: Identity = SCORER, **parts: Any) -> dict[str, Any]:
    """A good answer: 0, 1, 2, ..."""
    return {"scores": [float(k) for k in range(count)], "parts": parts, "scorer": fingerprint(scorer)}


def say(data: Any) -> Answer:
    """An answer that sends `content(data)`."""
    return lambda connection: connection.sendall(content(data))


@contextmanager
def rogue(score: Answer, *, metadata: Answer | None = None) -> Iterator[Rogue]:
    """A server whose POSTs are answered by `score` and whose GETs by `metadata`, each in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Rogue(f"http://127.0.0.1:{listener.getsockname()[1]}")

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            file = connection.makefile("rb")
            method, path, _ = file.readline().decode().split()
            length = 0
            while line := file.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            file.read(length)
            server.requests.append(path)
            (score if method == "POST" else metadata or say(ABOUT))(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
