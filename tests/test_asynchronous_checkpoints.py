"""Checkpoints that are written while training goes on are those that are written at once, and end as these do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import ranks_cases, ranks_held, tiny, tiny_amused
from helpers.training import generator, same, trainer
from t2i_gcpo import generators
from t2i_gcpo.records import Sampling, Unmasking
from t2i_gcpo.training import checkpoint
from t2i_gcpo.training.options import CheckpointPlan, Schedule
from t2i_gcpo.training.resume import expects_checkpoint
from t2i_gcpo.training.saving import Saving
from t2i_gcpo.training.trainer import StepRecord, Trainer
from t2i_gcpo.training.writing import CheckpointWrite


def plan(**changes: Any) -> CheckpointPlan:
    return CheckpointPlan(**{"every": 1, "keep": 0, "asynchronous": True, **changes})


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is clear, no thread writes a checkpoint."""
    event, write = threading.Event(), CheckpointWrite.write

    def held(self: CheckpointWrite) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert event.wait(timeout=60)
        write(self)

    monkeypatch.setattr(CheckpointWrite, "write", held)
    yield event
    event.set()


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def content(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint. A tokenizer's say how the last prompts were padded, and that is left out."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in [name for name in files if name.endswith("tokenizer.json")]:
        rows = {key: value for key, value in json.loads(files[name]).items() if key not in ("padding", "truncation")}
        files[name] = json.dumps(rows).encode()
        manifest = json.loads(files["manifest.json"])
        del manifest["files"][name]
        files["manifest.json"] = json.dumps(manifest).encode()
    return files


def with_lora(folder: Path, make: Callable[[Path], object]) -> Any:
    if not folder.is_dir():
        make(folder)
    policy = generators.load(str(folder), compile=False)
    policy.add_lora(rank=4, alpha=8.0, seed=1)
    return policy


def bfloat16() -> Any:
    policy = generator()
    policy.model.to(torch.bfloat16)
    policy.head.module.float()  # as in a model that is loaded so
    return policy


MASKED = {"sampling": Sampling(guidance=2.0, unmasking=Unmasking(steps=2))}
AVERAGED = {"optim": Schedule(lr=1e-2, warmup_steps=0, average_decay=0.9, reference_every=2), "kl_every": 1}
CASES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "full": (lambda folder: generator(), {}),
    "bfloat16": (lambda folder: bfloat16(), {}),
    "averaged": (lambda folder: generator(), AVERAGED),
    "lora": (lambda folder: with_lora(folder / "janus", tiny.checkpoint), AVERAGED),
    "masked": (lambda folder: tiny_amused.generator(compile=False), MASKED),
    "masked lora": (lambda folder: with_lora(folder / "amused", tiny_amused.checkpoint), MASKED),
}


@pytest.mark.parametrize(
    "case", ["lora", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case != "lora")]
)
def test_a_write_that_is_held_up_writes_the_weights_of_its_step(
    case: str, gate: threading.Event, tmp_path: Path
) -> None:
    """Training takes two more steps meanwhile; the files are those of a checkpoint that is written at once."""
    make, options = CASES[case]
    at_once = trainer(
        tmp_path / "at_once", policy=make(tmp_path), steps=4, checkpoint=plan(asynchronous=False), **options
    )
    at_once.train()
    whole_after: dict[int, list[str]] = {}

    def note(run: Trainer, record: StepRecord) -> None:
        whole_after[record.step] = names(run.output_dir)
        if record.step == 3:
            gate.set()

    aside = trainer(
        tmp_path / "aside", policy=make(tmp_path), steps=4, checkpoint=plan(every=0), callbacks=[note], **options
    )
    rounds = aside.iterate()
    aside.request_save()
    for _ in rounds:
        pass
    # Whole at the earliest after step 3, when all its files were written.
    assert [whole_after[step] for step in (1, 2, 3)] == [[], [".tmp_step_000001"], [".tmp_step_000001"]]
    assert names(tmp_path / "aside") == ["step_000001", "step_000004"]
    for step in ("step_000001", "step_000004"):
        written, expected = (content(tmp_path / run / "checkpoints" / step) for run in ("aside", "at_once"))
        assert written.keys() == expected.keys() and len(written) > 3
        assert [name for name in written if written[name] != expected[name]] == []


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> None:
    """Let threads write as late as they can: when a checkpoint is waited for."""
    finish = Saving.finish

    def open_the_gate(self: Saving) -> None:
        gate.set()
        finish(self)
        gate.clear()

    monkeypatch.setattr(Saving, "finish", open_the_gate)


