"""A small server of OpenAI's chat API for the tests of judges: it reads the picture and answers by a rule."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

#: A picture [H, W, 3] uint8 and the question -> the words with their probabilities, the likeliest first, or a text.
Rule = Callable[[np.ndarray, str], "dict[str, float] | str"]


def by_brightness(pixels: np.ndarray, question: str) -> dict[str, float]:
    """The brighter, the likelier a yes."""
    share = float(pixels.mean()) / 255
    return {"Yes": 0.9 * share, "No": 0.9 * (1 - share), "Maybe": 0.1}


class ChatServer(ThreadingHTTPServer):
    """Serve `models` and answer by `rule`; each of `faults` first answers one request with its own reply."""

    daemon_threads = True

    def __init__(
        self, rule: Rule = by_brightness, *, models: tuple[str, ...] = ("judge-7b",), logprobs: bool = True
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rule, self.models, self.logprobs = rule, models, logprobs
        self.faults: list[Callable[[Handler], None]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.bodies: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.running = self.most_running = 0
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.gate.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no error of the server."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def questions(self) -> list[str]:
        return [body["messages"][0]["content"][1]["text"] for body in self.bodies]


class Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        assert self.path == "/v1/models", self.path
        self.send({"object": "list", "data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.tokens.append(self.headers.get("Authorization"))
            server.running += 1
            server.most_running = max(server.most_running, server.running)
            fault = server.faults.pop(0) if server.faults else None
        try:
            assert server.gate.wait(30)
            if fault is not None:
                fault(self)
            else:
                self.answer(body)
        finally:
            with server.lock:
                server.running -= 1

    def answer(self, body: dict[str, Any]) -> None:
        assert self.path == "/v1/chat/completions" and body["temperature"] == 0
        picture, question = body["messages"][0]["content"]
        kind, _, data = picture["image_url"]["url"].partition(";base64,")
        assert kind == "data:image/png" and picture["type"] == "image_url" and question["type"] == "text"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            pixels = np.array(image.convert("RGB"))
        answer = self.server.rule(pixels, question["text"])
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        words = answer if isinstance(answer, dict) else {answer: 1.0}
        choice["message"] = {"role": "assistant", "content": max(words, key=lambda word: words[word])}
        if self.server.logprobs and body.get("logprobs"):
            tokens = [{"token": word, "logprob": math.log(max(p, 1e-30))} for word, p in words.items()]
            choice["logprobs"] = {"content": [{**tokens[0], "top_logprobs": tokens[: body["top_logprobs"]]}]}
        self.send({"object": "chat.completion", "model": body["model"], "choices": [choice]})

    def send(self, answer: Any, status: int = 200) -> None:
        self.reply(json.dumps(answer).encode(), status)

    def reply(self, data: bytes, status: int = 200, *, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
