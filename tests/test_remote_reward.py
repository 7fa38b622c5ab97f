"""The client of reward servers on loopback: order, fail-over, retries, time-outs, and whatever a server may answer."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.rogue import ABOUT, SCORER, content, head, rogue, say, scores
from helpers.served import Scorer, kill, pictures, serve
from rewards.base import AsyncReward, PromptError, Reward, RewardOutput
from rewards.geneval.reward import GenEvalReward
from rewards.remote import server_pool
from rewards.remote.client import RemoteReward
from rewards.remote.exchange import clean
from rewards.remote.server import RewardServer
from rewards.weighted_sum import Composite


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds between two rounds, and no token from outside."""
    monkeypatch.setattr(server_pool, "BACKOFF", 0.01)
    monkeypatch.delenv("T2I_GCPO_REWARD_TOKEN", raising=False)


def prompts_of(images: Tensor) -> list[str]:
    return ["p" * k for k in range(len(images))]


def score(reward: Reward, images: Tensor, **row: Any) -> RewardOutput:
    return reward(images, prompts_of(images), [dict(row) for _ in images])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# -- what a call returns -----------------------------------------------------------------------------------------------


def test_the_scores_are_those_of_the_scorer_itself_in_their_order() -> None:
    images, scorer = pictures(7), Scorer()
    rows: list[dict[str, Any]] = [{"bonus": k / 3, "tag": "ab"[k % 2]} for k in range(7)]
    here = scorer(images, prompts_of(images), rows)
    with serve(scorer) as server:
        reward = RemoteReward(url=server.url, batch_size=2, parallel=3)
        there = reward(images, prompts_of(images), rows)
        assert reward.name == "remote scorer" and reward.submit_batch == 2 and reward.weights is None
    assert torch.equal(there.scores, here.scores), "bit for bit"
    assert there.parts.keys() == here.parts.keys()
    for name, values in here.parts.items():
        assert torch.equal(there.parts[name].nan_to_num(-1), values.nan_to_num(-1))


def test_reasons_come_back_from_a_server_image_by_image() -> None:
    images = pictures(5)
    with serve(GenEvalReward()) as server:
        reward = RemoteReward(url=server.url, batch_size=2, parallel=2)
        rows = [{"tag": "counting", "include": [{"class": "star", "count": k + 1}]} for k in range(5)]
        output = reward(images, prompts_of(images), rows)
    what = ["star", *(f"{k + 1} × star" for k in range(1, 5))]
    assert [lines[0] for lines in output.reasons] == [f"{words}: there are 0" for words in what]


def test_answers_that_come_in_another_order_are_put_in_the_images_order() -> None:
    class Later(Reward):
        """The sooner an image, the later its answer."""

        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
            time.sleep(0.06 - 0.02 * len(prompts[0]))
            return RewardOutput(torch.tensor([float(len(prompt)) for prompt in prompts]))

    with serve(Later()) as one, serve(Later()) as two, serve(Later()) as three:
        reward = RemoteReward(url=[one.url, two.url, three.url], batch_size=1, parallel=1)
        assert score(reward, pictures(3)).scores.tolist() == [0, 1, 2]


def test_the_weights_of_a_sum_on_the_server_are_told() -> None:
    with serve(Scorer({"brightness": 0.5})) as server:
        assert RemoteReward(url=server.url).weights == {"brightness": 0.5}


def test_submit_returns_before_the_server_scores() -> None:
    scorer = Scorer()
    scorer.gate.clear()
    with serve(scorer) as server:
        reward = RemoteReward(url=server.url, batch_size=2)
        images = pictures(4)
        pending = reward.submit(images, prompts_of(images), [{}] * 4)
        assert scorer.entered.wait(10), "the server is at work, and we are here"
        scorer.gate.set()
        assert pending.result().scores.tolist() == score(scorer, images).scores.tolist()
        assert torch.equal(pending.result().scores, pending.result().scores), "it may be asked for again"


