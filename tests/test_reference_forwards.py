"""The reference model is kept and run where something needs it: the loss, a limit, or a measurement that is due."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.training import generator, trainer
from t2i_gcpo.algorithms import TABLE, resolve
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.training.callbacks.pictures import reference_logprobs
from t2i_gcpo.training.options import LoopOptions
from t2i_gcpo.training.trainer import Trainer


def count_forwards(policy: Janus, run: Trainer) -> list[int]:
    """Forward passes of each step's update: of the language model over whole sequences, 16 tokens and the prompt."""
    counts = []
    seen = {"whole": 0}

    def count(module: Any, args: Any, options: dict[str, Any]) -> None:
        seen["whole"] += options["inputs_embeds"].shape[1] >= 16

    hook = policy.policy.register_forward_pre_hook(count, with_kwargs=True)
    for _ in range(run.steps):
        before = seen["whole"]
        run.step()
        counts.append(seen["whole"] - before)
    hook.remove()
    return counts


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("dr_grpo", {"kl_every": 0}, [1, 1, 1, 1]),
        ("dr_grpo", {"kl_every": 2}, [1, 2, 1, 2]),
        ("dr_grpo", {"kl_every": 0, "kl_stop": 9.0}, [2, 2, 2, 2]),
        ("grpo", {"kl_every": 0}, [2, 2, 2, 2]),
        ("grpo", {"kl_every": 0, "algorithm": resolve("grpo", group_size=4, kl_coef=0.0)}, [1, 1, 1, 1]),
    ],
)
def test_forwards_of_an_update(name: str, changes: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    policy = generator()
    run = trainer(tmp_path, policy=policy, name=name, steps=4, **changes)
    assert count_forwards(policy, run) == expected


def test_the_kl_is_logged_where_it_was_measured(tmp_path: Path) -> None:
    run = trainer(tmp_path, name="dr_grpo", steps=4, kl_every=2)
    records = [run.step() for _ in range(4)]
    assert ["kl" in record.metrics for record in records] == [False, True, False, True]
    assert records[3].metrics["kl"] > 0
    without = trainer(tmp_path, name="dr_grpo", steps=4, kl_every=0)
    for _ in range(4):
        assert not {"kl", "kl_k1"} & set(without.step().metrics)
    pairs = zip(run.generator.trainable_parameters(), without.generator.trainable_parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs), "a measurement changes nothing"


def test_a_run_that_needs_no_reference_keeps_no_copy(tmp_path: Path) -> None:
    run = trainer(tmp_path, name="dr_grpo", kl_every=0)
    record = run.step()
    assert not run.has_reference and record.scored is not None
    assert reference_logprobs(run, record.scored.rollout) is None, "pictures leave the map out"
    with pytest.raises(ValueError, match="no reference was kept"), run.generator.reference():
        pass


def test_the_entropy_reward_keeps_one(tmp_path: Path) -> None:
    algorithm = resolve("dr_grpo", group_size=4, entropy_reward_coef=0.4)
    run = trainer(tmp_path, algorithm=algorithm, kl_every=0)
    run.step()
    assert run.has_reference


def test_a_parked_reference_gives_the_same(tmp_path: Path) -> None:
    """On the CPU it lies where it lay; what is shown here is that it is asked for, and that values come back."""
    policy = generator()
    parked: list[bool] = []
    policy.park_reference = lambda: parked.append(True)  # type: ignore[method-assign]
    trainer(tmp_path / "a", policy=policy, name="gcpo", kl_every=2)
    assert parked == [], "the loss needs it in each step"
    trainer(tmp_path / "b", policy=policy, name="dr_grpo", kl_every=2)
    assert parked == [True]

    policy = generator()
    before = [parameter.detach().clone() for parameter in policy.trainable_parameters()]
    policy.keep_reference()
    policy.weights.park_reference()
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(1.0)
    with policy.reference():
        assert all(torch.equal(a, b) for a, b in zip(policy.trainable_parameters(), before, strict=True))
    assert all(torch.equal(a, b + 1) for a, b in zip(policy.trainable_parameters(), before, strict=True))


def test_every_row_of_the_table_says_whether_its_loss_needs_one() -> None:
    loop = LoopOptions(kl_every=10)
    always = {name for name, row in TABLE.items() if loop.kl_always(row)}
    assert always == {name for name, row in TABLE.items() if row.kl_estimator != "none"} and "dapo" not in always
    assert [step for step in range(1, 31) if loop.kl_due(TABLE["dapo"], step)] == [10, 20, 30]
