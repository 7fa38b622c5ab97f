"""Reading ShapeScenes' prompts back, and taking them apart."""

from __future__ import annotations

import pytest

from t2i_gcpo import prompts
from t2i_gcpo.data.shapes.grammar import not_understood, parts, understand
from t2i_gcpo.data.shapes.prompts import SPLITS, split


def test_every_embedded_prompt_is_understood_as_itself() -> None:
    for name in SPLITS:
        for prompt in split(name):
            assert understand(prompt.text) == prompt


def test_what_no_split_holds_is_understood_too() -> None:
    found = understand("  A red circle and a blue star. ")
    assert found is not None and found.text == "a photo of a red circle and a blue star"
    assert found.metadata["include"] == [
        {"class": "circle", "count": 1, "color": "red"},
        {"class": "star", "count": 1, "color": "blue"},
    ]
    mixed = understand("a red circle above a star")
    assert mixed is not None and mixed.task == "position"
    assert mixed.metadata["include"][1] == {"class": "circle", "count": 1, "color": "red", "position": ["above", 0]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of",
        "a dog",
        "red circle",
        "five circles",
        "two circle",
        "a circle and",
        "a circle a star",
        "a circle near a star",
    ],
)
def test_other_texts_are_not(text: str) -> None:
    assert understand(text) is None


def test_parts_of_a_prompt() -> None:
    assert parts("a photo of a red circle and a blue star") == {
        "a red circle": "a photo of a blue star",
        "a blue star": "a photo of a red circle",
    }
    assert parts("a cat left of a dog and two birds") == {
        "a cat": "a dog and two birds",
        "a dog": "a cat and two birds",
        "two birds": "a cat left of a dog",
    }
    assert parts("a photo of a circle") == {}


def test_a_text_becomes_a_row() -> None:
    for name in SPLITS:
        for prompt in split(name):
            assert prompts.row(prompt.text) == prompt
    assert prompts.row("Two rings.").metadata["include"] == [{"class": "ring", "count": 2}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a photo of a rad circle", r"the word 'rad' in 'a rad circle' is not known \(did you mean 'red'"),
        ("a red circle and a blue starr", r"the word 'starr' in 'a blue starr' is not known \(did you mean 'star'"),
        ("a zebra", "the word 'zebra' in 'a zebra' is not known.*Known are the classes circle"),
        ("a circle near a star", "the word 'near' in 'a circle near a star' is not known"),
        ("five circles", "the word 'five' in 'five circles' is not known"),
        ("a circle and", "an object is missing"),
        ("a photo of", "an object is missing"),
        ("red circle", "'red circle' is not put as expected: \"a circle\""),
        ("a circle and two stars", "'two stars' stands beside another object"),
        ("a circle and a star and a ring", "it has 3 objects; at most two are covered"),
    ],
)
def test_a_text_that_is_no_row_says_which_part(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts.row(text)
    assert not_understood(text) and understand(text) is None


def test_an_empty_text_and_a_good_one() -> None:
    with pytest.raises(ValueError, match="empty"):
        prompts.row("  ")
    assert not_understood("a red circle above a star") == ""
