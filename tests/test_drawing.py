"""Which branches a rollout runs, by hand."""

from __future__ import annotations

import pytest

from t2i_gcpo.generators.tokens.branches import Branches
from t2i_gcpo.records import Sampling


@pytest.mark.parametrize(
    ("guidance", "stats", "negative", "expected"),
    [
        (1.0, (), False, Branches(null=None, contrast=None, count=1)),
        (1.0, ("entropy",), False, Branches(null=None, contrast=None, count=1)),
        (2.0, (), False, Branches(null=1, contrast=1, count=2)),  # the contrast is free
        (1.0, ("js",), False, Branches(null=1, contrast=1, count=2)),
        (2.0, ("exact_kl", "js"), False, Branches(null=1, contrast=1, count=2)),
        (1.0, ("variance",), False, Branches(null=1, contrast=1, count=2)),
        (2.0, ("variance",), True, Branches(null=1, contrast=2, count=3)),
        (1.0, ("event",), False, Branches(null=1, contrast=1, count=2)),
        (1.0, (), True, Branches(null=None, contrast=None, count=1)),  # its log-probs are computed afterwards
        (2.0, (), True, Branches(null=1, contrast=None, count=2)),
        (1.0, ("exact_kl",), True, Branches(null=None, contrast=1, count=2)),
        (2.0, ("js",), True, Branches(null=1, contrast=2, count=3)),
    ],
)
def test_branches(guidance: float, stats: tuple[str, ...], negative: bool, expected: Branches) -> None:
    assert Branches.of(Sampling(guidance=guidance, stats=stats), negative=negative) == expected