def test_a_composite_s_other_rewards_work_while_the_server_does() -> None:
    scorer = Scorer()
    scorer.gate.clear()

    class Here(Reward):
        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
            assert scorer.entered.wait(10), "the server was asked first"
            scorer.gate.set()  # it ends only after this one has been called
            return RewardOutput(torch.ones(len(images)))

    with serve(scorer) as server:
        both = Composite({"here": Here(), "there": RemoteReward(url=server.url, batch_size=3)}, {"there": 2.0})
        assert both.submit_batch == 3
        images = pictures(3)
        pending = both.submit(images, prompts_of(images), [{}] * 3)
        output = pending.result()
        there = score(scorer, images).scores
        assert torch.equal(output.scores, 1 + 2 * there) and torch.equal(output.parts["there"], there)
        assert output.parts.keys() == {"here", "there", "there/brightness"}


@pytest.mark.parametrize("names", [("here", "there"), ("there", "here")])
def test_the_wait_for_a_server_comes_last_in_whatever_order(names: tuple[str, str]) -> None:
    calls: list[str] = []

    class Here(Reward):
        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
            calls.append("here")
            return RewardOutput(torch.ones(len(images)))

    class Waiting:
        def result(self) -> RewardOutput:
            calls.append("waited")
            return RewardOutput(torch.zeros(1))

    class There(AsyncReward):
        submit_batch = 4

        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
            raise AssertionError("it is asked by submit")

        def submit(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Waiting:
            calls.append("sent")
            return Waiting()

    rewards: dict[str, Reward] = {"here": Here(), "there": There()}
    both = Composite({name: rewards[name] for name in names})
    assert both(pictures(1), [""], [{}]).scores.tolist() == [1.0]
    assert calls == ["sent", "here", "waited"]


def test_a_composite_of_rewards_here_gains_nothing_by_submitting() -> None:
    both = Composite({"a": Scorer(), "b": Scorer()})
    assert both.submit_batch is None
    assert torch.equal(both.submit(pictures(2), ["", "a"], [{}, {}]).result().scores, score(both, pictures(2)).scores)


def test_an_error_on_the_server_is_raised_where_the_scores_are_asked_for() -> None:
    with serve() as server:
        both = Composite({"there": RemoteReward(url=server.url, retries=0)})
        pending = both.submit(pictures(1), [""], [{"error": "ValueError"}])
        with pytest.raises(ValueError, match="no such thing"):
            pending.result()


def test_failed_scores_are_marked_or_raised() -> None:
    with serve() as server:
        marked = RemoteReward(url=server.url, failure="mark", batch_size=1)
        output = marked(pictures(2), ["a", "b"], [{"bonus": None}, {}])
        assert output.scores.isnan().tolist() == [True, False]
        with pytest.raises(ValueError, match=r"'remote scorer' gave 1 of 2 .*not finite \(prompts: 'a'\)"):
            RemoteReward(url=server.url)(pictures(2), ["a", "b"], [{"bonus": None}, {}])


# -- fail-over ---------------------------------------------------------------------------------------------------------


def test_a_server_that_dies_in_the_middle_of_a_batch_is_replaced_by_the_next() -> None:
    """The first server has taken a request, and is gone before it answers."""
    dead = threading.Event()
    images = pictures(6)
    with serve(scorer := Scorer()) as good:

        def die(connection: socket.socket) -> None:
            dead.set()  # the connection is closed without an answer

        with rogue(die) as bad:
            reward = RemoteReward(url=[bad.url, good.url], batch_size=2, parallel=1, retries=0)
            assert torch.equal(score(reward, images).scores, score(scorer, images).scores)
        assert dead.is_set() and "/score" in bad.requests


def test_a_server_that_dies_between_submit_and_result_is_replaced_by_the_next() -> None:
    slow, quick_one = Scorer(), Scorer()
    slow.gate.clear()
    images = pictures(1)
    with serve(quick_one) as good:
        dying = RewardServer(slow, name="scorer")
        reward = RemoteReward(url=[dying.url, good.url], batch_size=1, parallel=1, retries=1, timeout=20)
        pending = reward.submit(images, [""], [{}])
        assert slow.entered.wait(10)
        kill(dying)
        for connection in list(dying.arrivals._there):
            connection.shutdown(socket.SHUT_RDWR)
        assert torch.equal(pending.result().scores, score(quick_one, images).scores)
        assert len(quick_one.batches) == 2, "the second server scored it, then we did"
        slow.gate.set()


def test_a_busy_server_is_asked_last_and_the_others_take_its_requests() -> None:
    def busy(connection: socket.socket) -> None:
        body = b'{"error": "the server is busy; try again"}'
        connection.sendall(head(body, "503 Service Unavailable") + body)

    with serve(scorer := Scorer()) as good, rogue(busy) as bad:
        reward = RemoteReward(url=[bad.url, good.url], batch_size=1, parallel=1, retries=0)
        for _ in range(3):
            assert torch.equal(score(reward, pictures(3)).scores, score(scorer, pictures(3)).scores)
        assert bad.requests.count("/score") <= 2, "asked at most once by each of the requests that began together"


def test_every_server_is_asked_as_often_as_said_and_all_are_named() -> None:
    def fail(connection: socket.socket) -> None:
        body = b'{"error": "the scorer failed: OutOfMemoryError"}'
        connection.sendall(head(body, "500 Internal Server Error") + body)

    with rogue(fail) as one, rogue(fail) as two:
        reward = RemoteReward(url=[one.url, two.url], retries=2)
        with pytest.raises(ConnectionError, match="OutOfMemoryError.*3 times each") as caught:
            score(reward, pictures(1))
        assert one.url in str(caught.value) and two.url in str(caught.value)
        assert one.requests.count("/score") == two.requests.count("/score") == 3


def test_a_server_that_comes_back_is_found_again() -> None:
    port, images = free_port(), pictures(2)
    server = RewardServer(Scorer(), name="scorer", port=port)
    reward = RemoteReward(url=server.url, retries=50)
    before = score(reward, images).scores
    server.close()
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(score, reward, images)
        time.sleep(0.1)
        with serve(port=port):
            assert torch.equal(again.result(30).scores, before)


def test_no_server_at_all() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=f"{url}: .*refused.*2 times each; start it again"):
        RemoteReward(url=url, retries=1)


