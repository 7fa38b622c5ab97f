"""A scorer behind HTTP: POST /score, GET /health, GET /metadata. JSON and PNG in, JSON out (see `wire`).

On the loopback interface it serves everyone on the machine; on any other it demands a token. It speaks plain HTTP: between machines, put it
behind a tunnel or a proxy with TLS where the network is not your own.
"""

from __future__ import annotations

import ipaddress
import math
import platform
import re
import socket
import socketserver
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rewards.base import Reward
from rewards.gather import Gatherer
from rewards.handler import Handler, Refusal
from rewards.wire import PROTOCOL, Limits

#: Requests of the largest size whose bytes may be in memory at once.
BODIES = 4
#: Names of options that are no one else's business.
SECRET = re.compile(r"token|secret|password|credential|api_?key", re.IGNORECASE)


class Budget:
    """Something of which there is only so much for all requests together."""

    def __init__(self, most: int) -> None:
        self.left = most
        self._lock = threading.Lock()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Refusal, 503, where it is used up."""
        with self._lock:
            if amount > self.left:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server is busy; try again")
            self.left -= amount
        try:
            yield
        finally:
            with self._lock:
                self.left += amount


class RewardServer:
    """Serves `reward` until it is closed.

        with RewardServer(rewards.load("geneval"), name="geneval", port=8765) as server:
            ...                                    # server.url

    Args:
        name, options: what /metadata says the scorer is; options with a secret's name are hidden.
        host, port: where to listen; port 0 takes a free one.
        token: what clients must send as `Authorization: Bearer TOKEN`. /health works without.
        batch: images of one call of the scorer at most, but for a larger request.
        say: gets a line for the operator's log, the scorer's tracebacks among them.

    ValueError: a host other than loopback without a token. OSError: the port is taken.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        name: str,
        options: Mapping[str, Any] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        batch: int = 64,
        limits: Limits | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if token is not None and (not token or not token.isascii() or not token.isprintable()):
            raise ValueError("the token is empty or holds characters that are not printable ASCII; choose another")
        if token is None and not is_loopback(host):
            raise ValueError(f"{host!r} can be reached from other machines: give a token, or serve on 127.0.0.1")
        self.name, self.token, self.limits = name, token, limits or Limits()
        self.say = say or (lambda line: None)
        self.bodies, self.pixels = Budget(BODIES * self.limits.body), Budget(self.limits.waiting)
        self.stopping = False
        self._http = _Http((host, port), self)  # first, as the port may be taken
        self.gatherer = Gatherer(reward, name=name, batch=batch)
        self._about = {
            "protocol": PROTOCOL,
            "reward": name,
            "options": without_secrets(options or {}),
            "weights": self.gatherer.weights or None,
            "batch": batch,
            "limits": vars(self.limits),
            "versions": {"python": platform.python_version(), **_versions("t2i-gcpo", "torch", "transformers")},
        }
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, name="http", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are scored."""
        return not self.stopping and not self.gatherer.closed

    def metadata(self) -> dict[str, Any]:
        return {**self._about, "counts": dict(self.gatherer.counts)}

    def close(self, seconds: float = 10.0) -> None:
        """Refuse new requests, finish those that are there in `seconds` at most, then stop."""
        if self.stopping:
            return
        self.stopping = True
        deadline = time.monotonic() + seconds
        self.gatherer.close(seconds)
        self._http.shutdown()
        self._http.wait_idle(max(1.0, deadline - time.monotonic()))
        self._http.server_close()

    def __enter__(self) -> RewardServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # connections that wait to be accepted: many clients start at the same moment

    def __init__(self, address: tuple[str, int], owner: RewardServer) -> None:
        self.owner = owner
        self._busy, self._idle = 0, threading.Condition()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without HTTPServer's look-up of the host's name, which may take long
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._idle:
            self._busy += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    def wait_idle(self, seconds: float) -> None:
        with self._idle:
            self._idle.wait_for(lambda: not self._busy, seconds)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are everyday; anything else is for the log."""
        error = traceback.format_exc()
        if not error.rstrip().splitlines()[-1].startswith(("Connection", "BrokenPipe", "TimeoutError")):
            self.owner.say(error)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def without_secrets(value: Any) -> Any:
    """Options as plain values for JSON, those with a secret's name hidden."""
    if isinstance(value, Mapping):
        return {
            str(key): "(hidden)" if SECRET.search(str(key)) else without_secrets(item) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    plain = isinstance(value, (str, int, bool, type(None))) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else repr(value)


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
