"""The moving average of the weights: by hand, beside the run that it does not touch, saved, resumed and scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.training import distance, generator, redness, same, trainer, weights
from rewards.function import as_reward
from t2i_gcpo import generators
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.training.average import PolicyAverage
from t2i_gcpo.training.callbacks.validation import Validation
from t2i_gcpo.training.options import CheckpointPlan, OptimConfig
from t2i_gcpo.training.trainer import Trainer

OPTIM = OptimConfig(lr=1e-2, warmup_steps=0, average_decay=0.5)


def test_it_is_the_formula() -> None:
    policy = generator()
    first = weights(policy)
    average = PolicyAverage(policy, 0.75)
    for step in (1.0, 2.0):
        with torch.no_grad():
            for parameter in policy.trainable_parameters():
                parameter.add_(step)
        average.add()
    # 0.75 (0.75 w + 0.25 (w + 1)) + 0.25 (w + 3) = w + 0.9375
    assert distance(average.values, [weight + 0.9375 for weight in first]) < 1e-5
    own = weights(policy)

    def stop() -> None:
        with average.in_place():
            assert same(weights(policy), average.values)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop()
    assert same(weights(policy), own)
    with pytest.raises(ValueError, match="of another model"):
        average.load(average.values[1:])


def run(folder: Path, steps: int, optim: OptimConfig = OPTIM) -> Trainer:
    validate = Validation(
        [Prompt("a red circle")], as_reward(redness), sampling=Sampling(guidance=2.0), every=2, seed=0
    )
    return trainer(folder, steps=steps, optim=optim, callbacks=[validate], checkpoint=CheckpointPlan(every=0))


def test_it_is_scored_saved_and_gone_on_from_and_changes_no_weight(tmp_path: Path) -> None:
    straight, part = run(tmp_path / "a", 4), run(tmp_path / "b", 2)
    records = list(straight.iterate())
    part.train()
    rest = run(tmp_path / "b", 4)
    rest.resume()
    rest.train()
    assert straight.updater.average is not None and rest.updater.average is not None
    assert same(straight.updater.average.values, rest.updater.average.values), "resumed it is the same"

    plain = trainer(tmp_path / "c", steps=4, optim=OptimConfig(lr=1e-2, warmup_steps=0))
    plain.train()
    assert same(weights(plain.generator), weights(straight.generator))  # type: ignore[arg-type]
    assert not (tmp_path / "c" / "checkpoints" / "step_000004" / "average").exists()

    saved = generators.load(str(tmp_path / "a" / "checkpoints" / "step_000004" / "average"))
    found = [parameter.detach() for parameter in saved.trainable_parameters()]
    assert same(found, straight.updater.average.values)
    assert distance(found, weights(straight.generator)) > 1e-4  # type: ignore[arg-type]
    scored = [{name for name in record.metrics if name.endswith("/overall")} for record in records]
    assert scored == [set(), {"validation/overall", "validation_average/overall"}] * 2
    assert records[3].metrics["validation_average/overall"] != records[3].metrics["validation/overall"]


def test_a_decay_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim.average_decay is 1.0; it must be in \[0, 1\)"):
        OptimConfig(average_decay=1.0)
