"""Make the questions of the embedded arithmetic task, the reasoning that solves them, and the reward of an answer.

A question chains two to four numbers with plus and minus, "What is 37+48-19?"; its reasoning takes one step an
operator, "37+48=85. 85-19=66. The answer is 66." Every step has a checkable result, so a mistake has a place. Nothing
here needs torch.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Split = Literal["train", "val", "test"]

#: How many numbers a question chains; each is a task of its own in an evaluation.
OPERANDS = (2, 3, 4)
LOWEST, HIGHEST = 10, 99
#: No step's result leaves this range, so results have at most three digits and no sign.
LARGEST = 299
#: Of a hundred residues of a question's checksum, the first so many are "val", the next so many "test".
HELD_OUT = 5

_ANSWER = re.compile(r"answer is\s*(-?\d+)")


@dataclass(frozen=True)
class Problem:
    """Holds one question: numbers and the signs between them."""

    numbers: tuple[int, ...]
    signs: tuple[str, ...]

    @property
    def expression(self) -> str:
        """Return the expression without spaces, such as "37+48-19"."""
        rest = "".join(f"{sign}{number}" for sign, number in zip(self.signs, self.numbers[1:], strict=True))
        return f"{self.numbers[0]}{rest}"

    @property
    def question(self) -> str:
        return f"What is {self.expression}?"

    @property
    def results(self) -> tuple[int, ...]:
        """Return the result of each step from left to right; the last is the answer."""
        results, value = [], self.numbers[0]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            value = apply(value, sign, number)
            results.append(value)
        return tuple(results)

    @property
    def answer(self) -> int:
        return self.results[-1]

    @property
    def split(self) -> Split:
        """Return the question's split, which its text fixes, so that no question is in two splits."""
        residue = zlib.crc32(self.expression.encode()) % 100
        return "val" if residue < HELD_OUT else "test" if residue < 2 * HELD_OUT else "train"

    def reasoning(self, results: Sequence[int] | None = None) -> str:
        """Write the steps and the answer as text.

        `results`: what each step comes to (None: what is right), each carried on to the next step.
        """
        steps, value = [], self.numbers[0]
        for sign, number, result in zip(self.signs, self.numbers[1:], results or self.results, strict=True):
            steps.append(f"{value}{sign}{number}={result}.")
            value = result
        return " ".join([*steps, f"The answer is {value}."])


def apply(value: int, sign: str, number: int) -> int:
    """Compute one step of the reasoning."""
    return value + number if sign == "+" else value - number


def draw_problem(rng: random.Random, split: Split = "train", operands: int | None = None) -> Problem:
    """Draw a question of a split. `operands`: how many numbers (None: any of `OPERANDS`, equally likely)."""
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; allowed: {', '.join(get_args(Split))}")
    count = rng.choice(OPERANDS) if operands is None else operands
    while True:
        numbers = tuple(rng.randint(LOWEST, HIGHEST) for _ in range(count))
        problem = Problem(numbers, tuple(rng.choice("+-") for _ in numbers[1:]))
        if problem.split == split and all(0 <= result <= LARGEST for result in problem.results):
            return problem


def problems(split: Split, count: int, seed: int = 0) -> list[Problem]:
    """Draw `count` different questions of a split, in equal parts of 2, 3 and 4 numbers; the same for the same seed."""
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    rng = random.Random(f"{split} {seed}")
    found: dict[Problem, None] = {}
    while len(found) < count:
        problem = draw_problem(rng, split, OPERANDS[len(found) % len(OPERANDS)])
        found.setdefault(problem)
    return list(found)


def rows(split: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return the questions as rows of a data set.

    `prompt` (a chat of one message), `answer` (text) and `task` (how many numbers).
    """
    return [
        {
            "prompt": [{"role": "user", "content": problem.question}],
            "answer": str(problem.answer),
            "task": f"{len(problem.numbers)} numbers",
        }
        for problem in problems(split, count, seed)
    ]


def read_answer(text: str) -> str | None:
    """Return the number after the last "answer is" of a completion, or None where there is none."""
    answers = _ANSWER.findall(text)
    return answers[-1] if answers else None


def arithmetic_reward(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Return 1 where the completion's answer is the right number, else 0; TRL calls rewards in this form."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [float(read_answer(text) == right) for text, right in zip(texts, answer, strict=True)]


def slipped_results(problem: Problem, rng: random.Random, rate: float) -> list[int]:
    """Draw results of which each is off in one digit with probability `rate`; a slip is carried on to the next step."""
    while True:
        results, value = [], problem.numbers[0]
        for sign, number in zip(problem.signs, problem.numbers[1:], strict=True):
            value = apply(value, sign, number)
            if rng.random() < rate:
                value += rng.choice((-1, 1)) * rng.randint(1, 9) * rng.choice((1, 10))
            results.append(value)
        if all(0 <= result <= LARGEST for result in results):
            return results


def wrong_results(problem: Problem, rng: random.Random, rate: float = 0.7) -> list[int]:
    """Draw results with slips, of which the last is never the answer."""
    while True:
        results = slipped_results(problem, rng, rate)
        if results[-1] != problem.answer:
            return results
