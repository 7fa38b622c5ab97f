"""A reward server under everything that a client may send, and at every moment that a client may leave."""

from __future__ import annotations

import http.client
import io
import json
import math
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.served import Scorer, packed, pictures, request, send, serve
from rewards.base import Reward, RewardOutput
from rewards.remote import png as png_module
from rewards.remote.png import SIGNATURE, decode_png, encode_png, png_size
from rewards.remote.protocol import Limits
from rewards.remote.routes import Handler
from rewards.remote.server import RewardServer


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def works(server: RewardServer) -> bool:
    """The server still answers as ever."""
    status, answer = send(server, request())
    return status == 200 and answer["scores"] == pytest.approx([float(pictures(1).float().mean()) / 255 + 1], abs=1e-6)


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 9])
def test_pictures_come_back_bit_for_bit(level: int) -> None:
    image = pictures(1, side=37)[0]
    data = encode_png(image, level=level)
    assert png_size(data, "it") == (39, 37) and torch.equal(decode_png(data, "it"), image)
    with Image.open(io.BytesIO(data)) as other:  # what another reader sees
        assert np.array_equal(np.array(other), image.permute(1, 2, 0).numpy())
    other_writer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(other_writer, "PNG")
    assert torch.equal(decode_png(other_writer.getvalue(), "it"), image)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, data: bytes, *more: bytes, depth: int = 8, colors: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colors, 0, 0, 0))
    return SIGNATURE + header + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(mode: str, ending: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (6, 6)).save(file, ending)
    return file.getvalue()


WHOLE = encode_png(pictures(1, side=64)[0])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (WHOLE[: len(WHOLE) // 2], "images[0] is a damaged PNG"),
        (WHOLE[:40], "images[0] is a damaged PNG"),
        (WHOLE[:20], "images[0] is no PNG"),
        (b"", "images[0] is no PNG"),
        (WHOLE.replace(b"IDAT", b"IDAX"), "images[0] is a damaged PNG"),
        (WHOLE[:60] + bytes([WHOLE[60] ^ 255]) + WHOLE[61:], "images[0] is a damaged PNG"),
        (SIGNATURE + bytes(40), "images[0] is a damaged PNG"),
        (png(0, 4, zlib.compress(b"")), "images[0] is a damaged PNG"),
        (saved("RGB", "JPEG"), "images[0] is no PNG"),
        (saved("RGB", "BMP"), "images[0] is no PNG"),
        (saved("RGBA", "PNG"), "convert it to 8-bit RGB"),
        (saved("I;16", "PNG"), "16 bits"),
        (saved("P", "PNG"), "convert it to 8-bit RGB"),
    ],
)
def test_a_damaged_picture_is_refused_and_the_server_goes_on(data: bytes, says: str) -> None:
    scorer = Scorer()
    with serve(scorer) as server:
        status, answer = send(server, request(images=[packed(data)]))
        assert status == 400 and says in answer["error"] and not scorer.batches
        assert works(server)


def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        with monkeypatch.context() as patch:
            patch.setattr(png_module.Image, "open", lambda *_, **__: pytest.fail("the picture was opened"))
            for width, height in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (2049, 2048)):
                bomb = png(width, height, zlib.compress(bytes(1000)))
                status, answer = send(server, request(images=[packed(bomb)]))
                assert status == 413 and f"{width} x {height}" in answer["error"] and "4194304" in answer["error"]
        assert works(server)


def test_small_pictures_with_far_too_much_inside_take_no_memory() -> None:
    flood = zlib.compress(bytes(200 * 2**20), 9)  # 200 MiB behind 200 KB, for 4 x 4 pixels
    text = chunk(b"zTXt", b"k\0\0" + flood)
    with serve() as server:
        tracemalloc.start()
        try:
            for bomb in (png(4, 4, flood), png(4, 4, zlib.compress(bytes(52)), text)):
                status, _ = send(server, request(images=[packed(bomb)]))
                assert status in (200, 400)
            assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
        finally:
            tracemalloc.stop()
        assert works(server)


