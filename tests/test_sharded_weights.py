"""Shards of a process: their gradients are the same whether they are summed after each pass or at the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.ranks_memory import Alike, Copying
from t2i_gcpo.training import sharded_weights
from t2i_gcpo.training.sharded_weights import ShardedWeights


def shares(each_pass: bool, dtype: torch.dtype) -> list[Tensor | None]:
    """Return the first of three processes' gradients after two passes; the second reaches one parameter alone."""
    parameters = {name: nn.Parameter(torch.ones(size, dtype=dtype)) for name, size in (("a", 7), ("b", 4), ("c", 5))}
    ranks = Alike(3)
    weights = ShardedWeights(parameters, ranks, ranks.mesh(torch.device("cpu")), each_pass=each_pass)
    noise = torch.Generator().manual_seed(0)
    for names in ("ab", "a"):
        for name in names:
            parameter = parameters[name]
            new = torch.randn(parameter.shape, generator=noise).to(dtype)
            parameter.grad = new if parameter.grad is None else parameter.grad + new
        weights.add_gradients()
        assert not each_pass or (parameters["a"].grad is None and not weights._sums)
    weights.reduce()
    return [master.grad for master in weights.masters]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_after_each_pass_are_the_sum_at_the_end(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_weights, "dist", Copying)
    a, b, c = shares(True, dtype)
    wanted, _, _ = shares(False, dtype)
    assert a is not None and wanted is not None and torch.equal(a, wanted) and a.abs().min() > 0
    assert b is not None and b.shape == (2,) and c is None, "nothing reaches the third"
