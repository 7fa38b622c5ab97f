"""A run that was stopped, killed or interrupted at any moment and resumed is the run uninterrupted, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny
from helpers.training import distance, generator, same, sha256, trainer, weights
from t2i_gcpo import cli, generators
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.training import checkpoint
from t2i_gcpo.training.optim import lr_factor
from t2i_gcpo.training.options import CheckpointPlan, Schedule
from t2i_gcpo.training.resume import check_same_run
from t2i_gcpo.training.tracker import read_metrics
from t2i_gcpo.training.trainer import StepRecord, Trainer

WARMED = Schedule(lr=1e-2, warmup_steps=3, schedule="cosine", weight_decay=0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("resume") / "model")


def with_lora(model: Path) -> Janus:
    policy = generators.load(str(model), compile=False)
    policy.add_lora(rank=4, alpha=8.0, seed=1)
    assert isinstance(policy, Janus)
    return policy


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gcpo", {}),
        ("gcpo", {"epochs": 2, "minibatches": 2}),
        ("dapo", {}),
        ("gcpo_random", {}),
        ("gcpo_variance", {}),  # its weights are divided by the average of the steps before
        ("gcpo", {"lora": True}),
    ],
)
def test_stopped_and_resumed_is_straight_through(
    name: str, changes: dict[str, Any], tmp_path: Path, model: Path
) -> None:
    def policy() -> Janus:
        return with_lora(model) if changes.get("lora") else generator()

    options = {k: v for k, v in changes.items() if k != "lora"} | {"name": name, "steps": 4, "optim": WARMED}
    straight = trainer(tmp_path / "straight", policy=policy(), **options)
    straight.train()
    part = trainer(tmp_path / "part", policy=policy(), **options, checkpoint=CheckpointPlan(every=2, keep=1))
    part.callbacks = [lambda run, record: run.stop("half") if record.step == 2 else None]
    part.train()
    rest = trainer(tmp_path / "part", policy=policy(), **options)
    start = weights(rest.generator)  # type: ignore[arg-type]
    assert rest.resume() == 2
    rest.train()
    assert same(weights(rest.generator), weights(straight.generator))  # type: ignore[arg-type]
    assert distance(weights(rest.generator), start) > 1e-3  # type: ignore[arg-type]
    assert without_times(read_metrics(tmp_path / "part")) == without_times(read_metrics(tmp_path / "straight"))
    kept = [tmp_path / run / "checkpoints" / "step_000004" for run in ("part", "straight")]
    weight_file = "adapter_model.safetensors" if changes.get("lora") else "model.safetensors"
    assert sha256(kept[0] / weight_file) == sha256(kept[1] / weight_file)


def test_a_longer_run_has_the_rates_of_its_own_schedule(tmp_path: Path) -> None:
    """Resumed with more steps: every step's rate is the schedule's, the first one's too."""
    optim = Schedule(lr=1e-4, schedule="cosine", warmup_steps=0)
    trainer(tmp_path, steps=2, optim=optim).train()
    rest = trainer(tmp_path, steps=5, optim=optim)
    assert rest.resume() == 2
    rest.train()
    course = [lr_factor(step, optim, 5) for step in range(5)]
    rates = [row["lr"] for row in read_metrics(tmp_path)]
    assert rates[2:] == pytest.approx([1e-4 * factor for factor in course[2:]])
    used = {group["lr"] for group in rest.updater.optimizer.param_groups}
    assert used == {rates[-1]}


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_s"))} for row in rows]


def test_without_its_random_state_a_resumed_run_is_another(tmp_path: Path) -> None:
    """The comparison can fail: one draw too many, and everything after is different."""
    trainer(tmp_path / "a", steps=1).train()
    finals = []
    for extra in (False, True):
        rest = trainer(tmp_path / f"b{extra}", steps=2)
        rest.resume(tmp_path / "a" / "checkpoints" / "step_000001")
        if extra:
            torch.rand(1, generator=rest.rng)
        rest.train()
        finals.append(weights(rest.generator))  # type: ignore[arg-type]
    assert distance(*finals) > 1e-5


def test_the_reference_of_a_resumed_run_is_the_generator_it_began_with(tmp_path: Path) -> None:
    first = trainer(tmp_path, steps=2)
    begun = weights(first.generator)  # type: ignore[arg-type]
    first.train()
    rest = trainer(tmp_path, steps=3)
    rest.resume()
    with rest.generator.reference():
        assert same(list(rest.generator.policy.parameters()), begun)
    assert same(weights(rest.generator), weights(first.generator))  # type: ignore[arg-type]


def test_other_options_are_refused(tmp_path: Path) -> None:
    trainer(tmp_path, steps=1).train()
    with pytest.raises(ValueError, match="algorithm.credit: 'contrast' -> 'random'") as caught:
        trainer(tmp_path, name="gcpo_random", seed=6, steps=2).resume()
    assert "seed: 5 -> 6" in str(caught.value) and "steps" not in str(caught.value).split("Free")[0]
    with pytest.raises(ValueError, match="no whole checkpoint"):
        trainer(tmp_path / "empty").resume()