def test_many_pictures_are_counted_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(images=3, waiting=100)
    with serve(limits=limits) as server:
        monkeypatch.setattr(png_module.Image, "open", lambda *_, **__: pytest.fail("the picture was opened"))
        four = [packed(encode_png(image)) for image in pictures(4, side=2)]
        status, answer = send(server, request(images=four, prompts=["a"] * 4, metadata=None))
        assert status == 413 and "4 images" in answer["error"] and "at most 3" in answer["error"]
        three = [packed(encode_png(image)) for image in pictures(3)]
        status, answer = send(server, request(images=three, prompts=["a"] * 3, metadata=None))
        assert status == 413 and "144 pixels together" in answer["error"]


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_a_body_of_100_megabytes_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        with monkeypatch.context() as patch:
            patch.setattr(Handler, "_body", lambda *_: pytest.fail("the body was read"))
            tracemalloc.start()
            body = bytes(100 * 10**6)
            status, answer = send(server, body)
            peak = tracemalloc.get_traced_memory()[1] - len(body)
            tracemalloc.stop()
            assert status == 413 and "100000000 bytes; at most 67108864" in answer["error"] and peak < 5 * 10**6
            # Announced and never sent, with and without asking first.
            for more in (b"", b"Expect: 100-continue\r\n"):
                head = (
                    b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                    b"application/json\r\nContent-Length: 99999999\r\n"
                )
                assert b" 413 " in raw(server, head + more + b"\r\n").split(b"\r\n")[0]
        assert works(server)


def raw(server: RewardServer, data: bytes) -> bytes:
    """What comes back until the server closes its side."""
    with socket.create_connection(("127.0.0.1", server._http.server_port), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(2**16):
            received += part
    return received


def test_a_client_that_asks_first_may_send() -> None:
    with serve() as server:
        body = json.dumps(request()).encode()
        head = (
            "POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            f"application/json\r\nContent-Length: {len(body)}\r\n"
        )
        received = raw(server, head.encode() + b"Expect: 100-continue\r\n\r\n" + body)
        assert received.startswith(b"HTTP/1.1 100 ") and b"HTTP/1.1 200 " in received


HEAD = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"\r\n", 411),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (HEAD + b"Content-Length: -5\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1e3\r\n\r\n", 400),
        (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n", 431),
        (b"DELETE /score HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
    ],
)
def test_what_is_no_request_gets_a_sentence(data: bytes, status: int) -> None:
    with serve() as server:
        received = raw(server, data)
        if data.startswith(b"nonsense"):  # HTTP/0.9: no head
            assert "error" in json.loads(received[received.index(b"{") :])
        else:
            head, _, content = received.partition(b"\r\n\r\n")
            assert int(head.split()[1]) == status and json.loads(content)["error"] and b"application/json" in head
        assert works(server)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"[]", "send an object"),
        (b"[" * 200_000, "deeper than 32"),
        (b'{"a":' * 100_000, "deeper than 32"),
        (b'{"images": [' + b"[" * 40 + b"]" * 40 + b"]}", "deeper than 32"),
        (b'{"images": NaN}', "NaN is no number"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "4300 digits"),
        (request(images=None), '"images" is missing'),
        (request(images=[]), '"images" is missing'),
        (request(images="abc"), '"images" is missing'),
        (request(images=[7]), "images[0] is not base64"),
        (request(images=["é"]), "images[0] is not base64"),
        (request(images=["ab c"]), "images[0] is not base64"),
        (request(prompts=["a", "b"]), '"prompts" must be a list with one entry for each of the 1 images; got 2'),
        (request(prompts="a"), '"prompts" must be a list'),
        (request(prompts=[7]), "prompts[0] is int"),
        (request(prompts=["\ud800"]), "prompts[0] holds half"),
        (request(metadata=[[]]), "metadata[0] is list"),
        (request(metadata={"a": 1}), '"metadata" must be a list'),
    ],
)
def test_a_malformed_request_is_refused_with_what_is_wrong(body: Any, says: str) -> None:
    with serve() as server:
        status, answer = send(server, body)
        assert status == 400 and says in answer["error"], answer
        assert works(server)


def test_pictures_of_several_sizes_are_several_requests() -> None:
    with serve() as server:
        both = [packed(encode_png(pictures(1, side=side)[0])) for side in (4, 5)]
        status, answer = send(server, request(images=both, prompts=["a", "b"], metadata=None))
        assert status == 400 and "one size" in answer["error"]


