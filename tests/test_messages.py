"""The pattern of facts that an error message must name."""

from __future__ import annotations

import re

import pytest

from helpers.messages import names


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("size is 9 pixels; take 8 or 10", True),
        ("take 10,\nor 8, instead of 9 pixels", True),
        ("size is 9 pixels; take 8", False),
        ("", False),
    ],
)
def test_all_facts_in_any_order(message: str, named: bool) -> None:
    assert bool(re.search(names(8, "9 pixels", 10), message)) == named


def test_facts_are_no_patterns() -> None:
    assert not re.search(names("a.b"), "axb") and re.search(names("[5, 32]"), "is [5, 32]")
    with pytest.raises(ValueError, match="any message"):
        names()
