"""The routes of a reward server: one connection, one request, one answer in JSON. Errors are sentences, never tracebacks."""

from __future__ import annotations

import hmac
import json
import socket
import socketserver
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from rewards.remote.batcher import Gatherer, Job, Stopped
from rewards.remote.protocol import Limits, Refusal, TooLarge, read_request, write_answer

#: Seconds without a byte from a client, and for a whole request to arrive.
SILENCE, ARRIVAL = 30.0, 300.0
#: Seconds in which what a refused client still sends is thrown away, so that it sees the answer and not a broken connection.
LINGER = 5.0


class Service(Protocol):
    """What the routes need of the server that they belong to."""

    token: str | None
    limits: Limits
    gatherer: Gatherer
    bodies: Budget
    pixels: Budget
    say: Callable[[str], None]

    @property
    def alive(self) -> bool:
        """Whether requests are scored."""
        ...

    def metadata(self) -> dict[str, Any]:
        """What `/metadata` answers."""
        ...


class Handler(BaseHTTPRequestHandler):
    server: HttpServer
    protocol_version = "HTTP/1.1"  # for clients that ask before they send; every connection is closed after its answer
    server_version, sys_version = "t2i-gcpo", ""
    timeout = SILENCE

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def _get(self) -> dict[str, Any]:
        owner, path = self.server.owner, self.path.partition("?")[0]
        if path == "/health":
            if not owner.alive:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping")
            return {"status": "ok"}
        if path == "/metadata":
            self._check_token()
            return owner.metadata()
        raise self._no_such_path(path, {"/score": "POST"})

    def _post(self) -> dict[str, Any]:
        path = self.path.partition("?")[0]
        if path != "/score":
            raise self._no_such_path(path, {"/health": "GET", "/metadata": "GET"})
        length = self._check_head()
        owner = self.server.owner
        with owner.bodies.take(length):
            try:
                request = read_request(self._body(length), owner.limits)
            except TooLarge as error:
                raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error
            except ValueError as error:
                raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
            with owner.pixels.take(request.pixels):
                try:
                    images = request.images()
                except ValueError as error:
                    raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
                return self._score(Job(images, request.prompts, request.metadata))

    def _score(self, job: Job) -> dict[str, Any]:
        self.server.owner.gatherer.submit(job)
        while not job.done.wait(1.0):
            if self._client_gone():
                job.abandoned = True
                raise ConnectionAbortedError
        if job.output is not None:
            return write_answer(job.output)
        if job.error is None:
            raise RuntimeError("the scorer's thread ended a job without scores and without an error")
        if isinstance(job.error, Stopped):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(job.error))
        self.server.owner.say("".join(traceback.format_exception(job.error)))
        text = str(job.error).strip()
        if isinstance(job.error, ValueError):  # what the request asked for cannot be scored
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, text)
        raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"the scorer failed: {type(job.error).__name__}: {text}")

    # -- before the body is read ---------------------------------------------------------------------------------------

    def handle_expect_100(self) -> bool:
        """A client that asks before it sends is refused before it sends."""
        if self.path.partition("?")[0] == "/score":
            try:
                self._check_head()
            except Refusal as refusal:
                self._send(refusal.status, {"error": str(refusal)})
                return False
        return super().handle_expect_100()

    def _check_head(self) -> int:
        """The length of the body. Refusal where it must not, or cannot, be read."""
        owner = self.server.owner
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
            HTTPStatus.NOT_FOUND, f"there is no {path[:80]!r}; there are POST /score, GET /health, GET /metadata"
        )

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _body(self, length: int) -> bytes:
        data, deadline = bytearray(), time.monotonic() + ARRIVAL
        while len(data) < length:
            part = self.rfile.read1(min(length - len(data), 2**16))
            if not part:
                raise ConnectionAbortedError  # the client went away
            if time.monotonic() > deadline:
                raise Refusal(HTTPStatus.REQUEST_TIMEOUT, f"the request did not arrive in {ARRIVAL:g} seconds")
            data += part
        return bytes(data)

    def _respond(self, answer: Callable[[], dict[str, Any]]) -> None:
        try:
            status, content = HTTPStatus.OK, answer()
        except Refusal as refusal:
            status, content = refusal.status, {"error": str(refusal)}
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            return
        except Exception:  # a mistake of ours: the client learns that, the operator the rest
            self.server.owner.say(traceback.format_exc())
            status, content = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "the server failed; its log says why"}
        self._send(status, content)

    def _send(self, status: int, content: Mapping[str, Any]) -> None:
        self.close_connection = True
        data = json.dumps(content, allow_nan=False).encode()
        with suppress(OSError):
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
        self.connection.settimeout(1.0)
        deadline = time.monotonic() + LINGER
        while time.monotonic() < deadline and self.rfile.read1(2**16):
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
        """What the standard library refuses by itself, as JSON."""
        self._send(code, {"error": message or HTTPStatus(code).phrase})

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: there are many, and their paths say nothing."""


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # connections that wait to be accepted: many clients start at the same moment

    def __init__(self, address: tuple[str, int], owner: Service) -> None:
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
