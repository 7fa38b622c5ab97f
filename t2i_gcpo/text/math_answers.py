"""Reward answers to questions of mathematics.

`math-verify` compares the completion's last answer with the right one as mathematics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def math_reward(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float | None]:
    """Return 1 where the completion's answer equals the right one ("1/2" is "0.5"), else 0.

    It is None where the right answer itself cannot be read.

    TRL calls rewards in this form. Answers are looked for in \\boxed{...} first, then as the last number or formula.
    ImportError: math-verify is missing.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ImportError("the reward 'math' needs math-verify: pip install 't2i-gcpo[text]'") from error
    scores: list[float | None] = []
    for completion, right in zip(completions, answer, strict=True):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        gold = parse(f"${right}$") or parse(right)
        scores.append(float(verify(gold, parse(text))) if gold else None)
    return scores
