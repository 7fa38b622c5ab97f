"""GenEval's rules, verdict by verdict: detections made by hand, verdicts worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.geneval import Detection, judge
from rewards.geneval.rules import kept_objects, relations
from rewards.geneval.vocabulary import RELATIONS

BOX = (0.0, 0.0, 10.0, 10.0)


def seen(class_name: str, score: float = 0.99, color: str | None = None, box: Any = BOX) -> Detection:
    return Detection(class_name, score, box, color=color)


def row(*include: dict[str, Any], tag: str = "any", **more: Any) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), "prompt": "a photo", **more}


def clause(class_name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": class_name, "count": count, **more}


COUNT_ROWS = [
    # detections, metadata, the verdict on each clause
    ("found", [seen("star")], row(clause("star")), [True]),
    ("nothing there", [], row(clause("star")), [False]),
    ("another class", [seen("heart")], row(clause("star")), [False]),
    ("unknown class in the prompt", [seen("star")], row(clause("dodecahedron")), [False]),
    ("unknown class in the picture", [seen("dodecahedron"), seen("star")], row(clause("star")), [True]),
    ("one too few", [seen("star")], row(clause("star", 2)), [False]),
    ("more than asked for is fine", [seen("star")] * 3, row(clause("star", 2)), [True]),
    ("both clauses", [seen("star"), seen("heart")], row(clause("star"), clause("heart")), [True, True]),
    ("one of two clauses", [seen("heart")], row(clause("star"), clause("heart")), [False, True]),
    ("score at the threshold is out", [seen("star", 0.3)], row(clause("star")), [False]),
    ("score above it is in", [seen("star", 0.31)], row(clause("star")), [True]),
    ("counting is stricter", [seen("star", 0.9)], row(clause("star"), tag="counting"), [False]),
    ("counting, above 0.9", [seen("star", 0.91)], row(clause("star"), tag="counting"), [True]),
    (
        "counting is stricter for every class",
        [seen("star", 0.95), seen("heart", 0.5)],
        row(clause("star"), clause("heart"), tag="counting"),
        [True, False],
    ),
    ("16 of a class are kept", [seen("star")] * 20, row(clause("star", 16)), [True]),
    ("16 per class, not in all", [seen("star")] * 16 + [seen("heart")], row(clause("heart")), [True]),
    ("a null count is one", [seen("star")], row(clause("star", None)), [True]),  # type: ignore[arg-type]
]

EXCLUDE_ROWS = [
    ("below the count", [seen("star")] * 2, row(clause("star", 2), exclude=[clause("star", 3)]), [True, True]),
    ("at the count", [seen("star")] * 3, row(clause("star", 2), exclude=[clause("star", 3)]), [True, False]),
    ("above the count", [seen("star")] * 4, row(clause("star", 2), exclude=[clause("star", 3)]), [True, False]),
    ("absent class", [seen("star")], row(clause("star"), exclude=[clause("heart")]), [True, True]),
    (
        "weak ones don't count",
        [seen("star"), seen("star"), seen("star", 0.8)],
        row(clause("star", 2), tag="counting", exclude=[clause("star", 3)]),
        [True, True],
    ),
    ("null-filled include", [seen("heart")], {"tag": None, "include": None, "exclude": [clause("star")]}, [True]),
    ("exclude alone", [seen("star")], {"tag": "any", "exclude": [clause("star")]}, [False]),
    ("order: include, then exclude", [seen("star")], row(clause("heart"), exclude=[clause("ring")]), [False, True]),
]

COLOR_ROWS = [
    ("right", [seen("star", color="red")], row(clause("star", color="red")), [True]),
    ("wrong", [seen("star", color="blue")], row(clause("star", color="red")), [False]),
    ("no colour asked for", [seen("star", color="blue")], row(clause("star")), [True]),
    (
        "only the most confident one is looked at",
        [seen("star", 0.8, "red"), seen("star", 0.9, "blue")],
        row(clause("star", color="red")),
        [False],
    ),
    (
        "the order of the list doesn't matter",
        [seen("star", 0.8, "blue"), seen("star", 0.9, "red")],
        row(clause("star", color="red")),
        [True],
    ),
    (
        "every counted object: the second is wrong",
        [seen("star", 0.9, "red"), seen("star", 0.8, "blue")],
        row(clause("star", 2, color="red")),
        [False],
    ),
    (
        "a third that isn't counted",
        [seen("star", 0.9, "red"), seen("star", 0.8, "red"), seen("star", 0.7, "blue")],
        row(clause("star", 2, color="red")),
        [True],
    ),
    (
        "swapped colours",
        [seen("star", color="red"), seen("heart", color="blue")],
        row(clause("star", color="blue"), clause("heart", color="red")),
        [False, False],
    ),
    (
        "null-filled fields",
        [seen("star", color="blue")],
        row(clause("star", color=None, position=None), exclude=None),
        [True],
    ),
]


def at(x: float, y: float, size: float = 10.0) -> tuple[float, float, float, float]:
    """A square box around a centre."""
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


# Squares of 10 around centres: the margin is 0.1 * (10 + 10) = 2 pixels an axis.
POSITIONS = [
    ((20, 50), (60, 50), {"left of"}),  # (-40 + 2) / 40 = -0.95
    ((60, 50), (20, 50), {"right of"}),
    ((50, 20), (50, 60), {"above"}),
    ((50, 60), (50, 20), {"below"}),
    ((20, 20), (60, 60), {"left of", "above"}),  # (-40 + 2) / 56.57 = -0.67 on both axes
    ((60, 20), (20, 60), {"right of", "above"}),
    ((50, 50), (50, 50), set()),  # no offset at all
    ((50, 50), (52, 50), set()),  # an offset of 2 is within the margin
    ((50, 50), (53, 50), set()),  # (3 - 2) / 3 = 0.33
    ((50, 50), (54.1, 50), {"left of"}),  # (4.1 - 2) / 4.1 = 0.51
    ((50, 50), (53.9, 50), set()),  # (3.9 - 2) / 3.9 = 0.49
    ((20, 50), (60, 72), {"left of"}),  # norm 45.65: -38 / 45.65 = -0.83 and -20 / 45.65 = -0.44
    ((20, 50), (60, 76), {"left of", "above"}),  # norm 47.71: -38 / 47.71 = -0.80 and -24 / 47.71 = -0.503
]


@pytest.mark.parametrize("rows", COUNT_ROWS + EXCLUDE_ROWS + COLOR_ROWS, ids=lambda r: r[0])
def test_clauses(rows: Any) -> None:
    _, detections, metadata, expected = rows
    verdict = judge(detections, metadata)
    assert verdict.clauses == expected
    assert verdict.correct == all(expected)
    assert (verdict.reason == "") == verdict.correct


@pytest.mark.parametrize(("first", "second", "expected"), POSITIONS)
def test_relations(first: Any, second: Any, expected: set[str]) -> None:
    assert relations(at(*first), at(*second)) == expected


def test_larger_objects_need_more_distance() -> None:
    # Offset 10 to the left; extents 40 + 40 take off 8, (10 - 8) / 10 = 0.2; extents 10 + 10 take off 2, 0.8.
    assert relations(at(50, 50, 40), at(60, 50, 40)) == set()
    assert relations(at(50, 50, 10), at(60, 50, 10)) == {"left of"}
    # Each axis takes off its own extents: tall, thin boxes lose little along x.
    assert relations((48, 0, 52, 90), (58, 0, 62, 90)) == {"left of"}


@pytest.mark.parametrize("relation", RELATIONS)
def test_position_clause(relation: str) -> None:
    star = {"left of": (20, 50), "right of": (80, 50), "above": (50, 20), "below": (50, 80)}
    metadata = row(clause("heart"), clause("star", position=[relation, 0]))
    for place, center in star.items():
        verdict = judge([seen("heart", box=at(50, 50)), seen("star", box=at(*center))], metadata)
        assert verdict.clauses == [True, place == relation]


def test_every_pair_must_hold() -> None:
    metadata = row(clause("heart", 2), clause("star", 2, position=["left of", 0]))
    hearts = [seen("heart", box=at(60, 20)), seen("heart", box=at(60, 80))]
    stars = [seen("star", box=at(10, 40)), seen("star", box=at(10, 60))]
    assert judge(hearts + stars, metadata).correct
    assert judge([hearts[0], seen("heart", box=at(5, 50)), *stars], metadata).clauses == [True, False]  # one target
    assert judge([*hearts, stars[0], seen("star", box=at(90, 50))], metadata).clauses == [True, False]  # one found
    assert judge([*hearts, *stars, seen("star", 0.5, box=at(90, 50))], metadata).correct  # not among the counted two


def test_position_needs_a_matched_target() -> None:
    metadata = row(clause("heart", color="red"), clause("star", position=["left of", 0]))
    star = seen("star", box=at(20, 50))
    missing = judge([star], metadata)
    assert missing.clauses == [False, False] and "no target" in missing.reason
    assert judge([star, seen("heart", color="blue", box=at(80, 50))], metadata).clauses == [False, False]
    assert judge([star, seen("heart", color="red", box=at(80, 50))], metadata).correct


def test_position_is_skipped_where_the_colour_failed() -> None:
    # The star is blue and on the wrong side; GenEval names the colour alone.
    metadata = row(clause("heart"), clause("star", color="red", position=["left of", 0]))
    verdict = judge([seen("heart", box=at(20, 50)), seen("star", color="blue", box=at(80, 50))], metadata)
    assert verdict.clauses == [True, False]
    assert verdict.reason == "expected red star>=1, found blue"


def test_colors_are_asked_for_unnamed_detections_only() -> None:
    asked = []

    def colors(detections: list[Detection]) -> list[str]:
        asked.append([one.score for one in detections])
        return ["blue"] * len(detections)

    metadata = row(clause("star", 2, color="blue"), clause("heart"))
    found = [seen("star", 0.9), seen("star", 0.8, color="blue"), seen("star", 0.7), seen("heart", 0.6)]
    assert judge(found, metadata, colors=colors).correct
    assert asked == [[0.9]]  # not the blue one, not the third star, not the heart whose colour nobody asked for
    with pytest.raises(ValueError, match="pass colors="):
        judge(found, metadata)
    with pytest.raises(ValueError, match="named 0 colours for 1"):
        judge(found, metadata, colors=lambda detections: [])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "neither include nor exclude"),
        ({"include": None, "prompt": "a cat"}, "'a cat'"),
        (row(clause("heart"), clause("star", position=["beside", 0])), "unknown relation 'beside'.*left of"),
        (row(clause("star", position=["above", 0])), "earlier include clause"),
        (row(clause("heart"), clause("star", position=["above", -1])), "earlier include clause"),
    ],
)
def test_malformed_metadata(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge([seen("star"), seen("heart")], metadata)


def test_sixteen_objects_of_a_class_are_kept_and_more_cannot_be_asked_for() -> None:
    stars = [seen("star")] * 20
    assert len(kept_objects(stars)["star"]) == 16
    with pytest.raises(ValueError, match="is 17; it must be a whole number from 1 to 16"):
        judge(stars, row(clause("star", 17)))
