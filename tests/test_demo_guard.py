"""The guard in front of the demo: who may ask, from which page, for what, and how much."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from t2i_gcpo.demo.guard import LARGEST_BODY, Guard

HOST = {"host": "127.0.0.1:7860"}
JOIN = "/gradio_api/queue/join"


def ask(
    method: str = "GET", path: str = "/", *, local: bool = True, kind: str = "http", **headers: str
) -> tuple[int | None, str]:
    """The status that a request gets, and the text; None where it reached the application behind the guard."""
    sent: list[MutableMapping[str, Any]] = []
    reached = False

    async def application(*_: Any) -> None:
        nonlocal reached
        reached = True

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("a refused request is not read")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    named = {name.replace("_", "-"): value for name, value in {**HOST, **headers}.items()}
    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }
    asyncio.run(Guard(application, local=local)(scope, receive, send))
    if reached:
        assert not sent
        return None, ""
    return sent[0].get("status", sent[0].get("code")), sent[-1].get("body", b"").decode()


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "localhost:80", "[::1]:7860", "127.1.2.3:1"])
def test_this_machine_s_names_are_served(host: str) -> None:
    assert ask(host=host) == (None, "")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "192.168.0.7", ""])
def test_other_names_are_not(host: str) -> None:
    """A page's own name that points at this machine."""
    status, text = ask(host=host)
    assert status == 421 and "open the address" in text
    assert ask(host=host, local=False) == (None, "")  # there, a password keeps others out


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1"])
def test_another_page_may_not_ask(origin: str) -> None:
    for local in (True, False):
        status, text = ask("POST", JOIN, origin=origin, content_length="2", local=local)
        assert status == 403 and "another web page" in text
    assert ask("POST", JOIN, origin="http://127.0.0.1:7860", content_length="2") == (None, "")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/upload/"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/"),
        ("PUT", JOIN),
        ("DELETE", "/config"),
        ("GET", "/gradio_api/proxy=https://x.hf.space/file"),
        ("GET", "/gradio_api/file=https://evil.example/x"),
        ("GET", "/gradio_api/upload_progress"),
    ],
)
def test_nothing_is_uploaded_and_nothing_fetched_elsewhere(method: str, path: str) -> None:
    assert ask(method, path, content_length="10")[0] == 403


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/file=/x.png"]
)
def test_what_the_page_fetches_is_served(path: str) -> None:
    assert ask("GET", path) == (None, "")


@pytest.mark.parametrize(
    "path", [JOIN, "/gradio_api/run/stop", "/gradio_api/call/compare", "/gradio_api/cancel", "/login"]
)
def test_what_the_page_posts_is_served_where_it_is_small(path: str) -> None:
    assert ask("POST", path, content_length=str(LARGEST_BODY)) == (None, "")
    assert ask("POST", path, content_length=str(LARGEST_BODY + 1))[0] == 413
    assert ask("POST", path, content_length="9" * 5000)[0] == 413
    for length in ("", "-1", "many"):
        assert ask("POST", path, content_length=length)[0] == 411
    assert ask("POST", path, transfer_encoding="chunked")[0] == 411


def test_there_are_no_web_sockets() -> None:
    assert ask(kind="websocket") == (1008, "")  # the code of a closed socket: against the server's policy
