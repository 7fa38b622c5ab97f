"""GenEval's graded score: detections made by hand, scores worked out by hand from the published formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewards.geneval import Detection
from rewards.geneval.graded import grade
from rewards.geneval.reward import GenEvalReward
from rewards.geneval.rules import judge

LEFT, RIGHT = (0.0, 40.0, 20.0, 60.0), (80.0, 40.0, 100.0, 60.0)


def seen(class_name: str, color: str | None = None, box: Any = LEFT, score: float = 0.99) -> Detection:
    return Detection(class_name, score, box, color=color)


def row(*include: dict[str, Any], tag: str = "any", **more: Any) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), "prompt": "a photo", **more}


def clause(class_name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": class_name, "count": count, **more}


@pytest.mark.parametrize(
    ("number", "score"), enumerate([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, -0.25]), ids=lambda value: str(value)
)
def test_four_rings_by_the_number_that_is_there(number: int, score: float) -> None:
    assert grade([seen("ring")] * number, row(clause("ring", 4), tag="counting")) == score


RED, BLUE = clause("star", color="red"), clause("heart", color="blue")
LEFT_OF = clause("heart", position=["right of", 0])
TABLE = [
    # detections, metadata, the mean of the terms by hand
    ("one thing", [seen("star")], row(clause("star")), 1),
    ("a surplus one costs it all", [seen("star")] * 2, row(clause("star")), 0),
    ("two surplus ones are worse than none", [seen("star")] * 3, row(clause("star")), -1),
    ("two things, one there", [seen("star")], row(clause("star"), clause("heart")), (1 + 0) / 2),
    ("surplus in one of two clauses", [seen("star"), *[seen("heart")] * 2], row(clause("star"), clause("heart")), 0.5),
    ("right colour", [seen("star", "red")], row(RED), (1 + 1) / 2),
    ("wrong colour", [seen("star", "blue")], row(RED), (1 + 0) / 2),
    ("colour of a missing thing", [], row(RED), (0 + 0) / 2),
    ("colour where there are too many", [seen("star", "red")] * 2, row(RED), (0 + 0) / 2),
    (
        "three of four red",
        [*[seen("star", "red")] * 3, seen("star", "blue")],
        row(clause("star", 4, color="red")),
        0.875,
    ),
    ("both colours", [seen("star", "red"), seen("heart", "blue")], row(RED, BLUE), 1),
    ("colours swapped", [seen("star", "blue"), seen("heart", "red")], row(RED, BLUE), (1 + 0 + 1 + 0) / 4),
    ("right place", [seen("star", box=LEFT), seen("heart", box=RIGHT)], row(clause("star"), LEFT_OF), (1 + 1 + 1) / 3),
    # The published code adds a 0 and then the 1 that every position gets.
    (
        "wrong place",
        [seen("star", box=RIGHT), seen("heart", box=LEFT)],
        row(clause("star"), LEFT_OF),
        (1 + 1 + 0 + 1) / 4,
    ),
    ("nothing to be beside", [seen("heart")], row(clause("star"), LEFT_OF), (0 + 1 + 0) / 3),
    ("nothing that is beside", [seen("star")], row(clause("star"), LEFT_OF), (1 + 0 + 0) / 3),
    (
        "a clause of the wrong colour is no target",
        [seen("star", "blue", LEFT), seen("heart", box=RIGHT)],
        row(RED, LEFT_OF),
        (1 + 0 + 1 + 0) / 4,
    ),
    (
        "no place is looked at where the colour is wrong",
        [seen("star", box=LEFT), seen("heart", "red", RIGHT)],
        row(clause("star"), {**BLUE, "position": ["right of", 0]}),
        (1 + 1 + 0) / 3,
    ),
    ("exclude plays no part", [seen("star")] * 2, row(clause("star", 2), exclude=[clause("star", 2)]), 1),
    ("weak ones don't count", [seen("star"), seen("star", score=0.8)], row(clause("star"), tag="counting"), 1),
    ("null is absent", [seen("star")], row(clause("star", None, color=None, position=None)), 1),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(
    ("detections", "metadata", "score"), [line[1:] for line in TABLE], ids=[line[0] for line in TABLE]
)
def test_scores_by_hand(detections: list[Detection], metadata: dict[str, Any], score: float) -> None:
    assert grade(detections, metadata) == pytest.approx(score, abs=1e-12)


def test_the_published_example() -> None:
    """The critical-token code (2509.22485) quotes an answer of the server: 0.75 where one of two colours is wrong."""
    found = [seen("star", "red"), seen("heart", "red")]
    assert grade(found, row(RED, BLUE)) == 0.75
    assert not judge(found, row(RED, BLUE)).correct


def test_a_grade_of_one_is_not_the_verdict() -> None:
    """Surplus objects fail the grade and pass the verdict; `exclude` the other way round."""
    surplus = [seen("star")] * 3
    assert judge(surplus, row(clause("star", 2))).correct and grade(surplus, row(clause("star", 2))) == 0.5
    excluded = row(clause("star", 3), exclude=[clause("star", 3)])
    assert not judge(surplus, excluded).correct and grade(surplus, excluded) == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (row(), "has no include clauses"),
        ({"tag": None, "include": None, "exclude": [clause("star")]}, "has no include clauses"),
        (row(clause("star", color="red")), "no colour for 'star'"),
        (row(clause("star", position=["left of", 0])), "must point at an earlier include clause"),
        (row(clause("heart"), clause("star", position=["beside", 0])), "unknown relation 'beside'"),
    ],
)
def test_rows_that_cannot_be_graded(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grade([seen("star", box=LEFT), seen("heart", box=RIGHT)], metadata)


class Fixed:
    """A detector whose pictures are known."""

    names_colors = True

    def __init__(self, *found: list[Detection]) -> None:
        self.found = found

    def __call__(self, images: torch.Tensor) -> list[list[Detection]]:
        return [list(objects) for objects in self.found]


def test_the_reward_gives_the_grade_and_logs_the_verdict() -> None:
    rows = [row(clause("ring", 4), tag="counting")] * 3
    reward = GenEvalReward(detector=Fixed([seen("ring")] * 4, [seen("ring")] * 5, []), score="graded")
    output = reward(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), ["four rings"] * 3, rows)
    assert output.scores.tolist() == [1, 0.75, 0]
    assert output.parts["graded"].tolist() == [1, 0.75, 0] and output.parts["strict"].tolist() == [1, 1, 0]
    strict = GenEvalReward(detector=Fixed([seen("ring")] * 5), score="strict")
    output = strict(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["four rings"], rows[:1])
    assert output.scores.tolist() == [1] and "graded" not in output.parts


def test_the_reward_asks_for_colours_once_a_picture() -> None:
    asked: list[int] = []

    def colors(found: list[Detection]) -> list[str]:
        asked.append(len(found))
        return ["red"] * len(found)

    reward = GenEvalReward(detector=Fixed([seen("star"), seen("heart")]), score="graded", colors=colors)
    output = reward(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"], [row(RED, BLUE)])
    assert output.scores.tolist() == [0.75] and asked == [2]
