"""Sends requests to servers of OpenAI's chat API (vLLM, SGLang, llama.cpp's server): in turn, with time limits and
repetitions.

Redirects are not followed and no proxy is used: pictures and the token go to the addresses that were given, and nowhere
else.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rewards.remote.server_pool import check_numbers

#: Seconds to wait for a connection.
CONNECT = 10.0
#: Seconds before the first repetition, doubled for each further one, and the most.
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
#: Bytes of an answer at most.
MOST = 8 * 2**20
#: Answers after which the same request may do better later.
_TRY_AGAIN = {408, 429, 500, 502, 503, 504}


class _NoAnswer(Exception):
    """Says that a server does not answer now."""


@dataclass(frozen=True)
class Address:
    """Names where a server listens; `path` is what comes before /chat/completions."""

    url: str
    secure: bool
    host: str
    port: int | None
    path: str

    @staticmethod
    def parse(url: str) -> Address:
        """Read http(s)://host[:port][/path]; without a path it is /v1. ValueError for anything else."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"the judge's url {url!r} is none: {error}") from error
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise ValueError(f"the judge's url is {url!r}; write http://host:port/v1, or https://host/v1")
        if parts.username or parts.password:
            raise ValueError("the judge's url holds a user or password; leave them out, and give a token")
        return Address(url, parts.scheme == "https", host, port, parts.path.rstrip("/") or "/v1")


class Endpoint:
    """Asks one server, or several of the same model, among which requests take turns.

    `timeout` is the seconds that one answer may take in all, `retries` how often a request is sent again, after 0.5, 1,
    2, ... 30 seconds.
    """

    def __init__(self, urls: Sequence[str], *, token: str | None, timeout: float, retries: int) -> None:
        if not urls:
            raise ValueError("the judge needs a url: http://host:port/v1, or a list of them")
        check_numbers(timeout, retries)
        self.addresses = [Address.parse(url) for url in dict.fromkeys(urls)]
        self.token, self.timeout, self.retries = token, timeout, retries
        self._turn = itertools.count()

    def models(self) -> list[str]:
        """Return the names of the models that the first server that answers serves. Errors as `ask`."""
        answer = self.ask("/models", None)
        data = answer.get("data")
        if not isinstance(data, list) or not all(isinstance(m, Mapping) and isinstance(m.get("id"), str) for m in data):
            raise ValueError(f"{self.addresses[0].url} lists no models; is it a server of OpenAI's chat API?")
        return [model["id"] for model in data]

    def ask(
        self, path: str, body: Mapping[str, Any] | None, *, stop: threading.Event | None = None
    ) -> Mapping[str, Any]:
        """Return the JSON object that a server answers; `body` None is a GET.

        ConnectionError where no server answers, naming them and their last reasons; ValueError where one refuses the
        request, with its own words. `stop` ends the waiting between two tries.
        """
        data = None if body is None else json.dumps(body).encode()
        reasons: dict[str, str] = {}
        first = next(self._turn)
        for attempt in range(self.retries + 1):
            if attempt and (stop or threading.Event()).wait(min(BACKOFF * 2 ** (attempt - 1), LONGEST_BACKOFF)):
                break
            address = self.addresses[(first + attempt) % len(self.addresses)]
            try:
                return self._once(address, path, data)
            except _NoAnswer as error:
                reasons[address.url] = str(error)
        listed = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
        raise ConnectionError(f"no judge answered after {self.retries + 1} tries ({listed}); start its server again")

    def _once(self, address: Address, path: str, data: bytes | None) -> Mapping[str, Any]:
        kind = http.client.HTTPSConnection if address.secure else http.client.HTTPConnection
        connection = kind(address.host, address.port, timeout=min(CONNECT, self.timeout))
        headers = {"Accept": "application/json"} | ({} if data is None else {"Content-Type": "application/json"})
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        deadline = time.monotonic() + self.timeout
        try:
            connection.connect()
            connection.sock.settimeout(self.timeout)
            connection.request("GET" if data is None else "POST", address.path + path, data, headers)
            response = connection.getresponse()
            status, content = response.status, _read(response, connection, deadline)
        except TimeoutError as error:
            raise _NoAnswer(f"no answer within {self.timeout:g} s") from error
        except OSError as error:
            raise _NoAnswer(_one_line(str(error)) or type(error).__name__) from error
        except http.client.HTTPException as error:
            raise _NoAnswer(f"no whole HTTP answer: {_one_line(str(error)) or type(error).__name__}") from error
        finally:
            connection.close()
        return _parse(address, status, content)


def _read(response: http.client.HTTPResponse, connection: http.client.HTTPConnection, deadline: float) -> bytes:
    """Read the whole body before the deadline: a socket's own time limit starts anew with every byte."""
    content = b""
    while len(content) <= MOST:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if connection.sock is not None:
            connection.sock.settimeout(left)
        piece = response.read1(65536)
        if not piece:
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            return content
        content += piece
    raise http.client.HTTPException(f"an answer of more than {MOST} bytes")


def _parse(address: Address, status: int, content: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if status == http.client.OK and isinstance(answer, dict):
        return answer
    sentence = _sentence(answer)
    if status in _TRY_AGAIN:
        raise _NoAnswer(f"{status} {sentence or http.client.responses.get(status, '')}".rstrip())
    if status == http.client.OK:
        raise _NoAnswer("an answer that is no JSON object")
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        raise ValueError(f"the judge {address.url} refused the token: {sentence or status}")
    raise ValueError(f"the judge {address.url} refused the request: {sentence or f'status {status}'}")


def _sentence(answer: Any) -> str:
    """Return what a server says of an error: `{"error": {"message": ...}}` with most, `{"message": ...}` or `{"detail":
    ...}` with some.
    """
    if not isinstance(answer, dict):
        return ""
    error = answer.get("error", answer)
    message = error.get("message", error.get("detail", "")) if isinstance(error, dict) else error
    return _one_line(str(message))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