@pytest.mark.parametrize(("keep", "kept"), [(0, (1, 2, 4, 5, 7)), pytest.param(1, (5, 7), marks=pytest.mark.slow)])
@pytest.mark.usefixtures("late")
def test_the_same_checkpoints_are_kept_and_the_same_is_the_best(
    keep: int, kept: tuple[int, ...], tmp_path: Path
) -> None:
    def validation(run: Trainer, record: StepRecord) -> None:
        scores = {1: 0.2, 2: 0.9, 3: 0.5, 5: 0.95, 6: 0.95}
        if record.step in scores:
            record.metrics["validation/overall"] = scores[record.step]

    for name in ("at_once", "aside"):
        options: dict[str, Any] = {"steps": 7, "callbacks": [validation], "optim": Schedule(lr=1e-3)}
        saved = plan(every=4, keep=keep, asynchronous=name == "aside")
        trainer(tmp_path / name, checkpoint=saved, **options).train()
        assert names(tmp_path / name) == ["best.json", *(f"step_{step:06d}" for step in kept)]
    assert checkpoint.best(tmp_path / "aside") == (5, 0.95)


def fail_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the next trainer.pt fail half-way."""
    real = torch.save

    def half(state: object, path: Path) -> None:
        real(state, path)
        path.write_bytes(path.read_bytes()[:20])
        monkeypatch.setattr(torch, "save", real)
        raise error

    monkeypatch.setattr(torch, "save", half)


def test_an_error_of_the_thread_ends_the_run_as_one_of_the_trainer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path, steps=6, checkpoint=plan())
    rounds = run.iterate()
    for _ in range(2):
        next(rounds)
    fail_once(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="the disk is full: the checkpoint of step [23] was not written"):
        list(rounds)
    # There was room again: the steps that were done are saved, and nothing is left of the one that failed.
    assert "The checkpoint is saved; go on with" in capsys.readouterr().out
    assert names(tmp_path)[-1] == f"step_{run.step_number:06d}" and not list(tmp_path.rglob(".tmp_*"))
    assert trainer(tmp_path, steps=6).resume() == run.step_number


def test_a_disk_that_stays_full_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path, steps=6, checkpoint=plan())
    rounds = run.iterate()
    next(rounds)
    next(rounds)
    run._saving.finish()

    def full(state: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="the checkpoint of step 3 was not written"):
        list(rounds)
    assert "was not written" not in capsys.readouterr().out
    assert names(tmp_path) == ["step_000001", "step_000002"]


def test_an_error_of_a_step_finishes_what_is_being_written(gate: threading.Event, tmp_path: Path) -> None:
    def fails(run: Trainer, record: StepRecord) -> None:
        if record.step == 2:
            gate.set()
            raise RuntimeError("the disk of the log is full")

    with pytest.raises(RuntimeError, match="disk of the log"):
        trainer(tmp_path, steps=4, checkpoint=plan(), callbacks=[fails]).train()
    assert names(tmp_path) == ["step_000001", "step_000002"]


def test_a_loop_that_is_left_and_a_second_run_finish_what_is_being_written(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=4, checkpoint=plan(every=2))
    for record in run.iterate():
        if record.step == 2:
            break
    assert names(tmp_path) == ["step_000002"]
    run.request_save()
    for record in run.iterate():
        assert record.step == 3
        break
    assert names(tmp_path) == ["step_000002", "step_000003"]


def test_a_stop_between_two_steps_finishes_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = CheckpointWrite.write, []
    monkeypatch.setattr(CheckpointWrite, "write", lambda self: (written.append(self.step), write(self))[1])
    run = trainer(tmp_path, steps=4, checkpoint=plan())
    for record in run.iterate():
        if record.step == 2:
            run.stop("enough")
    assert names(tmp_path) == ["step_000001", "step_000002"] and written == [1, 2]


def test_a_generator_of_ones_own_is_copied_whole() -> None:
    first = generator()
    copied = super(type(first).__mro__[1], first).snapshot()  # the protocol's default
    assert copied is not first and same(copied.trainable_parameters(), first.trainable_parameters())
    with torch.no_grad():
        first.trainable_parameters()[0].add_(1)
    assert not same(copied.trainable_parameters(), first.trainable_parameters())


def test_a_run_that_was_killed_while_it_wrote_its_first_checkpoint_may_begin_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    rows: list[dict[str, Any]] = [{"step": step} for step in range(1, 5)]
    assert not expects_checkpoint(tmp_path, rows, plan(every=2))
    assert expects_checkpoint(tmp_path, rows, plan(every=2, asynchronous=False))
    assert expects_checkpoint(tmp_path, [*rows, {"step": 5}], plan(every=2))


def plain(state: Any) -> Any:
    """Tensors as types and numbers, so that states can be compared."""
    if isinstance(state, torch.Tensor):
        return str(state.dtype), state.tolist()
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, (list, tuple)) else state


SCRIPT = Path(ranks_held.__file__)


def held(count: int, folder: Path, how: str) -> Any:
    """Run the script on a number of processes, and return the finished one."""
    if count > 1:
        return ranks_cases.together(count, SCRIPT, folder, how)
    paths = os.pathsep.join([str(ranks_cases.TESTS.parent), str(ranks_cases.TESTS)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    line = [sys.executable, str(SCRIPT), str(folder), how]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_is_killed_while_it_writes_goes_on_from_the_checkpoint_before(count: int, tmp_path: Path) -> None:
    """And it is the run whose checkpoints are written at once, in its shards, too."""
    for folder, how in (("at_once", "at_once"), ("killed", "kill")):
        done = held(count, tmp_path / folder, how)
        assert (done.returncode == 0) == (how == "at_once"), done.stderr[-3000:]
    left = tmp_path / "killed" / "run"
    assert names(left) == [".tmp_step_000002", "step_000001"]
    done = held(count, tmp_path / "killed", "go_on")
    assert done.returncode == 0 and "resumed at step 1\n" in done.stdout, done.stderr[-3000:]
    assert names(left) == names(tmp_path / "at_once" / "run") == [f"step_{step:06d}" for step in range(1, 6)]
    for step in names(left):
        ours, theirs = (tmp_path / name / "run" / "checkpoints" / step for name in ("killed", "at_once"))
        written, expected = content(ours), content(theirs)
        different = {name for name in written if written[name] != expected[name]}
        # The description of the shards has a number of its own, and the manifest its hash; trainer.pt names what occurs
        # twice once, which depends on where it came from.
        assert written.keys() == expected.keys() and different <= {"shards/.metadata", "manifest.json", "trainer.pt"}
        assert plain(torch.load(ours / "trainer.pt")) == plain(torch.load(theirs / "trainer.pt"))
        assert count == 1 or {f"shards/__{rank}_0.distcp" for rank in range(count)} < written.keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_whose_thread_fails_ends_all_with_one_message(tmp_path: Path) -> None:
    done = held(2, tmp_path, "fail")
    said = done.stdout + done.stderr
    errors = [line for line in said.splitlines() if line.startswith("error: rank 1: ")]
    assert done.returncode != 0 and len(errors) == 1 and said.count("was not written") == 1, said[-3000:]
    assert "the disk is full: the checkpoint of step 2 was not written" in errors[0]
    assert names(tmp_path / "run") == ["step_000001"]
    assert held(2, tmp_path, "go_on").returncode == 0 and names(tmp_path / "run")[-1] == "step_000005"
    first, last = (
        torch.load(tmp_path / "run" / "checkpoints" / step / "trainer.pt")["step"]
        for step in ("step_000001", "step_000005")
    )
    assert (first, last) == (1, 5)