def test_routes() -> None:
    with serve(
        options={"detector": "shapes", "api_key": "hunter2", "inner": [{"token": "hunter2"}], "f": math.inf}
    ) as server:
        assert send(server, path="/health", method="GET") == (200, {"status": "ok"})
        status, about = send(server, path="/metadata?x=1", method="GET")
        assert status == 200 and about["reward"] == "scorer" and about["options"]["detector"] == "shapes"
        assert "hunter2" not in json.dumps(about) and about["versions"]["torch"] == torch.__version__
        assert about["limits"]["body"] == 2**26 and about["protocol"] == 2 and about["weights"] is None
        for path, method, status, says in (
            ("/score", "GET", 405, "POST"),
            ("/health", "POST", 405, "GET"),
            ("/../etc/passwd", "GET", 404, "POST /score, GET /health, GET /metadata"),
            ("/", "POST", 404, "there are"),
        ):
            found, answer = send(server, path=path, method=method)
            assert found == status and says in answer["error"]
        status, answer = send(server, request(), headers={"Content-Type": "text/plain"})
        assert status == 415 and "application/json" in answer["error"]


def test_prompts_are_only_text() -> None:
    texts = [
        "../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "C:\\nul",
        "a\0b",
        "$(reboot)",
        "{0}",
        "%s",
        "x" * 8192,
        "",
    ]
    scorer = Scorer()
    with serve(scorer) as server:
        images = [packed(encode_png(image)) for image in pictures(len(texts))]
        status, answer = send(server, {"images": images, "prompts": texts, "metadata": None})
        assert status == 200 and scorer.batches == [texts] and len(answer["scores"]) == len(texts)
        status, answer = send(server, request(prompts=["x" * 8193]))
        assert status == 413 and "8193 characters" in answer["error"]


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_a_token_is_demanded_for_all_but_health() -> None:
    with serve(token="sesame") as server:
        assert send(server, path="/health", method="GET")[0] == 200
        for given in (None, "", "sesame", "Bearer sesam", "Bearer sesame2", "Bearer é", "Basic sesame"):
            headers = {} if given is None else {"Authorization": given.encode("utf-8").decode("latin-1")}
            for path, method in (("/score", "POST"), ("/metadata", "GET")):
                status, answer = send(server, request(), path=path, method=method, headers=headers)
                assert status == 401 and "Bearer TOKEN" in answer["error"] and "sesame" not in answer["error"]
        assert send(server, request(), headers={"Authorization": "Bearer sesame"})[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.org"])
def test_other_machines_need_a_token(host: str) -> None:
    with pytest.raises(ValueError, match="give a token"):
        RewardServer(Scorer(), name="scorer", host=host)


def test_a_token_makes_any_address_possible_and_must_be_one() -> None:
    with serve(host="0.0.0.0", token="sesame") as server:
        assert send(server, request(), headers={"Authorization": "Bearer sesame"})[0] == 200
    for token in ("", "a\nb", "é"):
        with pytest.raises(ValueError, match="token is empty or"):
            RewardServer(Scorer(), name="scorer", token=token)


# -- many at once ------------------------------------------------------------------------------------------------------


def test_200_concurrent_requests_get_their_own_scores_in_a_few_batches() -> None:
    scorer = Scorer()
    scorer.gate.clear()
    images = pictures(200)
    bodies = [request(images=[packed(encode_png(image))], prompts=["p" * k]) for k, image in enumerate(images)]
    with serve(scorer, batch=64) as server, ThreadPoolExecutor(200) as pool:
        answers = [pool.submit(send, server, bodies[0])]
        assert scorer.entered.wait(10)  # the scorer is busy with the first alone; the others come while it is
        answers += [pool.submit(send, server, body) for body in bodies[1:]]
        wait_until(lambda: len(server.batcher._waiting) == 199, 30)
        scorer.gate.set()
        expected = images.float().mean(dim=(1, 2, 3)) / 255 + torch.arange(200)
        for k, answer in enumerate(answers):
            status, content = answer.result()
            assert status == 200 and content["scores"] == [float(expected[k])] and len(content["parts"]) == 1
        assert [len(batch) for batch in scorer.batches] == [1, 64, 64, 64, 7]
        assert server.metadata()["counts"] == {"requests": 200, "images": 200, "batches": 5}
        assert works(server) and server.arrivals.left == 4 * 2**26 and server.pixels.left == server.limits.waiting


def test_only_one_size_is_scored_together_and_nobody_is_passed_over() -> None:
    scorer = Scorer()
    scorer.gate.clear()
    with serve(scorer, batch=4) as server, ThreadPoolExecutor(8) as pool:

        def ask(prompt: str, count: int, side: int) -> Any:
            images = [packed(encode_png(image)) for image in pictures(count, side=side)]
            before = len(server.batcher._waiting)
            answer = pool.submit(send, server, {"images": images, "prompts": [prompt] * count})
            wait_until(lambda: scorer.entered.is_set() and len(server.batcher._waiting) >= before + (prompt != "first"))
            return answer

        asked = [("first", 1, 4), ("a", 2, 4), ("b", 1, 5), ("c", 3, 4), ("d", 2, 4), ("e", 9, 5)]
        answers = [ask(*one) for one in asked]
        scorer.gate.set()
        assert all(answer.result()[0] == 200 for answer in answers)
        assert [sorted(set(batch)) for batch in scorer.batches] == [["first"], ["a", "d"], ["b"], ["c"], ["e"]]


def test_an_error_reaches_only_the_request_that_caused_it() -> None:
    scorer = Scorer()
    scorer.gate.clear()
    said: list[str] = []
    rows: list[dict[str, Any]] = [{}, {"tag": "x"}, {"error": "ValueError"}, {"error": "RuntimeError"}, {"bonus": None}]
    with serve(scorer, log=said.append) as server, ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(send, server, request())]
        assert scorer.entered.wait(10)
        answers += [pool.submit(send, server, request(metadata=[row])) for row in rows[1:]]
        wait_until(lambda: len(server.batcher._waiting) == 4)
        scorer.gate.set()
        first, tagged, wrong, broken, failed = (answer.result() for answer in answers)
        assert first[0] == tagged[0] == failed[0] == 200
        assert wrong == (422, {"error": "no such thing: /secret/place"})
        assert broken[0] == 500 and "the scorer failed: RuntimeError: no such thing" in broken[1]["error"]
        assert tagged[1]["parts"].keys() == {"brightness", "task/x"} and failed[1]["scores"] == [None]
        assert first[1]["parts"].keys() == failed[1]["parts"].keys() == {"brightness"}, "others' parts stay away"
        assert sum("Traceback" in line for line in said) == 2, "the operator sees where it came from"
        assert works(server)


