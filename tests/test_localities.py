"""T2I-R1's scores of found objects, worked out by hand: where they are, how many, and the fields of a row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rewards.t2i_r1.fields import Row
from rewards.t2i_r1.object_scores import Boxes, counted, placed, present, scorer
from rewards.t2i_r1.spatial import LOCALITIES, locality_score, overlap, suppress

Box = tuple[float, float, float, float]


def at(x: float, y: float, size: float = 20.0) -> Box:
    """A square box around a centre."""
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


#: T2I-R1's own list of localities, and where the first of two objects then is.
TWELVE = {
    "on side of": "near", "next to": "near", "near": "near",
    "on the left of": "left", "left of": "left", "on the right of": "right", "right of": "right",
    "on the bottom of": "below", "below": "below", "on the top of": "above", "on top of": "above", "above": "above",
}  # fmt: skip
PLACES = {"left": (100, 250), "right": (400, 250), "above": (250, 100), "below": (250, 400)}


def test_all_twelve_localities_are_known() -> None:
    assert set(LOCALITIES) == set(TWELVE) and len(TWELVE) == 12


@pytest.mark.parametrize("locality", [name for name, where in TWELVE.items() if where != "near"])
@pytest.mark.parametrize("place", PLACES)
def test_directions(locality: str, place: str) -> None:
    score = locality_score(locality, at(*PLACES[place]), at(250, 250), side=512)
    assert score == (1.0 if TWELVE[locality] == place else 0.0)


@pytest.mark.parametrize("locality", ["next to", "near", "on side of"])
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((100, 100), (200, 200), 1.0),
        ((100, 100), (249, 400), 1.0),  # near along x, far along y: T2I-CompBench asks for one of them
        ((100, 100), (251, 400), 150 / 300),
        ((251, 400), (100, 100), 150 / 300),
        ((100, 100), (400, 251), 150 / 300),
        ((100, 100), (300, 260), 150 / 200),
        ((0, 0), (500, 500), 150 / 500),
    ],
)
def test_nearness(locality: str, first: Any, second: Any, expected: float) -> None:
    assert locality_score(locality, at(*first), at(*second), side=512) == pytest.approx(expected)
    # The same picture at half its size.
    half = [tuple(value / 2 for value in at(*place)) for place in (first, second)]
    assert locality_score(locality, *half, side=256) == pytest.approx(expected)


def test_directions_need_the_larger_distance_and_little_overlap() -> None:
    assert locality_score("left of", at(100, 100), at(150, 149), side=512) == 1.0
    assert locality_score("left of", at(100, 100), at(150, 150), side=512) == 0.0  # as far along y
    assert locality_score("below", at(100, 151), at(150, 100), side=512) == 1.0
    assert locality_score("left of", at(100, 100), at(100, 100), side=512) == 0.0  # no offset at all
    # Two squares of 20, 10 apart: they share 10 x 20 = 200 of 600, overlap 1/3.
    assert locality_score("left of", at(100, 100), at(110, 100), side=512) == pytest.approx(0.1 * 3)
    assert locality_score("above", at(100, 100), at(100, 110), side=512) == pytest.approx(0.1 * 3)
    # 17 apart: 3 x 20 = 60 of 740, 0.081, below 0.1.
    assert locality_score("right of", at(117, 100), at(100, 100), side=512) == 1.0


def test_overlap_by_hand() -> None:
    assert overlap((0, 0, 4, 4), (2, 1, 6, 5)) == pytest.approx(6 / 26)
    assert overlap((0, 0, 4, 4), (4, 0, 8, 4)) == 0.0 and overlap((0, 0, 4, 4), (10, 10, 11, 11)) == 0.0
    assert overlap((1, 1, 3, 3), (1, 1, 3, 3)) == 1.0 and overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0


def test_suppression() -> None:
    boxes = torch.tensor([at(50, 50), at(53, 50), at(100, 100), at(57, 50)])
    # Overlaps with the first: 17/23 = 0.74 and 13/27 = 0.48; of the second and the last 16/24 = 0.67.
    assert suppress(boxes, torch.tensor([0.9, 0.8, 0.5, 0.7]), most_overlap=0.5) == [0, 3, 2]
    assert suppress(boxes, torch.tensor([0.8, 0.9, 0.5, 0.7]), most_overlap=0.5) == [1, 2]  # the best goes first
    assert suppress(boxes, torch.tensor([0.9, 0.8, 0.5, 0.7]), most_overlap=0.4) == [0, 2]
    assert suppress(torch.zeros(0, 4), torch.zeros(0), most_overlap=0.5) == []


def found(*boxes: Box, scores: tuple[float, ...] | None = None) -> Boxes:
    return Boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores or [0.9] * len(boxes)))


NONE = found()


def test_placed() -> None:
    left, right = found(at(100, 250)), found(at(400, 250))
    assert placed(left, right, "left of", side=512) == pytest.approx(0.2 + 0.2 + 0.5)
    assert placed(right, left, "left of", side=512) == pytest.approx(0.4)
    assert placed(left, NONE, "left of", side=512) == placed(NONE, left, "left of", side=512) == pytest.approx(0.2)
    assert placed(NONE, NONE, "left of", side=512) == 0.0
    # The surest box of each counts.
    both = found(at(100, 250), at(480, 250), scores=(0.4, 0.8))
    assert placed(both, right, "left of", side=512) == pytest.approx(0.4)
    assert placed(both, right, "right of", side=512) == pytest.approx(0.9)


def test_counted() -> None:
    objects = {"dog": found(at(50, 50), at(53, 50), at(100, 100)), "cat": found(at(10, 10)), "cow": NONE}
    assert counted([("dog", 2)], objects) == 1.0  # two of the three boxes are one dog
    assert counted([("dog", 3)], objects) == pytest.approx(0.2)
    assert counted([("dog", 2), ("cat", 2), ("cow", 1)], objects) == pytest.approx((1 + 0.2 + 0) / 3)


def test_present() -> None:
    objects = {"dog": found(at(50, 50)), "cow": NONE}
    assert present(["dog", "cow"], objects) == 0.5 and present(["dog", "dog", "cow"], objects) == pytest.approx(2 / 3)
    assert present([], objects) == 1.0


OBJECTS = {"dog": found(at(100, 250), at(300, 250)), "cat": found(at(400, 250)), "cow": NONE}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"task_type": "color", "nouns": ["dog", "cow"]}, 0.5),
        ({"nouns": ["dog"]}, 1.0),
        ({"task_type": "complex", "nouns": ["cow"], "spatial_info": None}, 0.0),
        ({"task_type": "spatial", "nouns": [], "spatial_info": None}, 1.0),
        (
            {
                "task_type": "spatial",
                "nouns": ["dog", "cat"],
                "spatial_info": {"obj1": "dog", "obj2": "cat", "locality": "left of"},
            },
            0.9,
        ),
        ({"tag": "numeracy", "nouns": ["dog", "cow"], "numeracy_info": [{"obj_name": "dog", "num": 2}]}, 1.0),
        (
            {
                "task_type": "numeracy",
                "nouns": ["dog", "cow"],
                "numeracy_info": [{"obj_name": "dog", "num": 1}, {"obj_name": "cow", "num": 2}],
            },
            0.1,
        ),
    ],
)
def test_the_task_decides(row: dict[str, Any], expected: float) -> None:
    assert math.isclose(scorer(Row("grounding_dino", "a photo", row), side=512)(OBJECTS), expected)


SPATIAL: dict[str, Any] = {"task_type": "spatial", "nouns": ["dog", "cat"]}
NUMERACY: dict[str, Any] = {"task_type": "numeracy", "nouns": ["dog", "cat"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "needs the field 'nouns' .* for the prompt 'a photo': .*it has: no fields"),
        ({"tag": "x", "nouns": None}, "needs the field 'nouns'.*it has: tag, nouns"),
        ({"nouns": "dog"}, "'nouns'.*it is 'dog'"),
        ({"nouns": ["dog", ""]}, "'nouns'"),
        (SPATIAL, "'spatial_info'.*one of: next to, near, .*on the bottom of; it has: task_type, nouns"),
        ({**SPATIAL, "spatial_info": {"obj1": "dog", "obj2": "cow", "locality": "near"}}, "'spatial_info'.*'cow'"),
        ({**SPATIAL, "spatial_info": {"obj1": "dog", "obj2": "cat", "locality": "behind"}}, "'spatial_info'.*'behind'"),
        (NUMERACY, "'numeracy_info'"),
        ({**NUMERACY, "numeracy_info": []}, r"'numeracy_info'.*it is \[\]"),
        ({**NUMERACY, "numeracy_info": [{"obj_name": "cow", "num": 1}]}, "'numeracy_info'.*'cow'"),
        ({**NUMERACY, "numeracy_info": [{"obj_name": "dog", "num": "two"}]}, "'numeracy_info'.*'two'"),
        ({**NUMERACY, "numeracy_info": ["dog"]}, "'numeracy_info'"),
    ],
)
def test_rows_that_lack_a_field(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"reward 'grounding_dino' .*{message}"):
        scorer(Row("grounding_dino", "a photo", row), side=512)
