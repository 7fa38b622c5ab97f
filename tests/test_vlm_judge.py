"""A judge behind OpenAI's chat API: a real server on this machine reads the pictures, or fails in every way it can."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rewards
from helpers.chat_server import ChatServer, Handler, by_brightness
from rewards.base import AsyncReward
from rewards.scorers.vlm_judge import VlmJudge
from rewards.vlm import endpoint, template
from rewards.vlm.answers import by_numbers, by_probability, by_word

GREYS = [0, 51, 102, 204, 255]


def grey(*levels: int) -> Tensor:
    """[B, 3, 5, 7] uint8, each picture of one grey."""
    return torch.tensor(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 5, 7).contiguous()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    monkeypatch.delenv("T2I_GCPO_JUDGE_TOKEN", raising=False)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


def judge(server: ChatServer, **options: Any) -> VlmJudge:
    reward = rewards.load("vlm_judge", **{"url": server.url, **options})
    assert isinstance(reward, VlmJudge)
    return reward


def ask(reward: VlmJudge, *levels: int) -> list[float]:
    names = [f"picture {level}" for level in levels]
    scores: list[float] = reward(grey(*levels), names, [{}] * len(levels)).scores.tolist()
    return scores


# -- what comes of an answer -------------------------------------------------------------------------------------------


def test_probabilities_of_yes(server: ChatServer) -> None:
    reward = judge(server)
    assert isinstance(reward, AsyncReward)
    assert ask(reward, *GREYS) == pytest.approx([level / 255 for level in GREYS], abs=1e-6)
    body = server.bodies[0]
    assert body["model"] == "judge-7b" and body["max_tokens"] == 1 and body["top_logprobs"] == 20
    assert set(server.questions) == {
        f'Does this figure show "picture {level}"? Please answer Yes or No.' for level in GREYS
    }


@pytest.mark.parametrize("options", [{"top_logprobs": 0}, {}])
def test_the_written_word_where_there_are_no_log_probs(options: dict[str, Any]) -> None:
    with ChatServer(logprobs=False) as server:
        assert ask(judge(server, **options), *GREYS) == [0, 0, 0, 1, 1]
        assert ("logprobs" in server.bodies[0]) == (not options)


def test_a_rating_is_the_expected_figure() -> None:
    def rule(pixels: np.ndarray, question: str) -> dict[str, float]:
        return {"4": 0.4, "5": 0.2, " 3": 0.1, "four": 0.2, "1": 0.1}

    with ChatServer(rule) as server:
        expected = (4 * 0.4 + 5 * 0.2 + 3 * 0.1 + 1 * 0.1) / 0.8
        assert ask(judge(server, template="rating"), 0) == pytest.approx([expected], abs=1e-6)


def test_numbers_that_are_written() -> None:
    def rule(pixels: np.ndarray, question: str) -> str:
        assert "Text Caption: [picture" in question
        level = 1 + 4 * float(pixels.mean()) / 255
        return f"Alignment Score (1-5): {level}\nCoherence Score (1-5): 2\nStyle Score (1-5): 3.5"

    with ChatServer(rule) as server:
        reward = judge(server, template="unified_reward_2")
        output = reward(grey(0, 255), ["picture 0", "picture 255"], [{}] * 2)
        assert output.scores.tolist() == pytest.approx([(1 + 2 + 3.5) / 3, (5 + 2 + 3.5) / 3])
        assert output.parts["alignment"].tolist() == [1, 5] and output.parts["style"].tolist() == [3.5, 3.5]
        assert "logprobs" not in server.bodies[0]


@pytest.mark.parametrize(
    ("tokens", "score"),
    [
        ([("Yes", 0.6), ("No", 0.2)], 0.75),
        ([("Yes", 0.3), (" yes", 0.2), ("YES", 0.1), ("no", 0.2)], 0.75),
        ([("Yes", 0.9)], 1.0),
        ([("No", 0.5)], 0.0),
        ([("Maybe", 0.6), ("Yes", 0.3), ("No", 0.1)], math.nan),
        ([("Yesterday", 0.9), ("Yes", 0.05)], math.nan),
        ([], math.nan),
    ],
)
def test_probabilities_by_hand(tokens: list[tuple[str, float]], score: float) -> None:
    got = by_probability([(text, math.log(p)) for text, p in tokens], {"yes": 1.0, "no": 0.0})
    assert got == pytest.approx(score, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "value"), [("Yes", 1), (" no.\n", 0), ("YES.", 1), ("Yes, it does", None), ("", None), ("yes no", None)]
)
def test_the_grammar_of_a_word(text: str, value: float | None) -> None:
    got = by_word(text, {"yes": 1.0, "no": 0.0})
    assert math.isnan(got) if value is None else got == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Final Score: 4", 4),
        ("dog (object): 1\nFinal Score: 3.5\n", 3.5),
        ("**Final Score:** 2", 2),
        ("Final Score: [5]", 5),
        ("a score from 1 to 5 after 'Final Score:' is asked for.\nFinal Score: 4.", 4),
        ("Final Score:\n4", 4),
        ("Final Score: 6", None),
        ("Final Score: 0", None),
        ("Final Score: 4/5", None),
        ("Final Score: 4.5/5", None),
        ("Final Score: 3-4", None),
        ("Final Score: 1.2.3", None),
        ("Final Score: 4\nFinal Score: 4", None),
        ("Final Score: four", None),
        ("The score is 4", None),
        ("Final Score: -3", None),
        ("Final Score: 1e9", None),
        ("Final Score: nan", None),
        ("", None),
    ],
)
def test_the_grammar_of_a_number(text: str, value: float | None) -> None:
    got = by_numbers(text, {"score": "Final Score:"}, (1.0, 5.0))["score"]
    assert math.isnan(got) if value is None else got == value


def test_an_answer_that_does_not_fit_is_no_score() -> None:
    def rule(pixels: np.ndarray, question: str) -> str:
        return "Final Score: 4" if pixels.mean() > 100 else "I cannot see a picture."

    with ChatServer(rule) as server:
        with pytest.raises(
            ValueError, match="reward 'vlm_judge' gave 1 of 2 images a score that is not finite.*'picture 0'"
        ):
            ask(judge(server, template="unified_reward"), 0, 255)
        scores = ask(judge(server, template="unified_reward", failure="mark"), 0, 255)
        assert math.isnan(scores[0]) and scores[1] == 4


# -- questions of the row ----------------------------------------------------------------------------------------------

DOG = [
    {"id": 1, "question": "Is there a dog?", "parents": [0], "category": "entity"},
    {"id": 2, "question": "Is it brown?", "parents": [1], "category": "attribute"},
    {"id": 3, "question": "Does its collar shine?", "parents": [1, 2], "category": "attribute"},
    {"id": 4, "question": "Is it night?", "parents": [0], "category": "global"},
]


def test_questions_as_dpg_bench_scores_them() -> None:
    yes: set[str] = set()

    def rule(pixels: np.ndarray, question: str) -> dict[str, float]:
        text = question.removesuffix(" Please answer yes or no.")
        return {"Yes": 0.8, "No": 0.2} if text in yes else {"No": 0.8, "Yes": 0.2}

    def answered(*numbers: int, **options: Any) -> tuple[float, dict[str, float]]:
        yes.clear()
        yes.update(one["question"] for one in DOG if one["id"] in numbers)
        with ChatServer(rule) as server:
            reward = judge(server, ask="questions", **options)
            output = reward(grey(0), ["a brown dog at night"], [{"questions": DOG}])
            assert len(server.bodies) == 4
            return output.scores.item(), {name: part.item() for name, part in output.parts.items()}

    assert answered(1, 2, 3, 4)[0] == 1
    # Without the dog neither its colour nor its collar counts; the categories are as answered.
    assert answered(2, 3, 4) == (0.25, {"category/entity": 0, "category/attribute": 1, "category/global": 1})
    # The colour falls, and with it what depends on the colour.
    assert answered(1, 3) == (0.25, {"category/entity": 1, "category/attribute": 0.5, "category/global": 0})


def test_questions_that_are_missing_or_lead_nowhere(server: ChatServer) -> None:
    reward = judge(server, ask="questions")
    with pytest.raises(ValueError, match="ask: questions has none for the prompt 'a dog'.*dpg_bench.csv"):
        reward(grey(0), ["a dog"], [{"tag": "any"}])
    nowhere = [{"id": 2, "question": "Is it brown?", "parents": [7]}]
    marked = judge(server, ask="questions", failure="mark")
    assert marked(grey(255), ["a dog"], [{"questions": nowhere}]).scores.isnan().all()
    with pytest.raises(ValueError, match="questions need one whose answer is one word"):
        judge(server, ask="questions", template="unified_reward")
    with pytest.raises(ValueError, match="ask is 'everything'; allowed: prompt, questions"):
        judge(server, ask="everything")


# -- many at once ------------------------------------------------------------------------------------------------------


def test_requests_run_side_by_side_up_to_the_bound(server: ChatServer) -> None:
    server.gate.clear()
    reward = judge(server, concurrency=3)
    assert reward.submit_batch == 3
    pending = reward.submit(grey(*range(8)), [f"p{k}" for k in range(8)], [{}] * 8)
    deadline = time.monotonic() + 10
    while server.running < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.1)
    assert server.running == 3
    server.gate.set()
    assert pending.result().scores.tolist() == pytest.approx([level / 255 for level in range(8)], abs=1e-6)
    assert server.most_running == 3


def test_the_same_picture_and_question_are_asked_once(server: ChatServer) -> None:
    reward = judge(server)
    same = reward(grey(51, 51, 51), ["a", "a", "b"], [{}] * 3).scores.tolist()
    assert len(server.bodies) == 2 and same == pytest.approx([0.2] * 3, abs=1e-6)
    reward(grey(51, 52), ["a", "a"], [{}] * 2)
    assert len(server.bodies) == 3
    forgetful = judge(server, cache=0)
    forgetful(grey(51, 51), ["a", "a"], [{}] * 2)
    assert len(server.bodies) == 5


def test_pictures_of_another_size_with_the_same_bytes_are_others(server: ChatServer) -> None:
    reward = judge(server)
    image = torch.arange(60, dtype=torch.uint8).reshape(1, 3, 4, 5)
    reward(image, ["a"], [{}])
    flat = image.permute(0, 2, 3, 1).reshape(1, 5, 4, 3).permute(0, 3, 1, 2)
    reward(flat, ["a"], [{}])
    assert len(server.bodies) == 2


def test_what_did_not_fit_is_asked_again() -> None:
    replies = ["nonsense", "Final Score: 3"]
    with ChatServer(lambda pixels, question: replies.pop(0)) as server:
        reward = judge(server, template="unified_reward", failure="mark")
        assert math.isnan(ask(reward, 0)[0]) and ask(reward, 0) == [3] and ask(reward, 0) == [3]
        assert len(server.bodies) == 2


def test_several_servers_take_turns(server: ChatServer) -> None:
    with ChatServer() as other:
        reward = judge(server, url=[server.url, other.url])
        assert ask(reward, *GREYS) == pytest.approx([level / 255 for level in GREYS], abs=1e-6)
        assert abs(len(server.bodies) - len(other.bodies)) <= 1 and len(server.bodies) + len(other.bodies) == 5


# -- when the server fails ---------------------------------------------------------------------------------------------


def hang_up(handler: Handler) -> None:
    handler.connection.close()


def half_an_answer(handler: Handler) -> None:
    handler.reply(b'{"choices": [', length=4096)
    handler.connection.close()


FAULTS: dict[str, Callable[[Handler], None]] = {
    "busy": lambda handler: handler.send({"error": {"message": "too many requests"}}, 429),
    "broken": lambda handler: handler.send({"error": "engine is dead"}, 500),
    "away": lambda handler: handler.reply(b"<html>bad gateway</html>", 502),
    "garbage": lambda handler: handler.reply(b"\xff\xfe no json"),
    "a list": lambda handler: handler.send([1, 2]),
    "hangs up": hang_up,
    "half an answer": half_an_answer,
    "no http": lambda handler: handler.wfile.write(b"hello\r\n\r\n") and None,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_it_asks_again(server: ChatServer, fault: Callable[[Handler], None]) -> None:
    server.faults = [fault, fault]
    assert ask(judge(server, retries=2, concurrency=1), 51) == pytest.approx([0.2], abs=1e-6)
    assert len(server.bodies) == 3


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_it_gives_up_with_the_reason(server: ChatServer, fault: Callable[[Handler], None]) -> None:
    """A server that is dead stops the run under both policies: it says nothing about the pictures."""
    reward = judge(server, retries=1, failure="mark")
    server.faults = [fault] * 2
    with pytest.raises(
        ConnectionError, match=f"no judge answered after 2 tries .{server.url}: .+start its server again"
    ):
        ask(reward, 51)


def test_a_slow_answer_runs_out_of_time(server: ChatServer) -> None:
    reward = judge(server, timeout=0.2, retries=0)
    server.gate.clear()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no answer within 0.2 s"):
        ask(reward, 51)
    assert time.monotonic() - began < 5


def test_bytes_that_trickle_do_not_hold_it_up(server: ChatServer) -> None:
    """A socket's own time limit starts anew with every byte."""
    over = threading.Event()

    def trickle(handler: Handler) -> None:
        handler.reply(b"", length=10_000)
        while not over.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    reward = judge(server, timeout=0.4, retries=0)
    server.faults = [trickle]
    began = time.monotonic()
    try:
        with pytest.raises(ConnectionError, match="no answer within 0.4 s"):
            ask(reward, 51)
        assert time.monotonic() - began < 5
    finally:
        over.set()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda handler: handler.send({"error": {"message": "image too large"}}, 400),
            "refused the request: image too large",
        ),
        (lambda handler: handler.send({"detail": "no such key"}, 401), "refused the token: no such key"),
        (lambda handler: handler.send({"choices": []}), "has no choices"),
        (lambda handler: handler.send({"choices": [{"text": "Yes"}]}), "no choices.0..message.content"),
        (
            lambda handler: handler.send(
                {
                    "choices": [
                        {"message": {"content": "Yes"}, "logprobs": {"content": [{"top_logprobs": [{"token": "Yes"}]}]}}
                    ]
                }
            ),
            "log-probs are not those of an OpenAI-compatible server",
        ),
    ],
)
def test_a_refusal_is_not_tried_again(server: ChatServer, fault: Callable[[Handler], None], message: str) -> None:
    server.faults = [fault]
    with pytest.raises(ValueError, match=message):
        ask(judge(server, retries=3), 51)
    assert len(server.bodies) == 1