def test_the_parts_of_a_weighted_sum_stay_where_all_of_them_failed() -> None:
    class Failing(Scorer):
        def __call__(self, images: Any, prompts: Any, metadata: Any) -> Any:
            output = super().__call__(images, prompts, metadata)
            output.parts.update(a=output.scores * torch.nan, b=output.scores * torch.nan)
            return output

    with serve(Failing({"a": 0.5})) as server:
        assert send(server, request())[1]["parts"] == {"brightness": [pytest.approx(0.5, abs=0.5)], "a": [None]}
        assert server.metadata()["weights"] == {"a": 0.5}


def test_a_scorer_that_is_no_reward_is_said_to_be_none() -> None:
    class Answers(Reward):
        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def __call__(self, images: Any, prompts: Any, metadata: Any) -> Any:
            return self.answer

    for answer, says in (([1.0], "returned list"), (RewardOutput(torch.ones(3)), r"shape (3,)")):
        with serve(Answers(answer)) as server:
            status, answer = send(server, request())
            assert status == 422 and says in answer["error"]


def test_a_scorer_that_ends_its_thread_leaves_no_one_waiting() -> None:
    with serve() as server:
        status, answer = send(server, request(metadata=[{"error": "SystemExit"}]))
        assert status == 503 and "stopping" in answer["error"]
        assert not server.alive and send(server, request())[0] == 503
        assert send(server, path="/health", method="GET")[0] == 503


def test_a_client_that_leaves_is_not_scored() -> None:
    scorer = Scorer()
    scorer.gate.clear()
    with serve(scorer) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, server, request())
        assert scorer.entered.wait(10)
        body = json.dumps(request(prompts=["gone"])).encode()
        with socket.create_connection(("127.0.0.1", server._http.server_port), timeout=20) as connection:
            connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: len(server.batcher._waiting) == 1)
            job = server.batcher._waiting[0]
        wait_until(lambda: job.abandoned)
        scorer.gate.set()
        assert first.result()[0] == 200 and works(server)
        assert ["gone"] not in scorer.batches
        wait_until(lambda: server.pixels.left == server.limits.waiting)


