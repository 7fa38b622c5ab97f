"""Asks one of several reward servers: the next one where one is away, again after a while where all are."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

#: Seconds to wait for a connection.
CONNECT = 10.0
#: Seconds before the first repetition, doubled for each further one, and the most.
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
#: Seconds for which a server that was away is asked last.
AWAY = 30.0
#: Bytes of an answer at most.
MOST = 64 * 2**20
#: Answers after which another server, or the same one later, may do better.
_TRY_AGAIN = {429, 500, 502, 503, 504}


class _Away(Exception):
    """A server that cannot answer now."""


@dataclass(frozen=True)
class Server:
    url: str
    secure: bool
    host: str
    port: int | None
    path: str
    """Before /score; "" but for a server behind a proxy."""

    @staticmethod
    def parse(url: str) -> Server:
        """ValueError for anything but http(s)://host[:port][/path]."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except (ValueError, AttributeError) as error:
            raise ValueError(f"the reward server's url {url!r} is none: {error}") from error
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise ValueError(f"the reward server's url is {url!r}; write http://host:port, or https://host")
        if parts.username or parts.password:
            raise ValueError("the reward server's url holds a user or password; leave them out, and give a token")
        return Server(url.rstrip("/"), parts.scheme == "https", host, port, parts.path.rstrip("/"))


class Servers:
    """`retries` is how often all servers are asked again, after 0.5, 1, 2, ... 30 seconds; `timeout` seconds are for one answer."""

    def __init__(self, urls: Sequence[str], *, token: str | None, timeout: float, retries: int) -> None:
        if not urls:
            raise ValueError("the remote reward needs a url: http://host:port, or a list of them")
        if timeout <= 0 or retries < 0:
            raise ValueError(f"timeout is {timeout}, retries {retries}; they must be above 0, and at least 0")
        self.servers = [Server.parse(url) for url in dict.fromkeys(urls)]
        self.token, self.timeout, self.retries = token, timeout, retries
        self._away: dict[str, float] = {}

    def ask(
        self, path: str, body: bytes | None = None, *, first: int = 0, stop: threading.Event | None = None
    ) -> tuple[str, Any]:
        """(url, answer) of the first server that answers, from server number `first` on. `body` None is a GET.

        ConnectionError where none does, naming them all; ValueError where a server refuses the request. `stop` ends the wait between two
        rounds.
        """
        reasons: dict[str, str] = {}
        for attempt in range(self.retries + 1):
            if attempt and (stop or threading.Event()).wait(min(BACKOFF * 2 ** (attempt - 1), LONGEST_BACKOFF)):
                break
            for server in self._order(first):
                try:
                    answer = self._once(server, path, body)
                except _Away as error:
                    reasons[server.url] = str(error)
                    self._away[server.url] = time.monotonic()
                else:
                    self._away.pop(server.url, None)
                    return server.url, answer
        listed = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
        raise ConnectionError(
            f"no reward server answered ({listed}), {self.retries + 1} times each; start it again: t2i-gcpo serve-rewards"
        )

    def each(self, path: str) -> dict[str, Any]:
        """url -> answer of every server that answers now, of the first that does where none does at once. Errors as `ask`."""
        answers = {}
        for server in self.servers:
            try:
                answers[server.url] = self._once(server, path, None)
            except _Away:
                self._away[server.url] = time.monotonic()
        return answers or dict([self.ask(path)])

    def _order(self, first: int) -> list[Server]:
        count = len(self.servers)
        turned = [self.servers[(first + k) % count] for k in range(count)]
        now = time.monotonic()
        return sorted(turned, key=lambda server: now - self._away.get(server.url, -AWAY) < AWAY)

    def _once(self, server: Server, path: str, body: bytes | None) -> Any:
        kind = http.client.HTTPSConnection if server.secure else http.client.HTTPConnection
        connection = kind(server.host, server.port, timeout=CONNECT)
        headers = {"Accept": "application/json"} | ({} if body is None else {"Content-Type": "application/json"})
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.connect()
            connection.sock.settimeout(self.timeout)
            connection.request("GET" if body is None else "POST", server.path + path, body, headers)
            response = connection.getresponse()
            data = response.read(MOST + 1)
        except TimeoutError as error:
            raise _Away("no answer in time") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Away(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        return self._read(server, response.status, data)

    def _read(self, server: Server, status: int, data: bytes) -> Any:
        try:
            answer = json.loads(data) if len(data) <= MOST else None
        except (ValueError, RecursionError):
            answer = None
        if status == http.client.OK and isinstance(answer, dict):
            return answer
        sentence = str(answer.get("error", "")) if isinstance(answer, dict) else ""
        if status in _TRY_AGAIN:
            raise _Away(f"{status} {sentence or http.client.responses[status]}")
        if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            raise ValueError(f"reward server {server.url} refused the token: {sentence or status}")
        if sentence:
            raise ValueError(f"reward server {server.url}: {sentence}")
        raise ValueError(f"{server.url} answered {status} and no JSON; is it a server of t2i-gcpo serve-rewards?")