def test_the_first_error_ends_the_waiting_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "BACKOFF", 60.0)
    numbers = count()

    def refuse_one(connection: socket.socket) -> None:
        number = next(numbers)
        status = "422 Unprocessable" if number == 0 else "500 Internal Server Error"
        body = b'{"error": "no"}'
        connection.sendall(head(body, status) + body)

    with rogue(refuse_one) as server:
        reward = RemoteReward(url=server.url, batch_size=1, parallel=1, retries=3)
        pending = reward.submit(pictures(3), ["", "", ""], [{}] * 3)
        with pytest.raises(ValueError, match=f"{server.url}: no"):
            pending.result()
        deadline = time.monotonic() + 10
        while any(thread.name == "remote reward" for thread in threading.enumerate()):
            assert time.monotonic() < deadline, "the other requests still wait"
            time.sleep(0.01)


# -- answers that are none ---------------------------------------------------------------------------------------------


def cut(after: int, announced: bool = True) -> Any:
    """An answer of which only some bytes come."""
    body = json.dumps(scores(1)).encode()
    start = head(body) if announced else b"HTTP/1.1 200 OK\r\n\r\n"
    return lambda connection: connection.sendall(start + body[:after])


def cut_head(after: int) -> Any:
    """Only some bytes of an answer's head come; http.client takes what there is for the whole head."""
    return lambda connection: connection.sendall(head(b"{}")[:after])