def test_half_a_request_is_forgotten() -> None:
    with serve() as server:
        with socket.create_connection(("127.0.0.1", server._http.server_port), timeout=20) as connection:
            connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\n{")
            wait_until(lambda: server.arrivals.left < 4 * 2**26)
        wait_until(lambda: server.arrivals.left == 4 * 2**26)
        assert works(server)


def test_more_than_fits_in_memory_is_asked_to_come_again() -> None:
    scorer = Scorer()
    scorer.gate.clear()
    size = 6 * 8
    with serve(scorer, limits=Limits(waiting=2 * size)) as server, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(send, server, request()) for _ in range(2)]
        wait_until(lambda: server.pixels.left == 0)
        status, answer = send(server, request())
        assert status == 503 and "busy; try again" in answer["error"]
        scorer.gate.set()
        assert [answer.result()[0] for answer in answers] == [200, 200] and works(server)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_closing_finishes_what_is_there_and_takes_no_more() -> None:
    scorer = Scorer()
    scorer.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        server = RewardServer(scorer, name="scorer")
        answers = [pool.submit(send, server, request())]
        assert scorer.entered.wait(10)
        answers.append(pool.submit(send, server, request()))
        wait_until(lambda: len(server.batcher._waiting) == 1)
        closing = pool.submit(server.close)
        wait_until(lambda: server.batcher.closed)
        assert send(server, request())[0] == 503
        scorer.gate.set()
        assert [answer.result()[0] for answer in answers] == [200, 200]
        closing.result()
        with pytest.raises(ConnectionRefusedError):
            send(server, request())
        server.close()


def test_closing_does_not_wait_for_ever() -> None:
    scorer = Scorer()
    scorer.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        server = RewardServer(scorer, name="scorer")
        answers = [pool.submit(send, server, request())]
        assert scorer.entered.wait(10)
        answers.append(pool.submit(send, server, request()))
        wait_until(lambda: len(server.batcher._waiting) == 1)
        started = time.monotonic()
        server.close(0.2)
        assert time.monotonic() - started < 5
        assert answers[1].result()[0] == 503, "it was never begun"
        scorer.gate.set()
        assert answers[0].result()[0] == 200


def test_a_taken_port_says_so() -> None:
    with serve() as server, pytest.raises(OSError, match="in use"):
        RewardServer(Scorer(), name="scorer", port=server._http.server_port)


def test_limits_and_batches_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="limit images is 0"):
        Limits(images=0)
    with pytest.raises(ValueError, match="batch is 0"):
        RewardServer(Scorer(), name="scorer", batch=0)


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def bright(images, prompts, metadata):\n    return images.float().mean(dim=(1, 2, 3))\n"
    )
    command = [sys.executable, "-m", "t2i_gcpo.cli", "serve-rewards", "--reward", f"{tmp_path / 'mine.py'}:bright"]
    with subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.split("127.0.0.1:")[1].split(";")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/score", json.dumps(request()), {"Content-Type": "application/json"})
        scores = json.loads(connection.getresponse().read())["scores"]
        assert scores == pytest.approx([float(pictures(1).float().mean())])
        process.terminate()
        rest, errors = process.communicate(timeout=30)
        assert process.returncode == 0 and rest.endswith("stopped\n") and "Traceback" not in errors


def test_the_command_s_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    from t2i_gcpo import cli

    for arguments, says in (
        ([], "name the scorer"),
        (["--reward", "genval"], "unknown reward 'genval'"),
        (["--reward", "geneval", "--reward.detecter", "shapes"], "no option detecter"),
        (["--reward", "geneval", "--host", "0.0.0.0"], "give a token"),
        (["--reward", "geneval", "--max-images", "0"], "--max-images: '0' is not"),
        (["--reward", "nowhere.yaml"], "no such config file"),
    ):
        assert cli.main(["serve-rewards", *arguments]) == 2
        assert says in capsys.readouterr().err
    assert threading.active_count() < 50
    assert cli.main(["serve-rewards", "--help"]) == 0
    assert "--max-pixels" in capsys.readouterr().out
