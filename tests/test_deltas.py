"""Deltas: base + delta is the tuned checkpoint to float16 rounding, wherever a checkpoint is named.

And what is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import tiny
from helpers.training import redness
from rewards.function import as_reward
from t2i_gcpo import generators
from t2i_gcpo.cli import main
from t2i_gcpo.commands.export import provenance
from t2i_gcpo.generators import checkpoints, deltas
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.training.rollout import collect
from t2i_gcpo.training.tracker import Tracker

PROMPTS = [Prompt("a red circle"), Prompt("two blue square")]


def tune(folder: Path, base: Path, *, step: float = 1e-3) -> Janus:
    """Write a checkpoint whose language model moved by about `step`."""
    tuned: Janus = generators.load(str(base))  # type: ignore[assignment]
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tuned.trainable_parameters():
            parameter += step * torch.randn(parameter.shape, generator=rng)
    tuned.save(folder)
    return tuned


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Folders of base, tuned checkpoint and delta."""
    folder = tmp_path_factory.mktemp("deltas")
    base = tiny.checkpoint(folder / "base")
    tune(folder / "tuned", base)
    assert (
        main(["export", "--checkpoint", str(folder / "tuned"), "--against", str(base), "--out", str(folder / "delta")])
        == 0
    )
    return base, folder / "tuned", folder / "delta"


def test_the_rounding_is_that_of_float16() -> None:
    base, tuned = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[1.0, 2.0]]))
        tuned.weight.copy_(torch.tensor([[1.0 + 2**-12 + 2**-23, 2.0]]))  # the second part is below float16's 11 bits
        tuned.bias.copy_(base.bias)
    delta = deltas.difference(base, tuned)
    assert list(delta) == ["weight"] and delta["weight"].tolist() == [[2**-12, 0.0]]
    deltas.add(base, delta)
    assert base.weight.tolist() == [[1.0 + 2**-12, 2.0]]


def test_base_and_delta_make_the_tuned_weights(made: tuple[Path, Path, Path]) -> None:
    base, tuned, loaded = (generators.load(str(folder)) for folder in made)
    before, after = dict(base.policy.named_parameters()), dict(tuned.policy.named_parameters())
    for name, parameter in loaded.policy.named_parameters():
        change = (after[name] - before[name]).abs()
        assert bool(((parameter - after[name]).abs() <= 2**-11 * change + 2**-24).all()), name
        assert not torch.equal(parameter, before[name]), name
    assert (made[2] / deltas.WEIGHTS).stat().st_size < 0.6 * sum(4 * p.numel() for p in after.values())


def test_images_and_scores_agree(made: tuple[Path, Path, Path]) -> None:
    sampling = Sampling(group_size=4, guidance=2.0, seed=1)
    base, tuned, loaded = (collect(generators.load(str(f)), as_reward(redness), PROMPTS, sampling) for f in made)
    assert torch.equal(loaded.rollout.tokens, tuned.rollout.tokens) and torch.equal(loaded.images, tuned.images)
    assert torch.equal(loaded.scores, tuned.scores)
    assert not torch.equal(base.rollout.logprob_positive, tuned.rollout.logprob_positive)
    torch.testing.assert_close(loaded.rollout.logprob_positive, tuned.rollout.logprob_positive, rtol=0, atol=1e-4)


def test_lora_adapters_are_merged_and_may_stand_on_a_delta(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, delta = made
    adapted: Janus = generators.load(str(delta))  # type: ignore[assignment]
    adapted.add_lora(rank=2, alpha=4.0)
    with torch.no_grad():
        for parameter in adapted.trainable_parameters():
            parameter += 0.05
    adapted.save(tmp_path / "adapter")
    again: Janus = generators.load(str(tmp_path / "adapter"))  # type: ignore[assignment]
    rollout = again.sample(PROMPTS, Sampling(seed=2))
    torch.testing.assert_close(again.token_logprobs(rollout), adapted.token_logprobs(rollout), rtol=0, atol=1e-5)
    out = tmp_path / "merged"
    assert main(["export", "--checkpoint", str(tmp_path / "adapter"), "--against", str(base), "--out", str(out)]) == 0
    merged = generators.load(str(out))
    torch.testing.assert_close(merged.token_logprobs(rollout), adapted.token_logprobs(rollout), rtol=0, atol=2e-3)


def test_delta_json_says_where_the_weights_come_from(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000002"
    checkpoint.mkdir(parents=True)
    with Tracker(tmp_path / "run", steps=2) as tracker:
        tracker.log(1, {"validation/overall": 0.25, "images_sampled": 8.0})
        tracker.log(2, {"validation/overall": 0.5, "images_sampled": 16.0})
    (tmp_path / "run" / "config.yaml").write_text("seed: 7\nalgorithm: {name: grpo}\n", encoding="utf-8")
    about = provenance(checkpoint)
    assert (about["algorithm"], about["seed"], about["step"], about["images_sampled"]) == ("grpo", 7, 2, 16.0)
    assert about["scores"] == {"validation": 0.5}
    assert provenance(tmp_path) == {}
    kept = json.loads((made[2] / "delta.json").read_text(encoding="utf-8"))
    assert kept["base"] == str(made[0]) and list(kept["base_files"]) == ["model.safetensors"]


def test_embedded_deltas_have_names(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "ASSETS", tmp_path)
    assert checkpoints.tuned() == {}
    shutil.copytree(made[2], tmp_path / "tuned" / "gcpo")
    assert checkpoints.tuned() == {"janus-mini-gcpo": tmp_path / "tuned" / "gcpo"}
    found = checkpoints.locate("janus-mini-gcpo")
    assert (found.name, found.folder, found.delta) == ("janus-mini-gcpo", made[0], tmp_path / "tuned" / "gcpo")


def test_a_delta_fits_its_own_base_alone(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, tuned, delta = made
    moved = Path(shutil.copytree(delta, tmp_path / "delta"))
    about = json.loads((moved / "delta.json").read_text(encoding="utf-8"))
    (moved / "delta.json").write_text(json.dumps({**about, "base": str(tuned)}), encoding="utf-8")
    with pytest.raises(ValueError, match="made against other weights"):
        generators.load(str(moved))
    (moved / "delta.json").write_text(json.dumps({**about, "base": str(delta)}), encoding="utf-8")
    with pytest.raises(ValueError, match="no whole model"):
        generators.load(str(moved))
    (moved / "delta.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="names no base"):
        generators.load(str(moved))
    (moved / "delta.json").write_text(json.dumps(about), encoding="utf-8")
    (moved / "delta.safetensors").unlink()
    with pytest.raises(ValueError, match="no delta.safetensors"):
        generators.load(str(moved))


def test_what_cannot_be_exported_is_said(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned, delta = made

    def error(checkpoint: Path, against: Path) -> str:
        out = str(tmp_path / "out")
        assert main(["export", "--checkpoint", str(checkpoint), "--against", str(against), "--out", out]) == 2
        return capsys.readouterr().err

    assert "same policy" in error(base, base)
    assert "an adapter or delta" in error(tuned, delta)
    wider = tiny.checkpoint(tmp_path / "wider", width=64)
    assert "not of one model" in error(wider, base)
    other = generators.load(str(tuned))
    with torch.no_grad():
        other.model.model.vqmodel.decoder.conv_out.bias += 1.0  # type: ignore[attr-defined]
    other.save(tmp_path / "other")
    assert "decoders differ" in error(tmp_path / "other", base)