def test_options_newer_than_a_checkpoint_have_their_defaults(tmp_path: Path) -> None:
    """Code that came after a checkpoint may know more options; the run goes on where these are as if they were not."""
    groups = {"generator": {"checkpoint": "mine", "layers": 0}, "reward": {"name": "clip"}}
    run = trainer(tmp_path, config=groups)
    state = run.state_dict()
    older = {**state, "options": {**state["options"], "algorithm": dict(state["options"]["algorithm"])}}
    del older["options"]["algorithm"]["entropy_reward_groups"]
    older["config"] = {"generator": {"checkpoint": "mine"}, "reward": {"name": "clip"}}
    check_same_run(older, state, 10)

    changed = {**state["options"]["algorithm"], "entropy_reward_groups": "informative"}
    with pytest.raises(ValueError, match="entropy_reward_groups: 'all' -> 'informative'"):
        check_same_run(older, {**state, "options": {**state["options"], "algorithm": changed}}, 10)
    with pytest.raises(ValueError, match="generator.checkpoint: 'yours' -> 'mine'"):
        check_same_run({**older, "config": {"generator": {"checkpoint": "yours"}}}, state, 10)
    given = {"reward": {"name": "clip", "scale": 2.0}}  # a scorer's option is no newer option of the run
    with pytest.raises(ValueError, match="reward.scale: None -> 2.0"):
        check_same_run(older, {**state, "config": given}, 10)


def test_a_run_killed_before_it_noted_its_best_score_notes_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validation(run: Trainer, record: StepRecord) -> None:
        record.metrics["validation/overall"] = [0.9, 0.1, 0.2][record.step - 1]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"steps": 3, "callbacks": [validation], "checkpoint": CheckpointPlan(every=1, keep=1)}
    first = trainer(tmp_path, **options)
    monkeypatch.setattr(checkpoint, "record_best", killed)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    monkeypatch.undo()
    rest = trainer(tmp_path, **options)
    assert rest.resume() == 1 and checkpoint.best(tmp_path) == (1, 0.9)
    rest.train()
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*")) == ["step_000001", "step_000003"]


# -- from the command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(model: Path) -> Path:
    (model.parent / "prompts.txt").write_text("a red circle\na blue square\na green star\na white circle\n")
    (model.parent / "reward.py").write_text(
        "import os, signal\ndef redness(images, prompts, metadata):\n    if os.environ.get('CTRL_C') == "
        "os.environ.setdefault('CALLS', '') + 'x':\n        signal.raise_signal(signal.SIGINT)\n    "
        "os.environ['CALLS'] += 'x'\n    return images[:, 0].float().mean(dim=(1, 2)) / 255\n"
    )
    return model.parent


def arguments(workplace: Path, out: Path, steps: int) -> list[str]:
    prompts = [f"--prompts.{name}={workplace / 'prompts.txt'}" for name in ("train", "validation", "test")]
    named = [f"--generator.checkpoint={workplace / 'model'}", f"--reward.name={workplace / 'reward.py'}:redness"]
    options = (
        "--prompts-per-step 2 --algorithm.group-size 4 --optim.lr 1e-2 --optim.warmup-steps 0 "
        "--pictures.every 0 --evaluate.every 0"
    )
    options += (
        " --evaluate.before False --evaluate.after False --checkpoint.every 1 --generator.compile off "
        "--generator.device cpu"
    )
    options += " --logging.tensorboard False --logging.progress False"
    return ["train", *named, *prompts, *options.split(), "--output-dir", str(out), "--steps", str(steps)]


def final(out: Path, steps: int) -> str:
    return sha256(out / "checkpoints" / f"step_{steps:06d}" / "model.safetensors")


def start(argv: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-m", "t2i_gcpo.cli", *argv],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for_a_new_row(process: subprocess.Popen[bytes], out: Path, rows: int, seconds: float = 240) -> bool:
    """Whether metrics.jsonl got longer than `rows` before the process ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if len(read_metrics(out)) > rows:
            return True
        time.sleep(0.005)
    return False


def kill_at_random_moments(workplace: Path, out: Path, steps: int, kills: int, moments: random.Random) -> None:
    """Start, kill -9 within half a second of a step of its own, resume, until it was killed `kills` times.

    Then let it end.
    """
    for number in range(kills):
        before = len(read_metrics(out))
        process = start(
            arguments(workplace, out, steps) if number == 0 else ["train", "--output-dir", str(out), "--resume"]
        )
        assert wait_for_a_new_row(process, out, before), (
            f"it ended before kill {number + 1}: {process.communicate()[1].decode()}"
        )
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it was done before kill {number + 1}: give it more steps"
        process.communicate()
    assert cli.main(["train", "--output-dir", str(out), "--resume"]) == 0


def test_killed_once(workplace: Path, tmp_path: Path) -> None:
    assert cli.main(arguments(workplace, tmp_path / "straight", 12)) == 0
    kill_at_random_moments(workplace, tmp_path / "killed", 12, 1, random.Random(1))
    assert final(tmp_path / "killed", 12) == final(tmp_path / "straight", 12)
    assert without_times(read_metrics(tmp_path / "killed")) == without_times(read_metrics(tmp_path / "straight"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_ten_times_at_random_moments(workplace: Path, tmp_path: Path) -> None:
    steps = 100
    assert cli.main(arguments(workplace, tmp_path / "straight", steps)) == 0
    kill_at_random_moments(workplace, tmp_path / "killed", steps, 10, random.Random(0))
    assert final(tmp_path / "killed", steps) == final(tmp_path / "straight", steps)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".tmp_*"))


def test_ctrl_c_from_the_command_line(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setenv("CALLS", "")
        monkeypatch.setenv("CTRL_C", "xx")
        assert cli.main(arguments(workplace, tmp_path / "run", 4)) == 130
    finally:
        signal.signal(signal.SIGINT, previous)
    shown = capsys.readouterr()
    command = f"t2i-gcpo train --output-dir {tmp_path / 'run'} --resume"
    assert command in shown.out and "Traceback" not in shown.err
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    monkeypatch.delenv("CTRL_C")
    assert cli.main(command.split()[1:]) == 0
    assert cli.main(arguments(workplace, tmp_path / "straight", 4)) == 0
    assert final(tmp_path / "run", 4) == final(tmp_path / "straight", 4)
