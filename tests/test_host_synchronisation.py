"""Sampling does not wait for the device inside its loop: no value of a tensor is asked for there.

On a GPU each such question stops the host until all kernels before it are done. Here they are counted where torch's
dispatcher sees them: `_local_scalar_dense` (item, bool, int, float, tolist of one) and what makes a shape of values.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.training import PROMPTS, generator
from t2i_gcpo.generators.janus import row_attention, sampler
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.generators.janus.kv_cache import GrowingCache
from t2i_gcpo.generators.janus.sampler import StepSampler
from t2i_gcpo.records import Sampling

ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique")


class Questions(TorchDispatchMode):
    """Collect the names of operations that wait for a value, from the first open column on."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.asked = False, list[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if self.inside and any(name.startswith(asking) for asking in ASKING):
            self.asked.append(name)
        return function(*args, **(kwargs or {}))


def questions(policy: Janus, monkeypatch: pytest.MonkeyPatch, sampling: Sampling) -> list[str]:
    mode, opened = Questions(), GrowingCache.open
    copies: list[str] = []

    def open_column(cache: GrowingCache, column: int) -> None:
        mode.inside = True
        opened(cache, column)

    def to_host(name: str) -> Any:
        real = getattr(Tensor, name)

        def call(tensor: Tensor, *args: Any, **options: Any) -> Any:
            if mode.inside:
                copies.append(name)
            return real(tensor, *args, **options)

        return call

    monkeypatch.setattr(GrowingCache, "open", open_column)
    for name in ("cpu", "numpy", "tolist", "item", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(Tensor, name, to_host(name))
    policy.sampler.steps.length = 16
    with mode:
        steps = policy.sampler.steps
        real_rows = steps.draw_rows
        monkeypatch.setattr(steps, "draw_rows", lambda *args, **options: _ended(mode, real_rows(*args, **options)))
        policy.sample(PROMPTS[:2], sampling)
    return mode.asked + copies


def _ended(mode: Questions, value: Any) -> Any:
    assert mode.inside, "the loop was seen"
    mode.inside = False
    return value


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": 5.0},
        {"guidance": 1.0, "contrast": False},
        {"guidance": 3.0, "top_k": 5, "top_p": 0.9, "temperature": 0.7},
        {"guidance": 3.0, "stats": ("entropy", "exact_kl", "js", "variance")},
    ],
)
def test_no_value_is_asked_for_in_the_loop(
    changes: dict[str, Any], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = generator()
    policy.sampler.steps.fused_attention = policy.sampler.steps.keys_in_one_piece = fused
    assert questions(policy, monkeypatch, Sampling(**{"group_size": 2, "seed": 3, **changes})) == []


def test_no_value_is_asked_for_with_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks that a row reads are counted on the device. Torch's own code around the kernel, which runs in Python
    where it is not compiled, is left out."""
    policy = generator()
    plain = row_attention.attend

    def attend(module: Any, query: Tensor, *args: Any, **options: Any) -> Any:
        return query.transpose(1, 2), None

    monkeypatch.setattr(row_attention, "attend", attend)
    monkeypatch.setattr(StepSampler, "kernel", lambda steps, *, compile: row_attention.NAME if compile else "sdpa")
    row_attention.register()
    try:
        monkeypatch.setattr(sampler, "compiled", lambda function, name, **options: function)
        monkeypatch.setattr(policy.compiles, "choice", True)
        assert questions(policy, monkeypatch, Sampling(group_size=2, guidance=5.0, seed=3)) == []
    finally:
        monkeypatch.setattr(row_attention, "attend", plain)
        row_attention.register()


def test_a_question_in_the_loop_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sampler.choose

    def asking(logits: Tensor, *args: Any) -> Any:
        if float(logits.sum()) > 1e9:
            raise AssertionError
        return real(logits, *args)

    monkeypatch.setattr(sampler, "choose", asking)
    asked = questions(generator(), monkeypatch, Sampling(group_size=2, guidance=2.0))
    assert asked.count("_local_scalar_dense") >= 16, "one a step at least"