def test_a_server_that_dies_is_left_for_the_other(server: ChatServer) -> None:
    with ChatServer() as other:
        reward = judge(server, url=[server.url, other.url], retries=1)
        other.shutdown()
        other.server_close()
        assert ask(reward, *GREYS) == pytest.approx([level / 255 for level in GREYS], abs=1e-6)


def test_the_first_error_ends_the_others(server: ChatServer) -> None:
    """Nobody waits for the retries of a hundred requests once the run is lost."""
    reward = judge(server, concurrency=1, retries=0)
    server.faults = [hang_up]
    pending = reward.submit(grey(*range(50)), [f"p{k}" for k in range(50)], [{}] * 50)
    with pytest.raises(ConnectionError):
        pending.result()
    time.sleep(0.3)
    assert len(server.bodies) < 25


# -- what is refused before anything is asked --------------------------------------------------------------------------


def test_the_model_and_the_token(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="serves no model 'other'; it serves: judge-7b"):
        judge(server, model="other")
    server.models = ("a", "b")
    with pytest.raises(ValueError, match="serves a, b; name one of them"):
        judge(server)
    ask(judge(server, model="b"), 51)
    assert server.bodies[-1]["model"] == "b" and server.tokens[-1] is None
    monkeypatch.setenv("T2I_GCPO_JUDGE_TOKEN", "secret")
    ask(judge(server, model="b"), 51)
    ask(judge(server, model="b", token="mine"), 51)
    assert server.tokens[-2:] == ["Bearer secret", "Bearer mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": []}, "needs a url"),
        ({"url": "127.0.0.1:8000"}, "write http://host:port/v1"),
        ({"url": "http://me:secret@host/v1"}, "give a token"),
        ({"template": "nonsense"}, "there is no template 'nonsense'; available: .*unified_reward.*vqascore"),
        ({"timeout": 0}, "timeout is 0"),
        ({"retries": -1}, "retries -1"),
        ({"timeout": math.nan}, "timeout is nan"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"top_logprobs": 21}, "top_logprobs 21"),
        ({"cache": -1}, "cache -1"),
        ({"failure": "ignore"}, "failure policy 'ignore'"),
    ],
)
def test_options_that_are_wrong(server: ChatServer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(server, **options)


def test_no_server_at_all() -> None:
    with ChatServer() as server:
        url = server.url
    with pytest.raises(ConnectionError, match="no judge answered after 1 tries"):
        rewards.load("vlm_judge", url=url, retries=0)


def test_images_that_are_wrong(server: ChatServer) -> None:
    reward = judge(server)
    with pytest.raises(ValueError, match="takes uint8 images"):
        reward(torch.zeros(1, 3, 4, 4), ["a"], [{}])
    with pytest.raises(ValueError, match="1 images and 2 prompts"):
        reward(grey(0), ["a", "b"], [{}])
    with pytest.raises(ValueError, match="1 prompts and 2 rows"):
        reward(grey(0), ["a"], [{}, {}])
    assert server.bodies == []


# -- templates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", template.available())
def test_the_templates_of_the_package(name: str) -> None:
    one = template.load(name)
    assert one.source and one.licence
    assert one.question("a red star") != one.text or name == "qwen_vl_aesthetic"
    for label in one.labels.values():
        assert label in one.text


def test_a_template_of_ones_own(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('text: "Is it {prompt}, really {prompt}?"\nanswer:\n  words: {"Yes": 10, "No": -10}\n')
    assert ask(judge(server, template=str(path)), 255, 0) == pytest.approx([10, -10], abs=1e-6)
    assert "Is it picture 0, really picture 0?" in server.questions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("answer: {digits: [1, 5]}", "has a `text` and an `answer`"),
        ("[1, 2]", "has a `text` and an `answer`"),
        ("text: a\nanswer: {digits: [1, 5]}\nscale: 3", "unknown key scale; allowed: source"),
        ("text: a\nanswer: {digits: [1, 5], words: {a: 1, b: 2}}", "give one of words, digits, numbers"),
        ("text: a\nanswer: {digits: [0, 100]}", "whole numbers of one figure"),
        ("text: a\nanswer: {words: {yes: 1, no: 0}}", "words in quotes"),
        ("text: a\nanswer: {words: {'yes': 1}}", "at least two words"),
        ("text: a\nanswer: {words: {'yes': true, 'no': false}}", "each with its value"),
        ("text: a\nanswer: {numbers: {score: 'S:'}}", "`range` is None"),
        ("text: a\nanswer: {numbers: {score: 'S:'}}\nrange: [5, 1]", "least and its greatest"),
        ("text: a\nanswer: {numbers: [1]}\nrange: [1, 5]", "the label that each number follows"),
        ("text: a\nanswer: {digits: [1, 5]}\nmax_tokens: 0", "max_tokens is 0"),
        ("text: [a", "is not a YAML file"),
    ],
)
def test_templates_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        template.load(str(path))


def test_the_rule_of_the_server_is_what_the_tests_believe() -> None:
    assert by_brightness(np.full((2, 2, 3), 255), "")["Yes"] == 0.9