@pytest.mark.parametrize(
    "answer",
    [
        *(cut(0), cut(5), cut(30)),
        *(cut(after, announced=False) for after in (0, 5, json.dumps(scores(1)).index("}") + 1)),
        *(cut_head(after) for after in (17, 30, len(head(b"{}")) - 1)),
    ],
    ids=[
        "0",
        "5",
        "30",
        "no length, 0",
        "no length, 5",
        "no length, a brace",
        "head, 17",
        "head, 30",
        "head, all but 1",
    ],
)
def test_a_cut_answer_is_asked_for_again_elsewhere(answer: Any) -> None:
    with rogue(answer) as bad, rogue(say(scores(1))) as good:
        reward = RemoteReward(url=[bad.url, good.url], retries=0)
        assert score(reward, pictures(1)).scores.tolist() == [0]
        with pytest.raises(ConnectionError, match="the answer ends in its middle"):
            score(RemoteReward(url=bad.url, retries=0), pictures(1))


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
)
def test_what_http_client_cannot_read_is_a_server_that_is_away(data: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(data)

    with rogue(answer) as bad, rogue(say(scores(1))) as good:
        assert score(RemoteReward(url=[bad.url, good.url], retries=0), pictures(1)).scores.tolist() == [0]
        with pytest.raises(ConnectionError, match="no reward server answered"):
            score(RemoteReward(url=bad.url, retries=0), pictures(1))


def drip(data: bytes, seconds: float) -> Any:
    """An answer whose bytes come one by one."""

    def answer(connection: socket.socket) -> None:
        for k in range(len(data)):
            connection.sendall(data[k : k + 1])
            time.sleep(seconds)

    return answer


def test_a_dripped_answer_ends_at_the_deadline() -> None:
    whole = content(scores(1))
    for data in (whole, whole[: whole.index(b"\r\n\r\n") + 4] + b" " * 10_000):
        with rogue(drip(data, 0.05)) as server:
            reward = RemoteReward(url=server.url, retries=0, timeout=0.4)
            started = time.monotonic()
            with pytest.raises(ConnectionError, match=r"no answer in 0.4 seconds"):
                score(reward, pictures(1))
            assert time.monotonic() - started < 2


def test_an_answer_that_never_comes_is_a_time_out_and_goes_elsewhere() -> None:
    released = threading.Event()
    with rogue(lambda connection: bool(released.wait(20))) as bad, rogue(say(scores(1))) as good:  # type: ignore[arg-type,return-value]
        reward = RemoteReward(url=[bad.url, good.url], retries=0, timeout=0.3)
        assert score(reward, pictures(1)).scores.tolist() == [0]
        released.set()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (scores(2), "scores are 2 values for 1 images"),
        ({**scores(1), "scores": None}, "scores are NoneType for 1 images"),
        ({**scores(1), "scores": ["1"]}, "scores are not all numbers"),
        ({**scores(1), "scores": [True]}, "scores are not all numbers"),
        ({**scores(1), "scores": [10**400]}, "a number that is too large"),
        ({**scores(1), "parts": [1]}, "no object with scores and parts"),
        (scores(1, part=[1, 2]), "part are 2 values for 1 images"),
        (scores(1, **{"\x1b[2J": [1.0]}), "printable names"),
        (scores(1, **{"x" * 201: [1.0]}), "printable names"),
        (scores(1, **{f"p{k}": [1.0] for k in range(5000)}), "5000 parts"),
        ({**scores(1), "reasons": [["a"], ["b"]]}, "one list for each of the 1 images"),
        ({**scores(1), "reasons": [["\x1b[2J"]]}, "printable lines"),
        ({**scores(1), "reasons": [["a"] * 65]}, "more than 64 reasons"),
        ([], "answered 200 and no JSON"),
        (b"<html>", "answered 200 and no JSON"),
        (b"[" * 100_000, "answered 200 and no JSON"),
        (b'{"scores": [' + b"9" * 5000 + b"]}", "answered 200 and no JSON"),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error_with_the_server_s_name(answer: Any, says: str) -> None:
    with rogue(say(answer)) as server:
        reward = RemoteReward(url=server.url, retries=0)
        with pytest.raises(ValueError, match=server.url) as caught:
            score(reward, pictures(1))
        assert says in str(caught.value)


def test_nan_in_an_answer_is_a_failed_image() -> None:
    for number in ("NaN", "Infinity", "null"):
        body = json.dumps(scores(2)).replace("1.0", number).encode()
        with rogue(say(body)) as server:
            output = score(RemoteReward(url=server.url, failure="mark"), pictures(2))
            assert output.scores[0] == 0 and math.isnan(output.scores[1])
            with pytest.raises(ValueError, match="not finite"):
                score(RemoteReward(url=server.url), pictures(2))


def test_a_server_s_words_are_shown_short_and_clean() -> None:
    words = "\x1b]0;owned\x07\x1b[31mno\r\n" + "y" * 5 * 10**6
    body = json.dumps({"error": words}).encode()
    for status, kind in (("422 No", ValueError), ("401 No", ValueError), ("500 No", ConnectionError)):
        with rogue(lambda connection, status=status: connection.sendall(head(body, status) + body)) as server:
            with pytest.raises(kind) as caught:
                score(RemoteReward(url=server.url, retries=0), pictures(1))
            assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()
    assert clean("a\tb\u202ec\n\n d") == "a b c d" and clean("é 日本") == "é 日本"


@pytest.mark.parametrize("status", ["422 No", "400 No", "404 No", "413 No"])
def test_what_a_server_refuses_is_not_asked_again(status: str) -> None:
    body = b'{"error": "it lacks a class"}'
    with rogue(lambda connection: connection.sendall(head(body, status) + body)) as server:
        with pytest.raises(ValueError, match="it lacks a class"):
            score(RemoteReward(url=server.url, retries=5), pictures(1))
        assert server.requests.count("/score") == 1


# -- what a server says of itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"protocol": 1}, "speaks protocol 1"),
        ({"protocol": "\x1b[2J"}, "speaks protocol"),
        ({"limits": None}, "'limits' of its /metadata is null"),
        ({"limits": 3}, "'limits' of its /metadata is 3"),
        ({"limits": {"images": "many"}}, "'limits.images' of its /metadata is \"many\""),
        ({"limits": {"images": None}}, "'limits.images'"),
        ({"limits": {"images": 0}}, "'limits.images' of its /metadata is 0"),
        ({"limits": {"images": 2.5}}, "'limits.images'"),
        ({"limits": {"images": True}}, "'limits.images'"),
        ({"limits": {"waiting": -1}}, "'limits.waiting'"),
        ({"identity": None}, "'identity' of its /metadata is null"),
        ({"identity": {**SCORER, "name": 3}}, "'identity.name'"),
        ({"identity": {**SCORER, "name": "\x1b[31m"}}, "'identity.name'"),
        ({"identity": {**SCORER, "name": "x" * 10**6}}, "'identity.name'"),
        ({"identity": {**SCORER, "options": []}}, "'identity.options'"),
        ({"identity": {**SCORER, "weights": [1]}}, "'identity.weights'"),
        ({"identity": {**SCORER, "weights": {"a": "b"}}}, "'identity.weights'"),
        ({"identity": {**SCORER, "weights": {"a": 10**400}}}, "'identity.weights'"),
    ],
)
def test_odd_metadata_is_refused_with_what_is_odd(about: dict[str, Any], says: str) -> None:
    with rogue(say(scores(1)), metadata=say({**ABOUT, **about})) as server:
        with pytest.raises(ValueError, match=server.url) as caught:
            RemoteReward(url=server.url, retries=0)
        assert says in str(caught.value) and len(str(caught.value)) < 2000 and str(caught.value).isprintable()


