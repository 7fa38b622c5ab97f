"""Answers the routes of a reward server: one connection, one request, one answer in JSON.

Errors are sentences, never tracebacks.
"""

from __future__ import annotations

import hmac
import io
import json
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from rewards.base import PromptError
from rewards.remote.batcher import Job, Stopped
from rewards.remote.budgets import BUSY
from rewards.remote.connections import HttpServer
from rewards.remote.deadline import DeadlineReader
from rewards.remote.hosts import is_local_host_header
from rewards.remote.protocol import Refusal, TooLarge, read_check, read_request, write_answer

#: Seconds without a byte from a client, and for the head of a request to arrive.
SILENCE, HEAD = 30.0, 10.0
#: Seconds in which what a refused client still sends is thrown away, so that it sees the answer and not a broken
#: connection.
LINGER = 5.0
#: Errors of a scorer that another try, or another server, cannot help: what the request holds is not as the scorer
#: needs it.
CALLERS_ERRORS = (ValueError, LookupError, TypeError, AttributeError)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: HttpServer
    protocol_version = "HTTP/1.1"  # for clients that ask before they send; every connection is closed after its answer
    server_version, sys_version = "t2i-gcpo", ""
    timeout = SILENCE

    def setup(self) -> None:
        """Read through a deadline: a head that is dripped ends there."""
        super().setup()
        self.arrival = self.server.owner.arrivals.of(self.connection)
        self.reader = DeadlineReader(self.connection, HEAD, silence=SILENCE)
        self.rfile = io.BufferedReader(self.reader)

    def do_GET(self) -> None:
        """Answer /health and /metadata."""
        self.arrival.whole = True
        self._respond(self._get)

    def do_POST(self) -> None:
        """Answer /score and /check."""
        self._respond(self._post)

    def _get(self) -> dict[str, Any]:
        owner, path = self.server.owner, self.path.partition("?")[0]
        self._check_host()
        if path == "/health":
            if not owner.alive:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping")
            return {"status": "ok"}
        if path == "/metadata":
            self._check_token()
            return owner.metadata()
        raise self._no_such_path(path, {"/score": "POST", "/check": "POST"})

    def _post(self) -> dict[str, Any]:
        path = self.path.partition("?")[0]
        if path not in ("/score", "/check"):
            self._check_host()
            raise self._no_such_path(path, {"/health": "GET", "/metadata": "GET"})
        body = self._body(self._check_head())
        try:
            return self._score(body) if path == "/score" else self._check(body)
        except TooLarge as error:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error
        except ValueError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        finally:
            self.server.owner.arrivals.free(self.arrival)

    def _score(self, body: bytearray) -> dict[str, Any]:
        owner = self.server.owner
        request = read_request(body, owner.limits)
        with owner.pixels.take(request.pixels):
            job = self._finished(Job(request.images(), request.prompts, request.metadata))
        if job.output is None:
            raise RuntimeError("a job with images was finished without scores")
        return write_answer(job.output, owner.scorer)

    def _check(self, body: bytearray) -> dict[str, Any]:
        prompts, metadata = read_check(body, self.server.owner.limits)
        self._finished(Job(None, prompts, metadata))
        return {"status": "ok"}

    def _finished(self, job: Job) -> Job:
        """Wait for a job. Refusal where it failed."""
        self.server.owner.batcher.submit(job)
        while not job.done.wait(1.0):
            if self._client_gone():
                job.abandoned = True
                raise ConnectionAbortedError
        if job.error is None:
            return job
        text, kind = str(job.error).strip(), type(job.error).__name__
        if isinstance(job.error, Stopped):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, text)
        if isinstance(job.error, PromptError):  # what the request asks for cannot be scored, and nothing is wrong here
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, text, index=job.error.index)
        self.server.owner.log("".join(traceback.format_exception(job.error)))
        if isinstance(job.error, ValueError):
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, text)
        status = (
            HTTPStatus.UNPROCESSABLE_ENTITY
            if isinstance(job.error, CALLERS_ERRORS)
            else HTTPStatus.INTERNAL_SERVER_ERROR
        )
        raise Refusal(status, f"the scorer failed: {kind}: {text}")

    # -- before the body is read ---------------------------------------------------------------------------------------

    def handle_expect_100(self) -> bool:
        """Refuse a client that asks before it sends, before it sends."""
        if self.path.partition("?")[0] in ("/score", "/check"):
            try:
                self._check_head()
            except Refusal as refusal:
                self._send(refusal.status, {"error": str(refusal)})
                return False
        return super().handle_expect_100()

    def _check_head(self) -> int:
        """Return the length of the body. Refusal where it must not, or cannot, be read."""
        owner = self.server.owner
        self._check_host()
        if not owner.alive:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping")
        self._check_token()
        if self.headers.get_content_type() != "application/json":
            # Also keeps web pages out, which may send forms and texts to any address without asking.
            raise Refusal(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON, with the header Content-Type: application/json"
            )
        text = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not text:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "send the header Content-Length, and no Transfer-Encoding")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise Refusal(HTTPStatus.BAD_REQUEST, f"Content-Length {text[:40]!r} is no length")
        if int(text) > owner.limits.body:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request has {text} bytes; at most {owner.limits.body} are taken, send fewer images a request",
            )
        return int(text)

    def _check_host(self) -> None:
        """Refuse other names of this machine, where no token keeps strangers out: a web page may have made one up."""
        strange = [host for host in self.headers.get_all("Host", []) if not is_local_host_header(host)]
        if self.server.owner.token is None and strange:
            raise Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"the Host is {strange[0][:80]!r}, and a server without a token answers to localhost, 127.0.0.1 and "
                "[::1] only; use one of them, or give the server a token",
            )

    def _check_token(self) -> None:
        token = self.server.owner.token
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise Refusal(
                HTTPStatus.UNAUTHORIZED, "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
            )

    def _no_such_path(self, path: str, others: Mapping[str, str]) -> Refusal:
        if path in others:
            return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {others[path]}, not {self.command}")
        return Refusal(
            HTTPStatus.NOT_FOUND,
            f"there is no {path[:80]!r}; there are POST /score, GET /health, GET /metadata, POST /check",
        )

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _body(self, length: int) -> bytearray:
        owner, arrival = self.server.owner, self.arrival
        self.reader.deadline = arrival.began + owner.limits.arrival
        data = bytearray()
        while len(data) < length:
            try:
                part = self.rfile.read1(min(length - len(data), 2**16))
            except TimeoutError as error:
                raise Refusal(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the request did not arrive in {owner.limits.arrival} seconds, or nothing came for {SILENCE:g}",
                ) from error
            if not part and not arrival.ended:
                raise ConnectionAbortedError  # the client went away
            owner.arrivals.add(arrival, len(part))
            data += part
        arrival.whole = True
        return data

    def _respond(self, answer: Callable[[], dict[str, Any]]) -> None:
        try:
            if self.arrival.ended:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, BUSY)
            status, content = HTTPStatus.OK, answer()
        except Refusal as refusal:
            status, content = refusal.status, {"error": str(refusal), **refusal.more}
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            return
        except Exception:  # a mistake of ours: the client learns that, the operator the rest
            self.server.owner.log(traceback.format_exc())
            status, content = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "the server failed; its log says why"}
        self._send(status, content)

    def _send(self, status: int, content: Mapping[str, Any]) -> None:
        self.close_connection = True
        data = json.dumps(content, allow_nan=False).encode()
        with suppress(OSError):
            self.connection.settimeout(SILENCE)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Connection", "close")
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(data)
            if status >= HTTPStatus.BAD_REQUEST:
                self._linger()

    def _linger(self) -> None:
        self.connection.shutdown(socket.SHUT_WR)
        self.reader.silence = 1.0
        self.reader.deadline = time.monotonic() + LINGER
        while self.rfile.read1(2**16):
            pass

    def _client_gone(self) -> bool:
        try:
            self.connection.settimeout(0)
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            with suppress(OSError):
                self.connection.settimeout(SILENCE)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer in JSON what the standard library refuses by itself."""
        self._send(code, {"error": message or HTTPStatus(code).phrase})

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests are many, and their paths say nothing."""
