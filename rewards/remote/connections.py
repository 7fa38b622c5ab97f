"""Accepts the connections of a reward server, as many as there is room for, and gives each a thread."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from rewards.remote.batcher import Batcher
from rewards.remote.budgets import Arrivals, Budget
from rewards.remote.protocol import Limits, Refusal


class Service(Protocol):
    """Says what the routes need of the server that they belong to."""

    token: str | None
    limits: Limits
    batcher: Batcher
    arrivals: Arrivals
    pixels: Budget
    scorer: str
    """Fingerprint of the scorer's identity."""
    log: Callable[[str], None]
    """Takes a line for the operator."""

    @property
    def alive(self) -> bool:
        """Return whether requests are scored."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Return what `/metadata` answers."""
        ...


class HttpServer(ThreadingHTTPServer):
    """Accepts connections, as many as its owner's `arrivals` let in, each handled in a thread."""

    daemon_threads = True
    request_queue_size = 512  # connections that wait to be accepted: many clients start at the same moment

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], owner: Service) -> None:
        self.owner = owner
        self._busy, self._idle = 0, threading.Condition()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread for a connection, or refuse it where there are too many."""
        try:
            self.owner.arrivals.begin(request)
        except Refusal as refusal:
            self._refuse(request, refusal)
            return
        super().process_request(request, client_address)

    def _refuse(self, request: Any, refusal: Refusal) -> None:
        content = json.dumps({"error": str(refusal)}).encode()
        head = (
            f"HTTP/1.1 {refusal.status} {refusal.status.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\nRetry-After: 1\r\n\r\n"
        )
        with suppress(OSError):
            request.setblocking(False)  # whoever accepts connections waits for nobody
            request.sendall(head.encode() + content)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection, and count it while it lasts."""
        with self._idle:
            self._busy += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.owner.arrivals.end(request)
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    def wait_idle(self, seconds: float) -> None:
        """Wait until no connection is handled any more."""
        with self._idle:
            self._idle.wait_for(lambda: not self._busy, seconds)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log errors, but for those of clients that go away, which are everyday."""
        error = traceback.format_exc()
        if not error.rstrip().splitlines()[-1].startswith(("Connection", "BrokenPipe", "TimeoutError")):
            self.owner.log(error)