def test_servers_with_different_scorers_are_refused() -> None:
    with (
        serve(options={"score": "strict"}) as one,
        serve(options={"score": "clauses"}) as two,
        pytest.raises(ValueError, match="serve different scorers.*strict.*clauses"),
    ):
        RemoteReward(url=[one.url, two.url])
    with serve(options={"device": "cuda:0"}) as one, serve(options={"device": "cuda:1"}) as two:
        RemoteReward(url=[one.url, two.url])  # the same scorer, elsewhere


def test_a_server_that_comes_back_with_another_scorer_is_refused() -> None:
    port = free_port()
    server = RewardServer(Scorer(), name="scorer", port=port)
    reward = RemoteReward(url=server.url, retries=50)
    identity = reward.identity()
    server.close()
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(score, reward, pictures(1))
        time.sleep(0.1)  # it is seen to be away
        with (
            serve(port=port, name="clip"),
            pytest.raises(ValueError, match="come back with another scorer.*'scorer'.*'clip'"),
        ):
            again.result(30)
    assert reward.identity() == identity == {"name": "scorer", "options": {}, "weights": None}


def test_a_server_that_was_replaced_between_two_requests_is_refused_too() -> None:
    port = free_port()
    server = RewardServer(Scorer(), name="scorer", port=port)
    reward = RemoteReward(url=server.url, retries=0)
    score(reward, pictures(1))
    server.close()
    with serve(port=port, name="clip"), pytest.raises(ValueError, match="has another scorer than it had"):
        score(reward, pictures(1))


def test_a_server_that_was_away_at_the_start_is_asked_who_it_is_when_it_comes() -> None:
    port = free_port()
    with serve() as good:
        reward = RemoteReward(url=[good.url, f"http://127.0.0.1:{port}"], retries=0, parallel=1)
        with serve(port=port, name="clip"):
            reward.servers._away.clear()  # as after half a minute
            with pytest.raises(ValueError, match="different scorers"):
                score(reward, torch.cat([pictures(1)] * 40))  # three requests: both are asked


# -- prompts are checked over there ------------------------------------------------------------------------------------


