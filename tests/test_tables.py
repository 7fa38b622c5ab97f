"""Numbers as they stand in tables."""

from __future__ import annotations

import math

import pytest

from t2i_gcpo.reports.tables import number, with_interval


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (0.12345, {}, "0.123"),
        (0.12345, {"signed": True}, "+0.123"),
        (999_999.0, {"digits": 1}, "999999.0"),
        (1_000_000.0, {}, "1.0e+06"),
        (-1.7554e33, {"signed": True}, "-1.8e+33"),
        (math.nan, {}, "–"),
        (None, {}, "–"),
    ],
)
def test_a_number(value: float | None, options: dict[str, int], text: str) -> None:
    assert number(value, **options) == text


def test_an_interval_that_is_not_known_is_left_out() -> None:
    assert with_interval(0.25, (0.1, 0.4), signed=True) == "+0.250 [+0.100, +0.400]"
    assert with_interval(0.25, (math.nan, 0.4)) == "0.250"
