"""The arithmetic task: its questions, its reasoning, its reward; and negative prompts, which need no TRL either."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from t2i_gcpo.text.arithmetic import (
    Problem,
    arithmetic_reward,
    draw_problem,
    problems,
    read_answer,
    rows,
    wrong_results,
)
from t2i_gcpo.text.data import read_rows
from t2i_gcpo.text.negatives import WRONG_INSTRUCTION, check_different, negative_prompt


def test_a_worked_question() -> None:
    problem = Problem((37, 48, 19), ("+", "-"))
    assert problem.question == "What is 37+48-19?"
    assert problem.reasoning() == "37+48=85. 85-19=66. The answer is 66."
    assert problem.results == (85, 66) and problem.answer == 66
    assert problem.reasoning([84, 65]) == "37+48=84. 84-19=65. The answer is 65."


def test_splits_share_no_question_and_repeat() -> None:
    by_split = {name: {p.expression for p in problems(name, 300)} for name in ("train", "val", "test")}
    assert all(len(found) == 300 for found in by_split.values())
    assert not by_split["train"] & by_split["test"] and not by_split["val"] & by_split["test"]
    assert problems("test", 50) == problems("test", 50) != problems("test", 50, seed=1)
    assert [len(p.numbers) for p in problems("val", 6)] == [2, 3, 4, 2, 3, 4]
    for problem in problems("train", 300):
        assert all(0 <= result <= 299 for result in problem.results)
        assert eval(problem.expression) == problem.answer


def test_the_reward_reads_the_last_answer() -> None:
    texts = ["1+1=2. The answer is 2.", "The answer is 2. No, the answer is 3.", "2", "The answer is -2.", ""]
    assert [read_answer(text) for text in texts] == ["2", "3", None, "-2", None]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert arithmetic_reward(chats, ["2"] * 5) == arithmetic_reward(texts, ["2"] * 5) == [1, 0, 0, 0, 0]


def test_wrong_results_never_end_at_the_answer() -> None:
    rng = random.Random(0)
    for _ in range(200):
        problem = draw_problem(rng)
        results = wrong_results(problem, rng)
        assert results[-1] != problem.answer and len(results) == len(problem.results)


def test_rows_are_chats_with_an_answer() -> None:
    row = rows("test", 3)[1]
    assert row["prompt"] == [{"role": "user", "content": problems("test", 3)[1].question}]
    assert row["task"] == "3 numbers" and arithmetic_reward([f"The answer is {row['answer']}."], [row["answer"]]) == [1]
    with pytest.raises(ValueError, match="count is 0; it must be at least 1"):
        problems("test", 0)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "1+1?"},
]


def test_negative_prompts_change_the_last_question_alone(tmp_path: Path) -> None:
    wrong, empty = negative_prompt("wrong"), negative_prompt("empty")
    assert wrong("1+1?") == WRONG_INSTRUCTION + "1+1?" and empty("1+1?") == ""
    assert wrong(CHAT) == [*CHAT[:3], {"role": "user", "content": WRONG_INSTRUCTION + "1+1?"}]
    assert empty(CHAT) == [*CHAT[:3], {"role": "user", "content": ""}] and CHAT[3]["content"] == "1+1?"
    template = tmp_path / "negative.txt"
    template.write_text("Guess: {question} (no steps)\n")
    assert negative_prompt(str(template))("1+1?") == "Guess: 1+1? (no steps)"
    template.write_text("Say anything.")
    assert negative_prompt(str(template))(CHAT)[-1]["content"] == "Say anything."


def test_bad_negative_prompts_say_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="negative_prompt is 'worng'; allowed: wrong, empty, or the path"):
        negative_prompt("worng")
    (tmp_path / "t.txt").write_text("Guess {answer}")
    with pytest.raises(ValueError, match=r"has braces but no \{question\}"):
        negative_prompt(str(tmp_path / "t.txt"))
    with pytest.raises(ValueError, match="no user message to make a negative prompt of, only system"):
        negative_prompt("wrong")(CHAT[:1])
    with pytest.raises(ValueError, match="1 of 2 negative prompts equal their prompts"):
        check_different(["a", "b"], ["a", "c"])


def test_data_of_the_hub_without_datasets_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"gsm8k:test needs the package datasets: pip install 't2i-gcpo\[text\]'"):
        read_rows("gsm8k:test")