def test_prompts_are_checked_by_the_server_with_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    import rewards
    from rewards.remote import client

    monkeypatch.setattr(client, "_CHECKED", 2)
    good, bad = {"include": [{"class": "star"}]}, {"include": [{"class": "star", "count": "two"}]}
    with serve(rewards.load("geneval"), name="geneval") as server:
        reward = RemoteReward(url=server.url, retries=0)
        reward.check_prompts(["a"] * 5, [good] * 5)
        with pytest.raises(
            PromptError, match=rf"{server.url}: .*'a riddle'.*'count' of include\[0\] is 'two'"
        ) as caught:
            reward.check_prompts(["a", "b", "c", "a riddle"], [good, good, good, bad])
        assert caught.value.index == 3
        assert server.metadata()["counts"]["images"] == 0
        assert reward.identity() == rewards.load("geneval").identity()
        with pytest.raises(ValueError, match="'count' of include"):  # no "no server answered"
            reward(pictures(1), ["a riddle"], [bad])


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout": math.nan}, "timeout is nan"),
        ({"timeout": math.inf}, "timeout is inf"),
        ({"timeout": 1e300}, "timeout is 1e+300"),
        ({"timeout": True}, "timeout is True"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
        ({"retries": -1}, "retries -1"),
        ({"retries": "many"}, "retries 'many'"),
        ({"retries": 1.5}, "retries 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "x"}, "batch_size is x"),
        ({"parallel": 0}, "parallel 0"),
        ({"compress": 10}, "compress 10"),
        ({"url": []}, "needs a url"),
        ({"url": 7}, "the reward servers' urls are [7]; each must be a text"),
        ({"url": ["http://a", None]}, "each must be a text"),
        ({"url": "127.0.0.1:8765"}, "write http://host:port"),
        ({"url": "http://"}, "write http://host:port"),
        ({"url": "http://127.0.0.1:99999"}, "99999"),
        ({"url": "http://a b"}, "characters that no url has"),
        ({"url": "http://" + "a" * 64 + ".org"}, "too long"),
        ({"url": "http://a..b"}, "no url has"),
        ({"failure": "ignore"}, "failure policy 'ignore'"),
    ],
)
def test_options_are_checked_before_anything_is_sent(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        RemoteReward(**{"url": "http://127.0.0.1:1", "retries": 0, **options})
    assert says in str(caught.value)


@pytest.mark.parametrize("token", ["hunter2\n", "hunter2\r\nX: y", "", "hünter2"])
def test_a_token_that_cannot_be_sent_is_refused_and_never_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the reward server's token is empty or holds characters") as caught:
        RemoteReward(url="http://127.0.0.1:1", token=token, retries=0)
    assert "nter2" not in str(caught.value)
    with pytest.raises(ValueError, match="leave them out") as caught:
        RemoteReward(url="http://me:hunter2@127.0.0.1:1")
    assert "hunter2" not in str(caught.value)
    if token:
        monkeypatch.setenv("T2I_GCPO_REWARD_TOKEN", token)
        with pytest.raises(ValueError, match="the reward server's token") as caught:
            RemoteReward(url="http://127.0.0.1:1", retries=0)
        assert "nter2" not in str(caught.value)


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(token="sesame") as server:
        with pytest.raises(ValueError, match="refused the token"):
            RemoteReward(url=server.url, retries=0)
        monkeypatch.setenv("T2I_GCPO_REWARD_TOKEN", "sesame")
        assert "sesame" not in json.dumps(RemoteReward(url=server.url).identity())


def test_large_pictures_are_sent_in_smaller_requests() -> None:
    from rewards.remote.protocol import Limits

    with serve(scorer := Scorer(), limits=Limits(waiting=200)) as server:
        reward = RemoteReward(url=server.url, batch_size=16, parallel=2)
        images = pictures(6)  # 48 pixels each, and 100 for each of our two requests
        assert torch.equal(score(reward, images).scores, score(scorer, images).scores)
        assert max(len(batch) for batch in scorer.batches[:-1]) <= 4 and server.metadata()["counts"]["requests"] == 3


def test_what_is_no_batch_is_refused_before_it_is_sent() -> None:
    with rogue(say(scores(1))) as server:
        reward = RemoteReward(url=server.url)
        with pytest.raises(ValueError, match="2 images, 1 prompts"):
            reward.submit(pictures(2), ["a"], [{}, {}])
        with pytest.raises(ValueError, match="cannot be sent to a reward server"):
            reward(pictures(1), ["a"], [{"x": object()}])
        assert server.requests.count("/score") == 0
