"""Checks of numbers: what is refused, with which sentence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from t2i_gcpo.utils.checks import above_zero, at_least, finite, share


@pytest.mark.parametrize("check", [finite, lambda group, **v: at_least(0, group, **v), above_zero, share])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_check_lets_a_number_pass_that_is_not_finite(check: Callable[..., None], value: float) -> None:
    check("optim.", lr=0.5)
    with pytest.raises(ValueError, match=rf"^optim\.lr is {value}; it must be "):
        check("optim.", lr=value)


def test_what_is_off_is_not_checked_and_bounds_belong_to_their_range() -> None:
    finite(lr=None)
    at_least(2, lr=None)
    at_least(2, lr=2)
    above_zero(lr=None)
    share(lr=0, ratio=1)
    for check in (lambda: at_least(2, lr=1.9), lambda: above_zero(lr=0), lambda: share(lr=1.1), lambda: share(lr=-0.1)):
        with pytest.raises(ValueError, match="lr is "):
            check()
