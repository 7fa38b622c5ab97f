"""Refuse requests that the demo's own page never sends, before Gradio reads them.

A server on this machine is within reach of every web page that its owner opens: a page may post to it, or may give its
own name this machine's address (DNS rebinding). So the name that a request asks for must be this machine's, a request
that a page sent must come from the demo's own page, nothing is uploaded, and bodies are small.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gradio.route_utils import FnIndexInferError

from rewards.remote.hosts import is_local_host_header

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
#: HTTP status and a sentence.
Refusal = tuple[int, str]

#: Bytes of a request's body: fifty prompts and a few numbers are far below.
LARGEST_BODY = 256 * 2**10
API = "/gradio_api"
#: What the page and its clients post to. Gradio has more: uploads, recordings, an editor of the app's code.
POSTED = ("/queue/join", "/run/", "/api/", "/call/", "/cancel", "/reset")
#: What is never fetched: files of other servers, the state of uploads, the app's code.
NEVER_FETCHED = ("/proxy=", "/file=http:", "/file=https:", "/upload_progress", "/vibe", "/dev/", "/deep_link")


class Guard:
    """Is an ASGI application in front of Gradio's."""

    def __init__(self, app: Application, *, local: bool = True) -> None:
        """local: only this machine is served, so that a request's Host header must name it; else a password keeps
        others out."""
        self.app, self.local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is refused, and hand every other one on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        refused = self.refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            try:
                await self.app(scope, receive, send)
                return
            except (LookupError, FnIndexInferError):
                if scope["type"] != "http" or not scope["path"].startswith(API):
                    raise
                # Gradio looks an event up by its number or name before it runs it; an event's own errors do not come
                # this way.
                refused = 404, "There is no such event here."
        status, sentence = refused
        body = f"{sentence}\n".encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return why a request is refused; None where it is not."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.local and not is_local_host_header(host):
            return 421, f"This server is not {host[:100]!r}; open the address that t2i-gcpo demo printed."
        origin = headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != host.lower():
            return 403, "This request comes from another web page; open the demo's own page."
        return _forbidden(scope["method"], scope["path"].removeprefix(scope.get("root_path", "")), headers)


def _forbidden(method: str, path: str, headers: dict[str, str]) -> Refusal | None:
    """Return why a method, a path and a body are refused; None where they are not."""
    below = path.removeprefix(API)
    if method in ("GET", "HEAD", "OPTIONS"):
        return (403, "The demo does not have this.") if below.startswith(NEVER_FETCHED) else None
    allowed = below.startswith(POSTED) if path.startswith(API) else path.rstrip("/") == "/login"
    if method != "POST" or not allowed:
        return 403, "The demo takes no files and has nothing else to write to."
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        return 411, "A request needs a Content-Length."
    if int(length[:20]) > LARGEST_BODY:
        return 413, f"The request has {length[:20]} bytes; at most {LARGEST_BODY} are taken."
    return None
