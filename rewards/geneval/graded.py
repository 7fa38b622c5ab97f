"""Grades a picture by its GenEval row: the dense form of the verdict that flow_grpo and STAGE train on.

The formula is that of `evaluate_reward` in https://github.com/yifan123/reward-server (reward_server/gen_eval.py, commit
92ac29f), which flow_grpo (2505.05470) asks for its rewards and STAGE (2509.25027) carries a copy of. The score is the
mean of terms that the `include` clauses contribute, in their order. n objects of a clause's class are there and `count`
are asked for:

* `1 - |n - count| / count`, for every clause. It is below 0 where more than twice as many are there as are asked for;
* where n is not `count`, a clause with a colour or a position adds 0;
* where n is `count`, a colour adds `1 - |m - count| / count`, with m objects of that colour;
* where the number and the colour are right, a position adds 1 where the relation holds, and 0 then 1 where it does not
  (the published code adds the 1 in both cases); where the clause it points at failed, it adds 0.

It differs from the verdict in more than density: surplus objects cost, also where the verdict does not count them, all
objects are looked at rather than the most confident `count`, and `exclude` plays no part. So a graded score of 1 and a
correct verdict are not the same; the verdict is what is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.geneval.rows import check_row, count_of
from rewards.geneval.rules import Detection, color_names, kept_objects, relations


def grade(detections: Sequence[Detection], metadata: Mapping[str, Any]) -> float:
    """Grade one picture by its GenEval row; the formula is at the top of the file.

    Args:
        detections: what a detector found, in any order, with the colours that the row asks for.
        metadata: a GenEval row, as `judge` takes it. Null means absent, and an absent count is 1.

    Raises ValueError for a row without `include` clauses, a colour that is not named, and a position that points at no
    earlier clause.
    """
    include = metadata.get("include") or []
    if not include:
        raise ValueError(
            f"GenEval metadata for {metadata.get('prompt')!r} has no include clauses to grade; score it with score: "
            "strict, or take prompts that ask for something"
        )
    check_row(metadata)
    objects = kept_objects(detections, metadata.get("tag"))
    terms: list[float] = []
    groups: list[list[Detection] | None] = []  # per clause its objects, None where the clause failed
    for clause in include:
        found = objects.get(clause["class"], [])
        count = count_of(clause)
        terms.append(_closeness(len(found), count))
        holds = len(found) == count
        if not holds:
            terms += [0.0] if _asks_more(clause) else []
        else:
            if clause.get("color") is not None:
                named = color_names(found, None).count(clause["color"])
                terms.append(_closeness(named, count))
                holds = named == count
            if clause.get("position") is not None and holds:
                added, holds = _position_terms(clause, found, groups)
                terms += added
        groups.append(found if holds else None)
    return sum(terms) / len(terms)


def _closeness(number: int, count: int) -> float:
    return 1 - abs(number - count) / count


def _asks_more(clause: Mapping[str, Any]) -> bool:
    return clause.get("color") is not None or clause.get("position") is not None


def _position_terms(
    clause: Mapping[str, Any], found: list[Detection], groups: list[list[Detection] | None]
) -> tuple[list[float], bool]:
    """Return what a position adds to the terms, and whether it holds."""
    relation, index = clause["position"]
    targets = groups[int(index)]
    if targets is None:
        return [0.0], False
    holds = all(relation in relations(one.box, target.box) for one in found for target in targets)
    return ([1.0] if holds else [0.0, 1.0]), holds
