"""A reward server against clients who drip, hoard, or come from a web page.

And against requests that are small and cost much.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest
import torch

import rewards
from helpers.served import Scorer, packed, pictures, request, send, serve
from rewards.base import Reward, RewardOutput
from rewards.remote import budgets, routes, server
from rewards.remote.png import encode_png
from rewards.remote.protocol import Limits
from rewards.remote.server import RewardServer

HEAD = "POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


def connect(to: RewardServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", to._http.server_port), timeout=20)


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """What the server sends until it closes its side; status 0 for nothing."""
    received = b""
    while part := connection.recv(2**16):
        received += part
    head, _, content = received.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(content)) if head else (0, {})


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


# -- bytes, connections and time ---------------------------------------------------------------------------------------


def test_announced_bytes_take_no_room() -> None:
    """Four requests of 64 MiB are announced and dripped; everyone else is served."""
    with serve() as to, ExitStack() as stack:
        for _ in range(8):
            connection = stack.enter_context(connect(to))
            connection.sendall(HEAD.format(2**26).encode() + b"{")
        wait_until(lambda: to.arrivals.left <= 4 * 2**26 - 8)
        assert send(to, request())[0] == 200
        wait_until(lambda: to.arrivals.left == 4 * 2**26 - 8)  # what has arrived is counted, and nothing else
    wait_until(lambda: to.arrivals.left == 4 * 2**26)


def hoard(stack: ExitStack, to: RewardServer, size: int) -> socket.socket:
    """A request that is there but for its last byte."""
    connection = stack.enter_context(connect(to))
    connection.sendall(HEAD.format(size + 1).encode() + b" " * size)
    return connection


def test_hoarders_have_to_go_when_others_need_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "GRACE", 0.3)
    body = len(json.dumps(request()))
    with serve(limits=Limits(body=body)) as to, ExitStack() as stack:
        hoarders = [hoard(stack, to, body - 1) for _ in range(4)]
        wait_until(lambda: to.arrivals.left == 4)
        status, content = send(to, request())
        assert status == 503 and "busy" in content["error"], "they may just be arriving"
        time.sleep(0.4)
        assert send(to, request())[0] == 200
        ended = [one for one in to.arrivals._there.values() if one.ended]
        assert len(ended) <= 1 and to.arrivals.left >= 4
        hoarders[-1].sendall(b" ")  # one that was not ended goes on: its request is whole, and no JSON
        assert answer(hoarders[-1])[0] in (400, 503)
    wait_until(lambda: to.arrivals.left == 4 * body)


def test_the_slowest_goes_first_and_hears_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "GRACE", 0.05)
    body = len(json.dumps(request()))
    with serve(limits=Limits(body=body)) as to, ExitStack() as stack:
        slow = hoard(stack, to, body // 2)
        wait_until(lambda: to.arrivals.left == 4 * body - body // 2)
        time.sleep(0.5)
        quick = [hoard(stack, to, body - 1) for _ in range(3)]
        wait_until(lambda: to.arrivals.left == 4 * body - body // 2 - 3 * (body - 1))
        time.sleep(0.1)
        assert send(to, request())[0] == 200
        status, content = answer(slow)
        assert status == 503 and "busy" in content["error"]
        wait_until(lambda: len(to.arrivals._there) == 3)  # the slow one and the one that was answered have gone
        assert not any(one.ended for one in to.arrivals._there.values()), "the quicker ones stay"
        assert not select.select(quick, [], [], 0)[0], "and hear nothing"


def test_a_dripped_head_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "HEAD", 0.4)
    with serve() as to, connect(to) as connection:
        started = time.monotonic()
        try:
            for letter in (HEAD.format(5) * 20).encode():
                connection.sendall(bytes([letter]))
                time.sleep(0.02)
        except OSError:  # the server has gone
            pass
        assert time.monotonic() - started < 3
        wait_until(lambda: not to.arrivals._there)
        assert send(to, request())[0] == 200


def test_a_dripped_body_ends_at_the_deadline_of_the_whole_request() -> None:
    with serve(limits=Limits(arrival=1)) as to, connect(to) as connection:
        connection.sendall(HEAD.format(1000).encode())
        started, dripping = time.monotonic(), threading.Event()

        def drip() -> None:
            while not dripping.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        status, content = answer(connection)
        assert status == 408 and "did not arrive in 1 seconds" in content["error"]
        assert time.monotonic() - started < 4
        dripping.set()
        thread.join()


def test_connections_have_a_cap_and_dripped_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 5)
    monkeypatch.setattr(budgets, "GRACE", 0.4)
    before = threading.active_count()
    with serve() as to, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connect(to)).sendall(b"POST /score HTTP/1.1\r\nHo")
        wait_until(lambda: len(to.arrivals._there) == 5)
        with connect(to) as sixth:
            status, content = answer(sixth)
        assert status == 503 and "busy" in content["error"]
        assert threading.active_count() <= before + 2 + 5
        time.sleep(0.5)
        for _ in range(3):
            assert send(to, request())[0] == 200


def test_whole_requests_are_never_ended_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 2)
    monkeypatch.setattr(budgets, "GRACE", 0.0)
    scorer = Scorer()
    scorer.gate.clear()
    body = json.dumps(request()).encode()
    with serve(scorer) as to, connect(to) as one, connect(to) as two:
        for connection in (one, two):
            connection.sendall(HEAD.format(len(body)).encode() + body)
        wait_until(
            lambda: all(arrival.whole for arrival in to.arrivals._there.values()) and len(to.arrivals._there) == 2
        )
        with connect(to) as third:
            assert answer(third)[0] == 503
        scorer.gate.set()
        assert answer(one)[0] == answer(two)[0] == 200


def test_a_get_is_whole_when_its_head_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 1)
    monkeypatch.setattr(budgets, "GRACE", 0.0)
    asked, go_on = threading.Event(), threading.Event()
    real = server.RewardServer.metadata

    def slow(self: Any) -> dict[str, Any]:
        asked.set()
        assert go_on.wait(10)
        return real(self)

    monkeypatch.setattr(server.RewardServer, "metadata", slow)
    with serve(Scorer()) as to, connect(to) as one:
        one.sendall(b"GET /metadata HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert asked.wait(10)
        with connect(to) as another:
            assert answer(another)[0] == 503
        go_on.set()
        assert answer(one)[0] == 200


# -- web pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health"), ("GET", "/metadata"), ("POST", "/score"), ("POST", "/check"), ("GET", "/x"), ("POST", "/x")],
)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "localhost.evil.example", "192.0.2.1"])
def test_a_page_that_calls_this_machine_its_own_is_refused(method: str, path: str, host: str) -> None:
    scorer = Scorer()
    with serve(scorer) as to:
        status, content = send(to, request(), method=method, path=path, headers={"Host": host})
        assert status == 421 and repr(host) in content["error"] and "give the server a token" in content["error"]
        assert not scorer.batches


def test_this_machine_s_own_names_and_a_token_are_let_in() -> None:
    with serve() as to:
        for host in ("localhost", "localhost:9", "127.0.0.1:8765", "[::1]:1"):
            assert send(to, request(), headers={"Host": host})[0] == 200
    with serve(token="sesame") as to:  # a page does not know it
        headers = {"Host": "rewards.example", "Authorization": "Bearer sesame"}
        assert send(to, request(), headers=headers)[0] == 200
        assert send(to, request(), headers={"Host": "rewards.example"})[0] == 401


# -- what cannot be scored is the caller's mistake ---------------------------------------------------------------------


STAR = {"class": "star", "count": 1}
BAD_ROWS: list[dict[str, Any]] = [
    {},
    {"tag": "colors"},
    {"include": "star"},
    {"include": [STAR], "exclude": {"class": "ring", "count": 1}},
    {"include": [{"class": "star", "count": -1}]},
    {"include": [{"class": "star", "count": 0.5}]},
    {"include": [{"class": "star", "count": "two"}]},
    {"include": [STAR, {"class": "ring", "position": ["left of", 99]}]},
    {"include": [STAR, {"class": "ring", "position": ["left of", 1]}]},
    {"include": [STAR, {"class": "ring", "position": "left of"}]},
    {"include": [{"class": ["star"]}]},
]


def test_malformed_metadata_is_refused_with_a_sentence_and_never_scored() -> None:
    said: list[str] = []
    with serve(rewards.load("geneval"), name="geneval", log=said.append) as to:
        for row in BAD_ROWS:
            for path in ("/score", "/check"):
                status, content = send(to, request(prompts=["a riddle"], metadata=[row]), path=path)
                assert status == 422 and "'a riddle'" in content["error"] and content["index"] == 0, (row, content)
        assert send(to, request(metadata=[{"include": [STAR]}]))[0] == 200
        assert not said, "nothing is wrong with the server"
        assert to.metadata()["counts"] == {"requests": 1, "images": 1, "batches": 1}


def test_checking_prompts_needs_no_pictures() -> None:
    good, bad = {"include": [STAR]}, {"include": [{"class": "cat"}]}
    with serve(rewards.load("geneval"), name="geneval") as to:

        def check(body: Any) -> tuple[int, dict[str, Any]]:
            return send(to, body, path="/check")

        assert check({"prompts": ["a", "b"], "metadata": [good, good]}) == (200, {"status": "ok"})
        status, content = check({"prompts": ["a", "b", "c"], "metadata": [good, bad, bad]})
        assert status == 422 and content["index"] == 1 and "'cat'" in content["error"]
        for body, says in (
            ({}, '"prompts" is missing'),
            ({"prompts": ["a"], "metadata": [good, good]}, "one entry for each of the 1 prompts; got 2"),
            ({"prompts": [3], "metadata": [good]}, "prompts[0] is int"),
            ({"prompts": ["a"], "metadata": [3]}, "metadata[0] is int"),
            (b"{", "not valid JSON"),
        ):
            status, content = check(body)
            assert status == 400 and says in content["error"]
        assert check({"prompts": ["x" * 8193], "metadata": [good]})[0] == 413
        status, content = send(to, path="/check", method="GET")
        assert status == 405 and "POST" in content["error"]


@pytest.mark.parametrize("kind", [KeyError, TypeError, AttributeError, IndexError, ValueError])
def test_an_error_that_the_request_caused_is_no_failure_of_the_server(kind: type[Exception]) -> None:
    class Careless(Reward):
        def __call__(self, images: Any, prompts: Any, metadata: Any) -> RewardOutput:
            raise kind("text")

    said: list[str] = []
    with serve(Careless(), log=said.append) as to:
        status, content = send(to, request())
        assert status == 422 and "text" in content["error"] and "Traceback" in said[0]


# -- small requests that cost much -------------------------------------------------------------------------------------


class Sizes(Reward):
    """Scores an image by its mean and the number of the prompt, and notes the shape of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, images: Any, prompts: Any, metadata: Any) -> RewardOutput:
        self.calls.append(tuple(images.shape))
        numbers = torch.tensor([float(prompt) for prompt in prompts])
        return RewardOutput(numbers, {"odd": numbers % 2} if bool((numbers % 2).any()) else {})


