"""Checkpoints are whole or not there; the newest whole one is found; what a resumed run may change."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from t2i_gcpo.training import checkpoint


def save(run: Path, step: int, value: float = 1.0) -> Path:
    def save_model(path: Path) -> None:
        (path / "vqvae").mkdir()
        (path / "config.json").write_text('{"model_type": "janus"}')
        (path / "vqvae" / "weights.bin").write_bytes(bytes(100))

    return checkpoint.save(run, step, state={"step": step, "moment": torch.full((2,), value)}, save_model=save_model)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_round_trip(tmp_path: Path) -> None:
    path = save(tmp_path, 7, value=3.0)
    assert path == tmp_path / "checkpoints" / "step_000007"
    assert (path / "config.json").is_file() and (path / "vqvae" / "weights.bin").is_file()
    state = checkpoint.load(path)
    assert state["step"] == 7 and state["moment"].tolist() == [3.0, 3.0]
    assert names(tmp_path) == ["step_000007"]
    save(tmp_path, 7, value=4.0)
    assert checkpoint.load(path)["moment"].tolist() == [4.0, 4.0] and names(tmp_path) == ["step_000007"]


def test_state_must_be_plain(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state={"bad": Path("x")}, save_model=lambda path: None)
    with pytest.raises(Exception, match="weights_only|Weights only"):
        checkpoint.load(tmp_path / "checkpoints" / "step_000001")


def truncate(path: Path) -> None:
    (path / "trainer.pt").write_bytes((path / "trainer.pt").read_bytes()[:-10])


def flip_a_byte(path: Path) -> None:
    data = bytearray((path / "vqvae" / "weights.bin").read_bytes())
    data[50] ^= 1
    (path / "vqvae" / "weights.bin").write_bytes(data)


def drop_a_file(path: Path) -> None:
    (path / "config.json").unlink()


def drop_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def damage_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, drop_a_file, drop_the_manifest, damage_the_manifest])
def test_newest_passes_over_damaged_checkpoints(tmp_path: Path, damage: object) -> None:
    assert checkpoint.newest(tmp_path) is None
    save(tmp_path, 5)
    last = save(tmp_path, 10)
    (tmp_path / "checkpoints" / "step_notes").mkdir()
    assert checkpoint.newest(tmp_path) == last
    damage(last)  # type: ignore[operator]
    with pytest.warns(UserWarning, match="step_000010 is passed over"):
        found = checkpoint.newest(tmp_path)
    assert found is not None and checkpoint.step_of(found) == 5
    with pytest.raises(ValueError, match="no whole checkpoint"):
        checkpoint.load(last)


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save(tmp_path, step)
    found = checkpoint.newest(tmp_path)
    assert found is not None and checkpoint.step_of(found) == 1_000_000


def test_a_write_that_fails_halfway_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(tmp_path, 5)
    real = torch.save

    def half(state: object, path: Path) -> None:
        real(state, path)
        path.write_bytes(path.read_bytes()[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="the disk is full: the checkpoint of step 10") as caught:
        save(tmp_path, 10)
    assert caught.value.errno == errno.ENOSPC
    assert checkpoint.newest(tmp_path) == first and names(tmp_path) == ["step_000005"]
    # The same step again: the whole one that is there stays.
    with pytest.raises(OSError, match="disk is full"):
        save(tmp_path, 5)
    monkeypatch.undo()
    assert checkpoint.load(first)["step"] == 5

    def broken(path: Path) -> None:
        (path / "config.json").write_text("{")
        raise RuntimeError("no such tensor")

    with pytest.raises(RuntimeError, match="no such tensor"):
        checkpoint.save(tmp_path, 10, state={}, save_model=broken)
    assert names(tmp_path) == ["step_000005"]


def test_a_killed_write_is_cleaned_up(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "checkpoints" / ".tmp_step_000010").mkdir()
    (tmp_path / "checkpoints" / ".tmp_best.json").write_text("{")
    checkpoint.clean(tmp_path)
    assert names(tmp_path) == ["step_000005"]
    checkpoint.clean(tmp_path / "nowhere")


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step, score in ((1, 0.2), (2, 0.5), (3, 0.5), (4, float("nan")), (5, 0.4)):
        save(tmp_path, step)
        assert checkpoint.record_best(tmp_path, step, score) is (step in (1, 2))
    assert checkpoint.best(tmp_path) == (2, 0.5)
    assert checkpoint.prune(tmp_path, 0) == []
    assert [path.name for path in checkpoint.prune(tmp_path, 2)] == ["step_000001", "step_000003"]
    assert names(tmp_path) == ["best.json", "step_000002", "step_000004", "step_000005"]
    checkpoint.prune(tmp_path, 1, keep_best=False)
    assert names(tmp_path) == ["best.json", "step_000005"]
    assert checkpoint.best(tmp_path) is None, "the best checkpoint is gone, so the next score is the best"
    assert checkpoint.record_best(tmp_path, 5, 0.1)


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    truncate(tmp_path / "checkpoints" / "step_000003")
    assert [path.name for path in checkpoint.prune(tmp_path, 1)] == ["step_000001"]


def test_large_files_are_checked_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_gcpo.utils.files.HASHED_BYTES", 50)
    path = save(tmp_path, 1)
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert files["vqvae/weights.bin"] == {"bytes": 100} and "sha256" in files["config.json"]
    (path / "vqvae" / "weights.bin").write_bytes(bytes(99))
    assert "99 bytes instead of 100" in str(checkpoint.flaw(path))


def test_what_a_resumed_run_may_change() -> None:
    old = {
        "steps": 10,
        "seed": 0,
        "optim": {"lr": 1e-4},
        "checkpoint": {"every": 5},
        "generator": {"device": "cpu", "dtype": "float32"},
    }
    checkpoint.check_resumable(old, old)
    checkpoint.check_resumable(
        old, {**old, "steps": 20, "checkpoint": {"every": 1}, "generator": {"device": "cuda", "dtype": "float32"}}
    )
    with pytest.raises(ValueError, match=r"optim.lr: 0.0001 -> 0.001\n  seed: 0 -> 1") as caught:
        checkpoint.check_resumable(old, {**old, "steps": 20, "seed": 1, "optim": {"lr": 1e-3}})
    assert "  steps" not in str(caught.value)
    with pytest.raises(ValueError, match="reward.detector: 'shapes' -> None"):
        checkpoint.check_resumable({"reward": {"detector": "shapes"}}, {"reward": {}})
    with pytest.raises(ValueError, match="steps_more"):
        checkpoint.check_resumable({"steps_more": 1}, {"steps_more": 2})
