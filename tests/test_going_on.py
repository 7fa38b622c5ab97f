"""A run goes on only from what is whole, finite and its own; one that is refused finds its folder as it was."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny
from helpers.training import generator, redness, trainer, weights
from rewards.base import Reward, RewardOutput
from rewards.function import as_reward
from t2i_gcpo import cli
from t2i_gcpo.training import checkpoint
from t2i_gcpo.training.options import CheckpointPlan, Schedule
from t2i_gcpo.training.resume import expects_checkpoint
from t2i_gcpo.training.tracker import read_metrics
from t2i_gcpo.utils import lock

REWARDS = """
import math

def redness(images, prompts, metadata):
    return images[:, 0].float().mean(dim=(1, 2)) / 255

def failing(images, prompts, metadata):
    return [math.nan] * len(images)
"""


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step_*"))


# -- from the command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("going_on")
    tiny.checkpoint(folder / "model")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "prompts.txt").write_text("a red circle\na blue square\na green star\na white circle\n")
    return folder


def arguments(workplace: Path, out: Path, *more: str, reward: str = "redness") -> list[str]:
    prompts = [f"--prompts.{name}={workplace / 'prompts.txt'}" for name in ("train", "validation", "test")]
    named = [f"--generator.checkpoint={workplace / 'model'}", f"--reward.name={workplace / 'rewards.py'}:{reward}"]
    options = (
        "--steps 2 --prompts-per-step 2 --algorithm.group-size 4 --optim.warmup-steps "
        "0 --pictures.every 0 --evaluate.every 0"
    )
    options += (
        " --evaluate.before False --evaluate.after False --checkpoint.every 1 --generator.compile off "
        "--generator.device cpu"
    )
    options += " --logging.tensorboard False --logging.progress False"
    return ["train", *named, *prompts, *options.split(), "--output-dir", str(out), *more]


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Path:
    assert cli.main(arguments(workplace, workplace / "finished")) == 0
    return workplace / "finished"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a run of two steps, with a checkpoint of each."""
    shutil.copytree(finished, tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text().replace(str(finished), str(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").write_text(config)
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def truncate_all(run: Path) -> None:
    for path in run.glob("checkpoints/step_*/trainer.pt"):
        path.write_bytes(path.read_bytes()[:-9])


def remove_the_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def remove_each_checkpoint(run: Path) -> None:
    for path in run.glob("checkpoints/step_*"):
        shutil.rmtree(path)


def truncate_the_config(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    kept = text[: text.index("optim:")]
    (run / "config.yaml").write_text(kept + ("" if "output_dir:" in kept else f"output_dir: {run}\n"))


def damage_the_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text("[]\n" + (run / "metrics.jsonl").read_text())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_all, "holds no whole checkpoint to resume from"),
        (remove_the_checkpoints, "holds no whole checkpoint to resume from"),
        (remove_each_checkpoint, "holds no whole checkpoint to resume from"),
        (truncate_the_config, "a resumed run cannot change"),
        (damage_the_metrics, "metrics.jsonl, line 1 is empty; it must be a mapping"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*passed over")
def test_what_cannot_be_gone_on_from_is_refused_and_left_as_it_was(
    run: Path, damage: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    before = contents(run)
    assert cli.main(["train", "--output-dir", str(run), "--resume"]) == 2
    assert message in capsys.readouterr().err
    assert contents(run) == before


def test_fewer_steps_than_are_done_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert cli.main(["train", "--output-dir", str(run), "--resume", "--steps", "1"]) == 2
    assert "the run has 2 steps already, and steps is 1" in capsys.readouterr().err
    assert contents(run) == before


def test_a_run_that_another_process_trains_is_refused_and_left_as_it_was(
    workplace: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / ".tmp_step_000003").mkdir()
    (run / "checkpoints" / ".tmp_step_000003" / "half").write_text("written by the living run")
    (tmp_path / "new").mkdir()
    with held(run), held(tmp_path / "new"):
        before, new = contents(run), contents(tmp_path / "new")
        assert cli.main(["train", "--output-dir", str(run), "--resume", "--steps", "3"]) == 2
        assert "is in use by process" in capsys.readouterr().err
        assert cli.main(arguments(workplace, tmp_path / "new")) == 2
        assert "is in use by process" in capsys.readouterr().err
        assert (contents(run), contents(tmp_path / "new")) == (before, new)
        with pytest.raises(ValueError, match="is in use by"):
            trainer(tmp_path / "new").train()
    assert cli.main(["train", "--output-dir", str(run), "--resume", "--steps", "3"]) == 0
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3]
    assert not list(run.rglob(".tmp_*")) and not (run / lock.NAME).exists()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, another thread, which stands for another process, holds a folder's lock."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock.locked(folder):
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_run_without_any_score_warns_and_fails(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(workplace, tmp_path / "run", "--reward.failure", "mark", reward="failing")
    with pytest.warns(UserWarning, match="no image of step 1 has a score"):
        assert cli.main(argv) == 1
    assert "no image of the run has a score" in capsys.readouterr().err
    assert cli.main(["train", "--output-dir", str(tmp_path / "run"), "--resume"]) == 1, "there is still nothing learnt"


def test_steps_in_a_row_without_any_score_end_the_run(tmp_path: Path) -> None:
    calls = iter(range(99))

    def failing(images: Tensor, *_: Any) -> RewardOutput:
        return RewardOutput(redness(images, [], []) if next(calls) == 0 else torch.full((len(images),), torch.nan))

    run = trainer(tmp_path, reward=as_reward(failing, failure="mark"), steps=9, max_nonfinite=2)
    with (
        pytest.warns(UserWarning, match="no image of step 2 has a score"),
        pytest.raises(FloatingPointError, match="no image of the last 2 steps has a score"),
    ):
        run.train()
    assert run.step_number == 3 and len(read_metrics(tmp_path)) == 3


def test_a_folder_of_another_run_is_not_gone_on_from(
    workplace: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its options as such may be the same: the generator that a name stands for is not."""
    tiny.checkpoint(tmp_path / "model", seed=9)
    other = arguments(workplace, tmp_path / "other")
    other[1] = f"--generator.checkpoint={tmp_path / 'model'}"
    assert cli.main(other) == 0
    shutil.rmtree(run / "checkpoints" / "step_000002")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step_000002", run / "checkpoints" / "step_000002")
    before = contents(run)
    assert cli.main(["train", "--output-dir", str(run), "--resume", "--steps", "3"]) == 2
    assert "generator.checkpoint" in capsys.readouterr().err and contents(run) == before
    # The same name, and another model behind it.
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(workplace / "model", tmp_path / "model")
    assert cli.main(["train", "--output-dir", str(tmp_path / "other"), "--resume", "--steps", "3"]) == 2
    assert "began with another generator" in capsys.readouterr().err


# -- from Python -------------------------------------------------------------------------------------------------------


class Scorer(Reward):
    """A reward with an identity: what a server says that it serves."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.built_with = name, options

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        return RewardOutput(redness(images, prompts, metadata))


def test_another_scorer_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, steps=1, reward=Scorer("geneval", score="strict", url="http://a")).train()
    assert trainer(tmp_path, reward=Scorer("geneval", score="strict", url="http://b")).resume() == 1
    for other in (Scorer("clip"), Scorer("geneval", score="clauses")):
        with pytest.raises(ValueError, match=r"was rewarded by 'geneval' \(score='strict'\), and now the reward is"):
            trainer(tmp_path, reward=other).resume()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_that_save(number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    previous = signal.signal(number, signal.SIG_DFL)
    count = iter(range(1, 99))

    def reward(*scene: Any) -> Tensor:
        if next(count) == 2:
            signal.raise_signal(number)
            signal.raise_signal(number)  # it comes to every process of a job, and more than once
        return redness(*scene)

    run = trainer(tmp_path, reward=reward, steps=3)
    run.train()
    assert signal.signal(number, previous) == signal.SIG_DFL
    shown = capsys.readouterr().out
    if number != signal.SIGUSR1:
        assert run.interrupted_by == number.name and run.step_number == 2 and steps(tmp_path) == ["step_000002"]
        assert shown.count(f"{number.name}: the step is finished and saved first") == 1 and "--resume" in shown
    else:
        assert not run.interrupted and run.step_number == 3 and steps(tmp_path) == ["step_000002", "step_000003"]


def test_weights_that_are_not_finite_after_an_update_end_the_run_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for attempt in range(4):
        run = trainer(tmp_path, steps=5, checkpoint=CheckpointPlan(every=1, keep=1))
        if attempt:
            assert run.resume() == 2
        step = run.updater.optimizer.step

        def poisoned(run: Any = run, step: Any = step) -> None:
            step()
            if run.step_number == 2:  # in the third step
                run.updater.weights.masters[3].data.view(-1)[-1] = torch.inf

        run.updater.optimizer.step = poisoned  # type: ignore[method-assign]
        with pytest.raises(FloatingPointError, match="the weights are not finite after an update; start a new run"):
            run.train()
        assert "were not saved" in capsys.readouterr().out
        assert steps(tmp_path) == ["step_000002"], "the last finite one is kept, and nothing after it"
        assert len(read_metrics(tmp_path)) == 2, "the step itself fails, whether or not a checkpoint is due"


def test_a_save_on_request_and_its_pruning_go_no_further_than_finite_weights(tmp_path: Path) -> None:
    def poison(run: Any, record: Any) -> None:
        if record.step == 3:
            with torch.no_grad():
                run.generator.trainable_parameters()[0][-1, -1] = torch.nan  # no prompt has this word

    run = trainer(tmp_path, steps=5, callbacks=[poison], checkpoint=CheckpointPlan(every=1, keep=1))
    with pytest.raises(FloatingPointError, match="not finite"):
        run.train()
    assert steps(tmp_path) == ["step_000002"]
    with pytest.raises(FloatingPointError, match="not finite"):
        run.save()
    rest = trainer(tmp_path, steps=3)
    assert rest.resume() == 2 and all(bool(value.isfinite().all()) for value in weights(rest.generator))  # type: ignore[arg-type]


def test_weights_whose_log_probs_are_not_finite_are_not_saved_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An enormous learning rate leaves weights that are finite, and losses that are not: every update is skipped."""
    trainer(tmp_path, steps=2, checkpoint=CheckpointPlan(every=1, keep=1)).train()
    for _ in range(3):
        run = trainer(tmp_path, steps=5, checkpoint=CheckpointPlan(every=1, keep=1))
        assert run.resume() == 2
        run.updater.optim = Schedule(lr=1e30, warmup_steps=0)
        with pytest.raises(
            FloatingPointError, match="the log-probs of the updated weights are not finite; start a new"
        ):
            run.train()
        assert run.updater.weights.finite() and "were not saved" in capsys.readouterr().out
        assert steps(tmp_path) == ["step_000002"]


def test_checkpoints_of_non_finite_weights_are_passed_over(tmp_path: Path) -> None:
    """A version that did not look wrote them."""
    trainer(tmp_path, steps=2, checkpoint=CheckpointPlan(every=1, keep=0)).train()
    newest = tmp_path / "checkpoints" / "step_000002"
    state = checkpoint.load(newest)
    state["updater"]["weights"][0].fill_(torch.inf)
    checkpoint.save(tmp_path, 2, state=state, save_model=generator().save)
    run = trainer(tmp_path, steps=3, checkpoint=CheckpointPlan(every=1, keep=1))
    with pytest.warns(UserWarning, match="step_000002 is passed over: its weights are not finite"):
        assert run.resume() == 1
    with pytest.raises(ValueError, match="its weights are not finite"):
        trainer(tmp_path, steps=3).resume(newest)


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    plan = CheckpointPlan(every=2, keep=1)
    (tmp_path / "checkpoints").mkdir()
    rows = [{"step": step} for step in (1, 2, 3)]
    assert not expects_checkpoint(tmp_path, [], plan)
    assert not expects_checkpoint(tmp_path, rows[:1], plan)
    assert not expects_checkpoint(tmp_path, rows[:2], plan), "that of the last row may not be written yet"
    assert expects_checkpoint(tmp_path, rows, plan)
    assert expects_checkpoint(tmp_path, [{"step": 1, "validation/overall": 0.5}, *rows[1:2]], plan), "the best is kept"
    assert not expects_checkpoint(tmp_path, rows, CheckpointPlan(every=0))
    (tmp_path / "checkpoints" / "step_000001").mkdir()
    assert expects_checkpoint(tmp_path, rows[:1], plan) and expects_checkpoint(tmp_path, [], plan), "a damaged one"
    shutil.rmtree(tmp_path / "checkpoints")
    assert expects_checkpoint(tmp_path, rows[:1], plan), "the folder is made when a run begins"
    assert not expects_checkpoint(tmp_path, [], plan)


def test_rows_of_metrics_hold_numbers(tmp_path: Path) -> None:
    for row, message in (
        ('{"step": "1"}', 'line 1: step is "1"; it must be a whole number'),
        ('{"step": 1, "kl": "low"}', 'step 1: kl is "low"; it must be a number'),
        ("null", "line 1 is null; it must be a mapping"),
        ("{}", "line 1 has no 'step'"),
    ):
        (tmp_path / "metrics.jsonl").write_text(row + "\n" + json.dumps({"step": 2}) + "\n")
        with pytest.raises(ValueError, match=message):
            read_metrics(tmp_path)
