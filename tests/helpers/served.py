"""What the tests of reward servers share: a scorer whose scores are known, servers of it, and requests by hand."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rewards.base import Reward, RewardOutput
from rewards.remote.png import encode_png
from rewards.remote.server import RewardServer


class Scorer(Reward):
    """Mean of the pixels / 255, plus the prompt's length, plus the row's "bonus"; NaN where "bonus" is null in the row.

    While `gate` is closed it waits. Raises the row's "error" as the class of that name.
    """

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[str]] = []
        """Prompts of each call."""
        if weights is not None:
            self.weights = weights

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        self.batches.append(list(prompts))
        self.entered.set()
        assert self.gate.wait(60)
        for row in metadata:
            if "error" in row:
                raise {"ValueError": ValueError, "RuntimeError": RuntimeError, "SystemExit": SystemExit}[row["error"]](
                    "no such thing: /secret/place"
                )
        brightness = images.float().mean(dim=(1, 2, 3)) / 255
        bonus = torch.tensor(
            [float(torch.nan if "bonus" in m and m["bonus"] is None else m.get("bonus", 0)) for m in metadata]
        )
        scores = brightness + torch.tensor([float(len(prompt)) for prompt in prompts]) + bonus
        parts = {"brightness": brightness}
        for tag in sorted({row["tag"] for row in metadata if "tag" in row}):
            mine = torch.tensor([row.get("tag") == tag for row in metadata])
            parts[f"task/{tag}"] = brightness.masked_fill(~mine, torch.nan)
        return RewardOutput(scores, parts)


@contextmanager
def serve(reward: Any = None, **options: Any) -> Iterator[RewardServer]:
    with RewardServer(reward or Scorer(), **{"name": "scorer", **options}) as server:
        try:
            yield server
        finally:
            if isinstance(reward, Scorer):
                reward.gate.set()


def kill(server: RewardServer) -> None:
    """As if its process ended: no more connections, and no answers to those that there are."""
    server._http.shutdown()
    server._http.server_close()


def pictures(count: int, *, side: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side + 2), generator=generator, dtype=torch.uint8)


def packed(data: bytes) -> str:
    return base64.b64encode(data).decode()


def request(**changes: Any) -> dict[str, Any]:
    """A request of one picture."""
    return {"images": [packed(encode_png(pictures(1)[0]))], "prompts": ["a"], "metadata": [{}], **changes}


def send(
    server: RewardServer,
    body: Any = None,
    *,
    path: str = "/score",
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Status and answer. `body`: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server._http.server_port, timeout=20)
    try:
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        assert response.getheader("Content-Type") == "application/json"
        text = response.read().decode()
        assert "Traceback" not in text
        return response.status, json.loads(text)
    finally:
        connection.close()
