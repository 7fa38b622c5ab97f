"""Checkpoints are whole or not there; the newest whole one is found; what a resumed run may change."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.limits import no_file_above
from t2i_gcpo.training import checkpoint
from t2i_gcpo.utils.files import describe


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
    with pytest.raises(Exception, match="more than tensors and plain values"):
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


def manifest(content: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        (path / "manifest.json").write_text(json.dumps(content))

    return write


def manifest_of_other_bytes(path: Path) -> None:
    (path / "manifest.json").write_bytes(b"\xff\xfe\x00")


def a_folder_as_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()


def state(content: object) -> Callable[[Path], None]:
    """A state of another kind, which the manifest fits."""

    def write(path: Path) -> None:
        torch.save(content, path / "trainer.pt")
        fit_the_manifest(path)

    return write


def noise_as_state(path: Path) -> None:
    (path / "trainer.pt").write_bytes(bytes(range(256)) * 9)
    fit_the_manifest(path)


def fit_the_manifest(path: Path) -> None:
    files = {
        str(p.relative_to(path)): describe(p) for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"
    }
    (path / "manifest.json").write_text(json.dumps({"step": 10, "files": files}))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, r"trainer\.pt has \d+ bytes instead of \d+"),
    "a flipped byte": (flip_a_byte, "vqvae/weights.bin is damaged"),
    "a missing file": (drop_a_file, "config.json is missing"),
    "no manifest": (drop_the_manifest, "it has no manifest.json"),
    "half a manifest": (damage_the_manifest, "its manifest.json is damaged .*not valid JSON"),
    "a manifest of other bytes": (manifest_of_other_bytes, "its manifest.json is damaged .*UTF-8"),
    "a folder as manifest": (a_folder_as_manifest, "its manifest.json is damaged .*directory"),
    "null": (manifest(None), "is null; it must be a mapping"),
    "a list": (manifest([]), "it must be a mapping"),
    "no files": (manifest({"step": 10}), "has no 'files'"),
    "files null": (manifest({"step": 10, "files": None}), "files is null; it must be a mapping"),
    "no files at all": (manifest({"step": 10, "files": {}}), "names no trainer.pt"),
    "a file of null": (manifest({"step": 10, "files": {"trainer.pt": None}}), "trainer.pt is null"),
    "bytes as text": (manifest({"step": 10, "files": {"trainer.pt": {"bytes": "9"}}}), 'bytes is "9"'),
    "no step": (manifest({"files": {}}), "has no 'step'"),
}


@pytest.mark.parametrize("damage", [damage for damage, _ in DAMAGES.values()], ids=DAMAGES)
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


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_has_its_sentence(tmp_path: Path, name: str) -> None:
    damage, sentence = DAMAGES[name]
    path = save(tmp_path, 10)
    damage(path)
    assert re.search(sentence, str(checkpoint.damage(path)))


@pytest.mark.parametrize("damage", [noise_as_state, state([1, 2]), state({"steps": 3}), state({"step": None})])
def test_a_state_that_cannot_be_used_is_passed_over(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    def problem(content: dict[str, Any]) -> str | None:
        return None if isinstance(content.get("step"), int) else "its state has no step"

    save(tmp_path, 5)
    damage(save(tmp_path, 10))
    with pytest.warns(UserWarning, match="step_000010 is passed over: (trainer.pt|its state has no step)"):
        found = checkpoint.newest_state(tmp_path, problem)
    assert found is not None and found[0].name == "step_000005" and found[1]["step"] == 5


def test_a_folder_that_was_renamed_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 3).rename(tmp_path / "checkpoints" / "step_000009")
    with pytest.warns(UserWarning, match="step_000009 is passed over: its manifest.json says that it is of step 3"):
        found = checkpoint.newest(tmp_path)
    assert found is not None and found.name == "step_000005"


@pytest.mark.parametrize("name", ["step_²", "step_٣", "step_", "step_-1", "step_1e3", "step_" + "9" * 30, "step_7.old"])
def test_other_names_are_no_checkpoints(tmp_path: Path, name: str) -> None:
    last = save(tmp_path, 5)
    (tmp_path / "checkpoints" / name).mkdir()
    assert checkpoint.newest(tmp_path) == last
    assert checkpoint.prune(tmp_path, 1) == []


@pytest.mark.parametrize("content", ["{}", "[]", "null", "{", '{"step": "5", "score": 1}', '{"step": 5, "score": NaN}'])
def test_a_damaged_note_of_the_best_is_warned_of_and_written_anew(tmp_path: Path, content: str) -> None:
    save(tmp_path, 5)
    (tmp_path / "checkpoints" / "best.json").write_text(content)
    with pytest.warns(UserWarning, match="the best checkpoint of .* is not known: .*best.json"):
        assert checkpoint.best(tmp_path) is None
    with pytest.warns(UserWarning, match="is not known"):
        assert checkpoint.record_best(tmp_path, 5, 0.5)
    assert checkpoint.best(tmp_path) == (5, 0.5)
    assert not checkpoint.record_best(tmp_path, 5, float("inf"))


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


#: Saves 40 kB twice on a file system of 64 kB, a safetensors file first: {how} makes that file system.
FULL_DISK = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from t2i_gcpo.training import checkpoint
run = Path(sys.argv[1])
for step in (1, 2):
    try:
        weights = {"b": torch.zeros(5_000)}
        checkpoint.save(
            run, step, state={"a": torch.zeros(5_000)}, save_model=lambda path: save_file(weights, path / "w")
        )
    except OSError as error:
        print(error)
print(checkpoint.newest(run).name, [path.name for path in run.rglob("*tmp*")])
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """The error of safetensors is its own.

    And the half-written folder gives its room back before anybody asks for it.
    """
    mount = f"mount -t tmpfs -o size=64k none {tmp_path} && exec {sys.executable} -c '{FULL_DISK}' {tmp_path}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "the disk is full: the checkpoint of step 2 was not written" in first and "Free some space" in first
    assert second == "step_000001 []"


def test_a_file_above_the_limit_of_its_size(tmp_path: Path) -> None:
    first = save(tmp_path, 1)

    def save_model(path: Path) -> None:
        save_file({"b": torch.zeros(50_000)}, path / "w")

    message = "file system or `ulimit -f` allows: the checkpoint of step 2"
    with pytest.raises(OSError, match=message) as caught, no_file_above(100_000):
        checkpoint.save(tmp_path, 2, state={}, save_model=save_model)
    assert caught.value.errno == errno.EFBIG
    assert checkpoint.newest(tmp_path) == first and names(tmp_path) == ["step_000001"]


def test_a_killed_write_is_cleaned_up(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "checkpoints" / ".tmp_step_000010").mkdir()
    (tmp_path / "checkpoints" / ".tmp_best.json").write_text("{")
    (tmp_path / ".tmp_123_metrics.jsonl").write_text("{")
    checkpoint.clean(tmp_path)
    assert names(tmp_path) == ["step_000005"]
    assert not list(tmp_path.glob(".tmp_*"))
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


def test_checkpoints_that_were_passed_over_do_not_count_as_kept(tmp_path: Path) -> None:
    for step in (4, 5, 8, 9):  # resumed from 3, as 8 and 9 cannot be used
        save(tmp_path, step)
    assert [path.name for path in checkpoint.prune(tmp_path, 1, step=5)] == ["step_000004"]


def test_large_files_are_checked_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_gcpo.utils.files.HASHED_BYTES", 50)
    path = save(tmp_path, 1)
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert files["vqvae/weights.bin"] == {"bytes": 100} and "sha256" in files["config.json"]
    (path / "vqvae" / "weights.bin").write_bytes(bytes(99))
    assert "99 bytes instead of 100" in str(checkpoint.damage(path))


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
