"""Scores yes-or-no questions about a picture as DPG-Bench does, where some depend on others. K questions a picture.

The rule is that of `compute_dpg_one_sample` in https://github.com/TencentQQGYLab/ELLA (dpg_bench/compute_dpg_bench.py,
commit 3c228f1), of 2403.05135: a yes counts only where the questions that it depends on have a yes that counts, so "is
the dog brown?" earns nothing without a dog. The score is the share of the questions whose yes counts; a category's is
the share with a yes, whatever it depends on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.vlm.judge import Answer

#: A question is answered yes where the value of its answer is at least this.
YES = 0.5


def questions(row: Mapping[str, Any], prompt: str) -> list[Mapping[str, Any]]:
    """Return the questions of a row. ValueError, naming the prompt, where it has none."""
    asked = row.get("questions") if row else None
    if (
        not isinstance(asked, list)
        or not asked
        or not all(isinstance(one, Mapping) and isinstance(one.get("question"), str) and "id" in one for one in asked)
    ):
        raise ValueError(
            f"the vlm_judge reward with ask: questions has none for the prompt {prompt!r}; it needs a row with "
            "'questions', each with 'id' and 'question' (t2i-gcpo eval --benchmark dpg reads them from dpg_bench.csv)"
        )
    return asked


def combine(asked: Sequence[Mapping[str, Any]], values: Sequence[float]) -> Answer:
    """Return one picture's score, and parts `category/<name>`, from the K answers to its questions.

    NaN where an answer is NaN, and where a question depends on one that is not in the row: the published script counts
    no such picture.
    """
    if any(math.isnan(value) for value in values):
        return Answer(math.nan)
    yes = {one["id"]: value >= YES for one, value in zip(asked, values, strict=True)}
    counted = dict(yes)
    for one in asked:  # in the file's order, so that a chain of dependencies falls with its first link
        parents = [parent for parent in one.get("parents") or () if parent != 0]
        if not set(parents) <= set(counted):
            return Answer(math.nan)
        if not all(counted[parent] for parent in parents):
            counted[one["id"]] = False
    categories: dict[str, list[bool]] = {}
    for one in asked:
        if one.get("category"):
            categories.setdefault(str(one["category"]), []).append(yes[one["id"]])
    parts = {f"category/{name}": sum(answers) / len(answers) for name, answers in categories.items()}
    return Answer(sum(counted.values()) / len(counted), parts)
