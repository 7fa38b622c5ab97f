"""The reference that follows the policy: by hand, in the KL that it gives, resumed, and with adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.training import distance, generator, same, trainer, weights
from t2i_gcpo.training.moving_reference import MovingReference
from t2i_gcpo.training.options import OptimConfig
from t2i_gcpo.training.trainer import Trainer


def optim(every: int = 2, decay: float = 0.5) -> OptimConfig:
    return OptimConfig(lr=1e-2, warmup_steps=0, reference_every=every, reference_decay=decay)


@pytest.mark.parametrize(
    ("decay", "moved"),
    [
        (0.0, 4.0),  # the policy after the fourth update
        (0.75, 0.75 * 0.25 * 2 + 0.25 * 4),  # of the second and the fourth
    ],
)
def test_it_is_the_formula(decay: float, moved: float) -> None:
    policy = generator()
    first = weights(policy)
    reference = MovingReference(policy, every=2, decay=decay)
    for update in range(1, 6):
        with torch.no_grad():
            for parameter in policy.trainable_parameters():
                parameter.add_(1.0)
        reference.after(update)
    own = weights(policy)
    with reference.in_place():
        assert distance(weights(policy), [weight + moved for weight in first]) < 1e-5
        assert not torch.is_grad_enabled()
    assert same(weights(policy), own)
    with pytest.raises(ValueError, match="of another model"):
        reference.load(reference.values[1:])


def kl(folder: Path, chosen: OptimConfig) -> list[float]:
    return [record.metrics["kl"] for record in trainer(folder, steps=3, optim=chosen).iterate()]


def test_the_kl_is_to_where_the_reference_is(tmp_path: Path) -> None:
    """Copied after each step it is the policy that sampled; left at the start it is further away with each."""
    still, copied = kl(tmp_path / "a", optim(0, 0.0)), kl(tmp_path / "b", optim(1, 0.0))
    assert copied == pytest.approx([0.0, 0.0, 0.0], abs=1e-6) and still[2] > still[1] > 1e-4
    late = kl(tmp_path / "c", optim(2, 0.0))
    assert late[:2] == pytest.approx(still[:2], abs=1e-6) and late[2] == pytest.approx(0.0, abs=1e-6)


def run(folder: Path, steps: int) -> Trainer:
    return trainer(folder, steps=steps, optim=optim())


def test_a_resumed_run_is_the_run_uninterrupted(tmp_path: Path) -> None:
    straight, part = run(tmp_path / "a", 4), run(tmp_path / "b", 3)
    straight.train()
    part.train()
    rest = run(tmp_path / "b", 4)
    rest.resume()
    rest.train()
    assert straight.updater.moving is not None and rest.updater.moving is not None
    assert same(straight.updater.moving.values, rest.updater.moving.values)
    assert same([*straight.generator.trainable_parameters()], [*rest.generator.trainable_parameters()])
    assert not straight.has_reference, "no second copy"


def test_adapters_have_one_too(tmp_path: Path) -> None:
    """LoRA's own reference is the base; this one is the adapters as they were."""
    policy = generator()
    policy.add_lora(rank=2, alpha=2.0)
    own = trainer(tmp_path, policy=policy, steps=2, optim=optim(1, 0.0))
    records = [own.step().metrics["kl"] for _ in range(2)]
    assert records == pytest.approx([0.0, 0.0], abs=1e-6)
    assert own.updater.moving is not None and same(own.updater.moving.values, weights(policy))


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"optim.reference_decay is 1.0; it must be in \[0, 1\)"):
        optim(1, 1.0)
    with pytest.raises(ValueError, match="optim.reference_every is 0: the reference does not move"):
        optim(0, 0.9)
    with pytest.raises(ValueError, match="optim.reference_every is 2, and nothing looks at the reference"):
        trainer(tmp_path, name="dr_grpo", optim=optim(), kl_every=0)