def test_a_call_of_the_scorer_is_bounded_in_pixels() -> None:
    scorer = Sizes()
    images = [packed(encode_png(image)) for image in pictures(7, side=10)]  # 120 pixels each
    body = {"images": images, "prompts": [str(k) for k in range(7)], "metadata": [{}] * 7}
    with serve(scorer, limits=Limits(together=300)) as to:
        status, content = send(to, body)
        assert (
            status == 200
            and content["scores"] == [0, 1, 2, 3, 4, 5, 6]
            and content["parts"]["odd"] == [0, 1] * 3 + [None]
        )
        assert [call[0] for call in scorer.calls] == [2, 2, 2, 1]
        large = [packed(encode_png(image)) for image in pictures(2, side=30)]  # 960 pixels: one at a time
        assert send(to, {"images": large, "prompts": ["0", "1"]})[1]["scores"] == [0, 1]
        assert [call[0] for call in scorer.calls[4:]] == [1, 1]


def test_requests_are_not_gathered_beyond_the_pixels_of_a_call() -> None:
    scorer = Scorer()
    scorer.gate.clear()
    with serve(scorer, batch=64, limits=Limits(together=100)) as to, ExitStack() as stack:
        body = json.dumps(request()).encode()  # 48 pixels
        asked = []
        for number in range(6):
            asked.append(stack.enter_context(connect(to)))
            asked[-1].sendall(HEAD.format(len(body)).encode() + body)
            if number == 0:
                assert scorer.entered.wait(10)
        wait_until(lambda: len(to.batcher._waiting) == 5)
        scorer.gate.set()
        assert [answer(connection)[0] for connection in asked] == [200] * 6
        assert [len(batch) for batch in scorer.batches] == [1, 2, 2, 1]


def test_sixty_large_blank_pictures_are_refused_by_their_pixels() -> None:
    """They are 1 MB to send; as float they would be 3 GB, several times over."""
    blank = packed(encode_png(torch.zeros(3, 2048, 2048, dtype=torch.uint8), level=9))
    scorer = Sizes()
    with serve(scorer) as to:
        body = {"images": [blank] * 60, "prompts": ["0"] * 60, "metadata": None}
        assert len(json.dumps(body)) < 4 * 2**20
        status, content = send(to, body)
        assert status == 413 and "251658240 pixels together" in content["error"] and not scorer.calls
        few = {"images": [blank] * 6, "prompts": ["0"] * 6, "metadata": None}
        assert send(to, few)[0] == 200
        assert [call[0] for call in scorer.calls] == [4, 2] and 4 * 2048**2 * 12 < 2**28
