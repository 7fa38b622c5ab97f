"""Serves a scorer over HTTP: POST /score and /check, GET /health and /metadata.

JSON and PNG in, JSON out (see `protocol`).

On the loopback interface it serves everyone on the machine; on any other it demands a token. It speaks plain HTTP:
between machines, put it behind a tunnel or a proxy with TLS where the network is not your own.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rewards.base import Reward
from rewards.function import as_reward
from rewards.identity import Identity, fingerprint, hide_secrets, identity
from rewards.remote.batcher import Batcher
from rewards.remote.budgets import Arrivals, Budget
from rewards.remote.connections import HttpServer
from rewards.remote.hosts import is_loopback
from rewards.remote.protocol import PROTOCOL, Limits
from rewards.remote.routes import Handler

#: Requests of the largest size whose bytes may be in memory at once.
BODIES = 4
#: Open connections at most.
CONNECTIONS = 512


class RewardServer:
    """Serves `reward` until it is closed.

        with RewardServer(rewards.load("geneval"), name="geneval", port=8765) as server:
            ...                                    # server.url

    Args:
        name, options: what /metadata says the scorer is; options with a secret's name are hidden.
        host, port: where to listen; port 0 takes a free one.
        token: what clients must send as `Authorization: Bearer TOKEN`. /health works without.
        batch: images of one call of the scorer at most, but for a larger request; `limits.together` bounds their
            pixels.
        log: gets a line for the operator's log, the scorer's tracebacks among them.

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
        log: Callable[[str], None] | None = None,
    ) -> None:
        if token is not None and (not token or not token.isascii() or not token.isprintable()):
            raise ValueError("the token is empty or holds characters that are not printable ASCII; choose another")
        if token is None and not is_loopback(host):
            raise ValueError(f"{host!r} can be reached from other machines: give a token, or serve on 127.0.0.1")
        self.name, self.token, self.limits = name, token, limits or Limits()
        self.log = log or (lambda line: None)
        self.arrivals = Arrivals(connections=CONNECTIONS, size=BODIES * self.limits.body)
        self.pixels = Budget(self.limits.waiting)
        self.stopping = False
        self._http = HttpServer((host, port), Handler, self)  # first, as the port may be taken
        reward = as_reward(reward, name=name, failure="mark")
        self.batcher = Batcher(reward, name=name, batch=batch, pixels=self.limits.together)
        scorer = _identity(reward, name, options or {})
        self.scorer = fingerprint(scorer)
        self._about = {
            "protocol": PROTOCOL,
            "reward": name,
            "options": hide_secrets(options or {}),
            "weights": self.batcher.weights or None,
            "identity": scorer,
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
        """Return whether requests are scored."""
        return not self.stopping and not self.batcher.closed

    def metadata(self) -> dict[str, Any]:
        """Return what is served, the limits, and how much was scored so far."""
        return {**self._about, "counts": dict(self.batcher.counts)}

    def close(self, seconds: float = 10.0) -> None:
        """Refuse new requests, finish those that are there in `seconds` at most, then stop."""
        if self.stopping:
            return
        self.stopping = True
        deadline = time.monotonic() + seconds
        self.batcher.close(seconds)
        self._http.shutdown()
        self._http.wait_idle(max(1.0, deadline - time.monotonic()))
        self._http.server_close()

    def __enter__(self) -> RewardServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _identity(reward: Reward, name: str, options: Mapping[str, Any]) -> Identity:
    """Return who is served, under the server's name for it.

    A reward that was not built by name has the server's options.
    """
    one = reward.identity()
    return {**one, "name": name, "options": one["options"] or identity(name, options)["options"]}


def _versions(*packages: str) -> dict[str, str]:
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
