"""Sends one request to a reward server and reads its answer, within a deadline; its words are cut short and cleaned."""

from __future__ import annotations

import http.client
import io
import json
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from rewards.remote.deadline import DeadlineReader

#: Seconds to wait for a connection.
CONNECT = 10.0
#: Bytes of an answer at most.
MOST = 64 * 2**20
#: Characters of a server's words that are shown at most.
SHOWN = 500
#: Answers after which another server, or the same one later, may do better.
TRY_AGAIN = {408, 429, 500, 502, 503, 504}


class Away(Exception):
    """Says that a server cannot answer now."""


class Refused(ValueError):
    """Says that a server refuses a request, and would refuse it again. `index`: the place of the prompt it is about."""

    def __init__(self, sentence: str, index: int | None = None) -> None:
        super().__init__(sentence)
        self.index = index


@dataclass(frozen=True)
class Server:
    """Says where a reward server is."""

    url: str
    secure: bool
    host: str
    port: int | None
    path: str
    """Before /score; "" but for a server behind a proxy."""

    @staticmethod
    def parse(url: str) -> Server:
        """Read http(s)://host[:port][/path]. ValueError for anything else."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except (ValueError, AttributeError) as error:
            raise ValueError(f"the reward server's url {url!r} is none: {error}") from error
        if parts.username or parts.password:
            raise ValueError("the reward server's url holds a user or password; leave them out, and give a token")
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise ValueError(f"the reward server's url is {url!r}; write http://host:port, or https://host")
        if (
            not url.isascii()
            or not url.isprintable()
            or " " in url
            or not all(map(_is_label, host.removesuffix(".").split(".")))
        ):
            raise ValueError(
                f"the reward server's url {url!r} holds characters that no url has, or a name that is too long"
            )
        return Server(url.rstrip("/"), parts.scheme == "https", host, port, parts.path.rstrip("/"))


def _is_label(part: str) -> bool:
    return 0 < len(part) < 64


class _Response(http.client.HTTPResponse):
    """Reads an answer through a deadline, its head included."""

    def __init__(self, sock: Any, *args: Any, seconds: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._kept = self.fp  # as long as this is open, the socket is
        self.fp = io.BufferedReader(DeadlineReader(sock, seconds))

    def close(self) -> None:
        """Let go of the socket."""
        super().close()
        self._kept.close()


def exchange(server: Server, path: str, body: bytes | None, *, token: str | None, timeout: float) -> dict[str, Any]:
    """Send a request and return the answer, a JSON object.

    `body` None is a GET; `timeout` seconds are for sending and answer together.

    Away where the server does not answer in time, or not wholly; Refused where it refuses, or is no reward server.
    """
    kind = http.client.HTTPSConnection if server.secure else http.client.HTTPConnection
    connection = kind(server.host, server.port, timeout=min(CONNECT, timeout))
    headers = {"Accept": "application/json"} | ({} if body is None else {"Content-Type": "application/json"})
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.connect()
        deadline = time.monotonic() + timeout
        connection.sock.settimeout(timeout)
        connection.request("GET" if body is None else "POST", server.path + path, body, headers)
        connection.response_class = partial(_Response, seconds=deadline - time.monotonic())  # type: ignore[assignment]
        with closing(connection.getresponse()) as response:
            data, whole = _read(response)
    except TimeoutError as error:
        raise Away(f"no answer in {timeout:g} seconds") from error
    except (OSError, http.client.HTTPException) as error:
        raise Away(clean(str(error)) or type(error).__name__) from error
    finally:
        connection.close()
    if not whole:
        raise Away("the answer ends in its middle")
    return _answer(server, response.status, data)


def _read(response: http.client.HTTPResponse) -> tuple[bytes, bool]:
    """Read an answer's body, MOST bytes and one more at most.

    Also returns whether all of it came, as far as one can tell.
    """
    announced = response.getheader("Content-Length", "")
    parts, size = [], 0
    while size <= MOST and (part := response.read(min(MOST + 1 - size, 2**20))):
        parts.append(part)
        size += len(part)
    data = b"".join(parts)
    if announced.isascii() and announced.isdigit() and len(announced) < 20:
        return data, len(data) >= min(int(announced), MOST + 1)
    if response.chunked:  # http.client has seen its end
        return data, True
    # No length to compare with, as where the head was cut: an object that does not end, or nothing at all.
    return data, _is_json(data) if data.strip()[:1] in (b"", b"{") else True


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _answer(server: Server, status: int, data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data) if len(data) <= MOST else None
    except (ValueError, RecursionError):
        answer = None
    if status == http.client.OK and isinstance(answer, dict):
        return answer
    given = answer.get("error") if isinstance(answer, dict) else None
    sentence = clean(given) if isinstance(given, str) else ""
    if status in TRY_AGAIN:
        raise Away(f"{status} {sentence or http.client.responses[status]}")
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        raise Refused(f"reward server {server.url} refused the token: {sentence or status}")
    if sentence and status != http.client.OK:
        index = answer.get("index") if isinstance(answer, dict) else None
        known = isinstance(index, int) and not isinstance(index, bool)
        raise Refused(f"reward server {server.url}: {sentence}", index if known else None)
    raise Refused(f"{server.url} answered {status} and no JSON; is it a server of t2i-gcpo serve-rewards?")


def clean(text: str) -> str:
    """Return a server's words in one line of printable characters, SHOWN of them at most."""
    words = "".join(character if character.isprintable() else " " for character in text[: 4 * SHOWN])
    line = " ".join(words.split())
    return line if len(line) <= SHOWN and len(text) <= 4 * SHOWN else f"{line[:SHOWN]}..."
