"""`t2i-gcpo study`: the trials of a file, what it refuses, the processes, the pooled numbers.

And one study that trains.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import tiny
from t2i_gcpo import cli
from t2i_gcpo.commands.options.arguments import dump
from t2i_gcpo.evaluation.evaluate import EvalResult, ScoredImage
from t2i_gcpo.generators.amused.likelihoods import LIKELIHOODS
from t2i_gcpo.records import Sampling
from t2i_gcpo.reports.run import read as read_run
from t2i_gcpo.study import command as study
from t2i_gcpo.study.spec import Trial, read
from t2i_gcpo.training.tracker import Tracker, prepare_run
from t2i_gcpo.utils.lock import locked

TWO_ARMS = "seeds: [0, 1]\noptions: {steps: 4}\narms:\n  grpo: {algorithm.name: grpo}\n  gcpo: {algorithm.name: gcpo}\n"


def write(folder: Path, text: str = TWO_ARMS, name: str = "probe.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# -- the file ----------------------------------------------------------------------------------------------------------


def test_trials_are_arms_times_grid_for_each_seed(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("steps: 7\noutput_dir: elsewhere\nseed: 9\noptim: {warmup_steps: 3}\n")
    text = """
        config: base.yaml
        seeds: [3, 1]
        options: {optim: {betas: [0.5, 0.75]}, evaluate.test-limit: 12}
        arms:
          a: {algorithm.name: grpo}
          b: {algorithm.name: dapo, evaluate.test_limit: 24, optim: {betas: [0.25, 0.5]},
              reward: {detector: shapes, parts: {x: {w: 1e-1}}}}
        grid: {optim.lr: [1e-5, 2.0e-4], distribution: [guided]}
    """
    found = read(write(tmp_path, text), tmp_path / "out")
    assert [trial.name for trial in found.trials] == [
        f"{arm}-optim.lr={lr}-distribution=guided/seed_{seed}"
        for seed in (3, 1)
        for arm in "ab"
        for lr in ("1e-05", "0.0002")
    ]
    first, last = found.trials[0], found.trials[-1]
    assert (first.settings.algorithm.name, last.settings.algorithm.name) == ("grpo", "dapo")
    assert (first.settings.optim.lr, last.settings.optim.lr) == (1e-5, 2e-4)
    assert (first.settings.optim.betas, last.settings.optim.betas) == ((0.5, 0.75), (0.25, 0.5))
    assert (first.settings.evaluate.test_limit, last.settings.evaluate.test_limit) == (12, 24)
    assert (first.settings.steps, first.settings.optim.warmup_steps) == (7, 3)
    assert (first.settings.seed, first.settings.evaluate.seed, last.settings.seed, last.settings.evaluate.seed) == (
        3,
        3,
        1,
        1,
    )
    assert first.folder == tmp_path / "out/trials/a-optim.lr=1e-05-distribution=guided/seed_3"
    assert last.settings.reward.options == {"detector": "shapes", "parts": {"x": {"w": 0.1}}}
    assert not first.settings.logging.progress
    assert last.options["evaluate.test_limit"] == 24 and last.options["optim.lr"] == 2e-4
    assert {group: len(members) for group, members in found.groups.items()} == dict.fromkeys(
        (t.group for t in found.trials), 2
    )


def test_where_the_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path)
    assert read(file).out == Path("runs/studies/probe")
    assert read(write(tmp_path, "out: there\n" + TWO_ARMS)).out == Path("there")
    assert read(file, "here").out == Path("here")
    # The base config is sought from the working folder first.
    (tmp_path / "base.yaml").write_text("prompts_per_step: 2\n")
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "base.yaml").write_text("prompts_per_step: 3\n")
    file = write(tmp_path, TWO_ARMS + "  other: {config: ../base.yaml}\nconfig: base.yaml\n")
    monkeypatch.chdir(tmp_path / "cwd")
    assert [trial.settings.prompts_per_step for trial in read(file).trials] == [3, 3, 2, 3, 3, 2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [0, 1]", "", r"seeds is None; give a list"),
        ("[0, 1]", "[]", r"seeds is \[\]"),
        ("[0, 1]", "3", "seeds is 3"),
        ("[0, 1]", "[true]", "whole numbers"),
        ("[0, 1]", "[-1]", "whole numbers from 0"),
        ("[0, 1]", "[1, 0, 1]", "name each once"),
        ("seeds", "sedes", "unknown sedes; a study has out, config, seeds, options, arms, grid"),
        ("steps: 4", "setps: 4", r"probe.yaml: grpo: Unrecognized options: --setps=4"),
        ("steps: 4", "steps: four", "it is 'four'; it must be a whole number"),
        ("steps: 4", "steps: 0", "steps is 0; it must be at least 1"),
        ("name: grpo", "name: grop", r"probe.yaml: grpo: .*'grop'.*allowed: grpo"),
        ("{steps: 4}", "[4]", r"options is \[4\]; it must be a mapping"),
        ("{steps: 4}", "{seed: 4}", "seed is set by the study"),
        ("{steps: 4}", "{evaluate: {seed: 4}}", "evaluate.seed is set by the study"),
        ("{steps: 4}", "{output-dir: x}", "output_dir is set by the study"),
        ("{steps: 4}", "{optim: {lr: 1}, optim.lr: 2}", "optim.lr is there twice"),
        ("{steps: 4}", "{evaluate.before: false}", "evaluate.before is False"),
        ("{algorithm.name: gcpo}", "", "the arm gcpo is None; give it options"),
        ("{algorithm.name: gcpo}", "{}", r"the arm gcpo is \{\}"),
        ("{algorithm.name: gcpo}", "{config: 3}", "config is 3; it must be the path"),
        ("{algorithm.name: gcpo}", "{algorithm.name: grpo}", "grpo and gcpo are the same training"),
        ("  gcpo:", "  grpo:", "'grpo' is there twice"),
        ("  gcpo:", "  ../x:", "letters, digits"),
        ("arms:", "grid: {optim.lr: 3}\narms:", r"optim.lr is 3; give a list"),
        ("arms:", "grid: {optim.lr: []}\narms:", r"optim.lr is \[\]; give a list"),
        ("arms:", "grid: {optim.lr: [1e-4, 0.0001]}\narms:", "are the same training"),
        ("arms:", "grid: {algorithm.name: [dapo]}\narms:", "algorithm.name is in grid and in the arm grpo"),
        ("arms:", "grid: {steps: [5]}\narms:", "steps is in grid and in options"),
        ("seeds", "config: [x]\nseeds", "config is .*; it must be a path"),
        ("arms:", "arms: [", "is not a YAML file"),
        ("arms:", "against: dapo\narms:", "against is 'dapo'; give an arm, or a list of different ones, of grpo, gcpo"),
        ("arms:", "against: [grpo, grpo]\narms:", "a list of different ones"),
        ("arms:", "against: [[grpo]]\narms:", "give an arm"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TWO_ARMS
    with pytest.raises(ValueError, match=message):
        study.main([str(write(tmp_path, TWO_ARMS.replace(old, new, 1))), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there_and_a_wrong_number_of_jobs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such study file"):
        read(tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match=r"the arm grpo: no such config file: none.yaml nor .*none.yaml"):
        read(write(tmp_path, "config: none.yaml\n" + TWO_ARMS))
    with pytest.raises(ValueError, match="holds a list; it must be a mapping of out, config"):
        read(write(tmp_path, "[]"))
    with pytest.raises(ValueError, match="--jobs is 0"):
        study.main([str(write(tmp_path)), "--jobs", "0"])


def test_the_study_in_the_repository() -> None:
    root = Path(__file__).parent.parent
    found = read(root / "configs" / "studies" / "quickstart.yaml")
    assert [trial.name for trial in found.trials] == ["gcpo/seed_0", "gcpo/seed_1", "gcpo/seed_2"]
    assert all(t.settings.evaluate.test_limit == 600 and t.settings.steps == 60 for t in found.trials)


def test_the_masked_studies_have_an_arm_a_policy() -> None:
    folder = Path(__file__).parent.parent / "configs" / "studies"
    found = read(folder / "masked_policies.yaml")
    arms = {
        trial.arm: (trial.settings.generator.masked_policy, trial.settings.algorithm.name) for trial in found.trials
    }
    assert arms.pop("commit_step_grpo") == ("commit_step", "grpo"), "the baseline"
    assert arms == {name: (name, "gcpo") for name in LIKELIHOODS} and len(found.trials) == 18
    masked = read(folder / "masked.yaml")
    assert [trial.name for trial in masked.trials] == ["gcpo/seed_0", "gcpo/seed_1", "gcpo/seed_2"]
    assert all(trial.settings.algorithm.name == "gcpo" for trial in masked.trials)
    for trial in (*found.trials, *masked.trials):
        assert trial.settings.generator.checkpoint == "amused-mini"


def test_a_dry_run_shows_the_commands_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main([str(write(tmp_path)), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and not (tmp_path / "out").exists()
    assert lines[3].startswith("gcpo/seed_1 (new): ")
    assert lines[3].endswith(
        "-m t2i_gcpo.cli train --logging.progress=false --steps=4 --algorithm.name=gcpo --seed 1 --output-dir "
        f"{tmp_path}/out/trials/gcpo/seed_1 --evaluate.seed 1"
    )


# -- the processes, with a trainer that copies a folder ----------------------------------------------------------------

#: Six images of three prompts in two tasks.
PROMPTS = [("a", "x"), ("a", "x"), ("b", "x"), ("b", "x"), ("c", "y"), ("d", "y")]


def evaluation(scores: list[float], seed: int, checkpoint: str) -> EvalResult:
    rows = [ScoredImage(k, 0, text, task, s) for k, ((text, task), s) in enumerate(zip(PROMPTS, scores, strict=True))]
    return EvalResult(tuple(rows), seed, Sampling(guidance=2.0, seed=seed), checkpoint, "shapes:test", "geneval")


def run_folder(trial: Trial, path: Path, after: list[float], *, steps: int | None = None) -> Path:
    """What the training of `trial` leaves: scores of 0 before and `after` after."""
    steps = steps or trial.settings.steps
    prepare_run(path, dump(trial.settings))
    with Tracker(path, steps=steps) as tracker:
        for step in range(1, steps + 1):
            row = {
                "reward/mean": 0.1 * step,
                "kl": 0.01 * step,
                "entropy": 2.0,
                "time/step": 30.0,
                "images_sampled": 8.0 * step,
            }
            tracker.log(step, row)
    evaluation([0.0] * 6, trial.seed, "janus-mini").save(path / "eval_before.json")
    evaluation(after, trial.seed, f"runs/checkpoints/step_{steps:06d}").save(path / "eval_after.json")
    return path


#: template, folder, event file, name, behaviour.
TRAINER = """
import os, shutil, signal, sys, time
template, folder, events, name, behaviour = sys.argv[1:]
def event(text):
    with open(events, "a") as file:
        file.write(f"{name} {text} {os.environ['OMP_NUM_THREADS']}\\n")
event("starts")
assert os.getsid(0) == os.getpid(), "the terminal's Ctrl-C reaches it"
sys.stdout.write("hello\\n")
if behaviour == "fail":
    sys.stderr.write("bar 1\\rbar 2\\rerror: the disk is full\\n\\n")
    sys.exit(3)
if behaviour == "wait":
    told = []
    signal.signal(signal.SIGINT, lambda *_: (told.append(1), event("told")))
    event("waits")
    while not told:
        time.sleep(0.01)
    time.sleep(0.3)
    sys.exit(130)
shutil.copytree(template, folder, dirs_exist_ok=True)
event("ends")
"""


COMPARE = study._compare


class Trainer:
    """Stands in for `t2i-gcpo train`: what each trial does, and what it found."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.behaviour: dict[str, str] = {}
        self.after: dict[str, list[float]] = {}
        self.resumed: dict[str, bool] = {}

    def __call__(self, trial: Trial, *, resume: bool) -> list[str]:
        self.resumed[trial.name] = resume
        template = self.folder / "templates" / trial.name
        if not template.exists():
            run_folder(trial, template, self.after.get(trial.name, [1.0] * 6))
        script = [
            sys.executable,
            "-S",
            "-c",
            TRAINER,
            str(template),
            str(trial.folder),
            str(self.folder / "events"),
        ]
        return [*script, trial.name, self.behaviour.get(trial.name, "")]

    def events(self) -> list[list[str]]:
        """[name, what, threads] in the order they happened."""
        file = self.folder / "events"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    fake = Trainer(tmp_path)
    monkeypatch.setattr(study, "command", fake)
    monkeypatch.setattr(study, "POLL_SECONDS", 0.01)
    for name in ("OMP_NUM_THREADS", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(study, "_cores", lambda: 7)
    monkeypatch.setattr(study, "_compare", lambda results, out: out / "report.html")  # draws for seconds
    return fake


def start(tmp_path: Path, *more: str, text: str = TWO_ARMS) -> tuple[int, dict[str, Any]]:
    """Exit status and results.json."""
    status = study.main([str(write(tmp_path, text)), "--out", str(tmp_path / "out"), *more])
    return status, json.loads((tmp_path / "out" / "results.json").read_text())


def test_a_study_and_its_numbers(
    tmp_path: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "_compare", COMPARE)
    trainer.after = {
        "gcpo/seed_0": [1, 1, 1, 0, 1, 0],  # x 0.75, y 0.5: 0.625
        "gcpo/seed_1": [0.75, math.nan, 0, 0, 1, 1],  # x 0.25, y 1: 0.625; an image failed
    }
    status, data = start(tmp_path)
    assert status == 0 and [event[:2] for event in trainer.events()[:2]] == [
        ["grpo/seed_0", "starts"],
        ["grpo/seed_0", "ends"],
    ]
    assert {event[2] for event in trainer.events()} == {"7"}
    by_name = {row["name"]: row for row in data["trials"]}
    row = by_name["gcpo/seed_0"]
    assert (row["arm"], row["seed"], row["status"], row["exit_status"], row["steps"]) == ("gcpo", 0, "done", 0, 4)
    assert row["options"] == {"steps": 4, "algorithm.name": "gcpo"}
    assert (row["images_sampled"], row["seconds"]) == (32, 120)
    assert (row["before"]["overall"], row["after"]["overall"], row["difference"]["overall"]) == (0, 0.625, 0.625)
    assert row["difference"]["by_task"] == {"x": 0.75, "y": 0.5}
    assert row["kl"] == pytest.approx(0.025) and row["entropy"] == 2 and row["diversity"] is None
    assert (row["reward_first_tenth"], row["reward_last_tenth"]) == (pytest.approx(0.1), pytest.approx(0.4))
    assert row["difference"]["ci95"] == pytest.approx(list(read_run(row["folder"]).difference()[0].ci95))  # type: ignore[union-attr]
    grpo, gcpo = data["groups"]
    assert (gcpo["group"], gcpo["seeds"], gcpo["of"], gcpo["images"], gcpo["seconds"]) == ("gcpo", 2, 2, 11, 120)
    assert gcpo["difference"]["by_task"] == {"x": 0.5, "y": 0.75}
    assert gcpo["difference"]["overall"] == gcpo["after"]["overall"] == 0.625
    assert gcpo["difference"]["ci95"][0] < 0.625 < gcpo["difference"]["ci95"][1]
    assert grpo["difference"]["overall"] == 1 and grpo["lowest_seed"] == {"seed": 0, "difference": 1}
    assert data["study"]["content"]["seeds"] == [0, 1]
    assert data["machine"]["cores"] and data["versions"]["torch"] and data["threads_per_trial"] == "7"
    table = (tmp_path / "out" / "table.md").read_text()
    assert (
        "| grpo | 2 | 12 | 0.000 | 1.000 | +1.000 [+1.000, +1.000] | +1.000 | 0.0250 | 2.000 | – | 32 | 2.0 |" in table
    )
    assert "Difference by task" in table and "holds no variance between seeds" not in table and "failed" not in table
    assert (tmp_path / "out" / "compare" / "curves.png").is_file()
    printed = capsys.readouterr().out
    assert "lowest seed" in printed and "compare/report.html" in printed and "mean of gcpo" not in printed
    log = (tmp_path / "out/logs/gcpo/seed_1.log").read_text()
    assert log.startswith("$ ") and log.endswith("hello\n")


def test_the_lowest_seed_is_the_smallest_difference(tmp_path: Path, trainer: Trainer) -> None:
    trainer.after = {"gcpo/seed_0": [1.0] * 6, "gcpo/seed_1": [0.5] * 6}
    _, data = start(tmp_path)
    assert data["groups"][1]["lowest_seed"] == {"seed": 1, "difference": 0.5}
    assert data["groups"][1]["difference"]["ci95"] == [0.5, 1.0]  # one of two seeds is drawn


def test_groups_against_a_baseline(tmp_path: Path, trainer: Trainer) -> None:
    trainer.after = {
        "grpo/seed_0": [1, 1, 0, 0, 1, 0],  # x 0.5, y 0.5: 0.5
        "gcpo/seed_0": [1, 1, 1, 1, 1, 0],  # x 1, y 0.5: 0.75
        "grpo/seed_1": [0, 0, 0, 0, 1, 1],  # x 0, y 1: 0.5
        "gcpo/seed_1": [0, 0, 1, 0, 1, 1],  # x 0.25, y 1: 0.625
    }
    status, data = start(tmp_path, text=TWO_ARMS + "against: grpo\n")
    assert status == 0
    (row,) = data["against"]  # not of the baseline with itself
    assert (row["group"], row["against"], row["seeds"], row["of"], row["images"]) == ("gcpo", "grpo", 2, 2, 12)
    assert (row["theirs"]["overall"], row["own"]["overall"]) == (0.5, 0.6875)
    assert row["difference"]["overall"] == 0.1875 and row["difference"]["by_task"] == {"x": 0.375, "y": 0}
    assert row["lowest_seed"] == {"seed": 1, "difference": 0.125}
    # Paired: scores that differ from prompt to prompt in both groups alike do not widen it.
    assert 0 <= row["difference"]["ci95"][0] < 0.1875 < row["difference"]["ci95"][1] <= 0.5
    written = (tmp_path / "out" / "table.md").read_text()
    assert "| gcpo | grpo | 2 | 12 | 0.500 | 0.688 | +0.188 [" in written
    assert [(row["group"], row["against"]) for row in data["learning"]] == [("grpo", None), ("gcpo", "grpo")]
    assert data["learning"][1]["difference"] == {"mean": 0, "ci95": [0, 0], "by_seed": [0, 0]}
    assert "| gcpo | 2 |" in written and "images to its level" in written


def test_two_baselines_are_compared_once(tmp_path: Path, trainer: Trainer) -> None:
    text = TWO_ARMS + "  dapo: {algorithm.name: dapo}\nagainst: [dapo, grpo]\n"
    _, data = start(tmp_path, text=text)
    assert [(row["group"], row["against"]) for row in data["against"]] == [
        ("grpo", "dapo"),
        ("gcpo", "dapo"),
        ("gcpo", "grpo"),
    ]


def test_groups_are_compared_at_the_same_point_and_seed(tmp_path: Path, trainer: Trainer) -> None:
    trainer.behaviour = {"gcpo-optim.lr=0.001/seed_1": "fail"}
    trainer.after = {"grpo-optim.lr=0.001/seed_1": [0.0] * 6, "gcpo-optim.lr=0.002/seed_0": [0.5] * 6}
    text = TWO_ARMS + "grid: {optim.lr: [0.001, 0.002]}\nagainst: [grpo]\n"
    status, data = start(tmp_path, text=text)
    assert status == 1
    found = [(row["group"], row["against"], row["seeds"], row["difference"]["overall"]) for row in data["against"]]
    assert found == [
        ("gcpo-optim.lr=0.001", "grpo-optim.lr=0.001", 1, 0),
        ("gcpo-optim.lr=0.002", "grpo-optim.lr=0.002", 2, -0.25),
    ]
    assert "| 1 of 2 | 6 |" in (tmp_path / "out" / "table.md").read_text()


def test_of_one_seed_the_table_says_what_the_interval_lacks(tmp_path: Path, trainer: Trainer) -> None:
    _, data = start(tmp_path, text=TWO_ARMS.replace("[0, 1]", "[4]"))
    assert data["note"].endswith("it holds no variance between seeds")
    assert "holds no variance between seeds" in (tmp_path / "out" / "table.md").read_text()


def test_finished_trials_are_skipped_and_unfinished_ones_resumed(tmp_path: Path, trainer: Trainer) -> None:
    first, second = (t for t in read(write(tmp_path), tmp_path / "out").trials if t.arm == "grpo")
    run_folder(first, first.folder, [0.25] * 6)
    run_folder(second, second.folder, [0.25] * 6, steps=2)
    (second.folder / "eval_after.json").unlink()
    status, data = start(tmp_path)
    assert status == 0
    assert trainer.resumed == {"grpo/seed_1": True, "gcpo/seed_0": False, "gcpo/seed_1": False}
    assert [row["difference"]["overall"] for row in data["trials"]] == [0.25, 1, 1, 1]
    trainer.resumed.clear()
    assert start(tmp_path)[0] == 0 and not trainer.resumed


def test_what_a_folder_holds(tmp_path: Path) -> None:
    def trial(text: str = TWO_ARMS) -> Trial:
        return read(write(tmp_path, text), tmp_path / "out").trials[0]

    own = trial()
    assert study.state(own) == "new"
    run_folder(own, own.folder, [1.0] * 6)
    assert study.state(own) == "finished"
    assert study.state(trial(TWO_ARMS.replace("steps: 4", "steps: 4, checkpoint.every: 1"))) == "finished"
    # The evaluation of the run's former end does not finish the longer one, not even once that was begun.
    longer = trial(TWO_ARMS.replace("steps: 4", "steps: 6"))
    assert study.state(longer) == "unfinished"
    prepare_run(own.folder, dump(longer.settings), resume=True)
    assert study.state(longer) == "unfinished"
    prepare_run(own.folder, dump(own.settings), resume=True)
    # kl_stop may end a run before its last step.
    assert study.state(trial(TWO_ARMS.replace("steps: 4", "steps: 6, kl_stop: 1"))) == "finished"
    evaluation([1.0] * 6, 0, "runs/checkpoints/step_000003").save(own.folder / "eval_after.json")
    assert study.state(trial(TWO_ARMS.replace("steps: 4", "steps: 6, kl_stop: 1"))) == "unfinished"
    for change, message in (
        ("steps: 4, optim.lr: 1e-5", r"other options \(name another --out(.|\n)*optim.lr: 0.0001 -> 1e-05"),
        ("steps: 4, evaluate.test_limit: 6", "evaluate.test_limit: 0 -> 6"),
        ("steps: 3", "has 4 steps already and the study wants 3"),
    ):
        with pytest.raises(ValueError, match=message):
            study.state(trial(TWO_ARMS.replace("steps: 4", change)))
    (own.folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match="holds a run already"):
        study.state(own)


def test_a_failed_trial_does_not_stop_the_others(
    tmp_path: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.behaviour = {"grpo/seed_1": "fail"}
    status, data = start(tmp_path)
    assert status == 1
    assert [row["status"] for row in data["trials"]] == ["done", "done", "failed", "done"]
    failed = data["trials"][2]
    assert (failed["exit_status"], failed["last_line"]) == (3, "error: the disk is full")
    assert failed["after"] is None and (data["groups"][0]["seeds"], data["groups"][0]["of"]) == (1, 2)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| grpo/seed_1 | 3 | error: the disk is full |" in table and "| grpo | 1 of 2 |" in table
    assert "error: the disk is full" in capsys.readouterr().out
    trainer.behaviour = {}
    trainer.resumed.clear()
    assert start(tmp_path)[0] == 0 and list(trainer.resumed) == ["grpo/seed_1"]


def test_nothing_but_failures_is_a_table_too(
    tmp_path: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.behaviour = {name: "fail" for arm in ("grpo", "gcpo") for name in (f"{arm}/seed_0", f"{arm}/seed_1")}
    status, data = start(tmp_path)
    assert status == 1 and [row["no_difference"] for row in data["groups"]] == ["no seed is done"] * 2
    assert "report.html" not in capsys.readouterr().out


def test_jobs_run_at_once_and_share_the_cores(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[int] = [0]
    begin, end = study._start, study._outcome
    monkeypatch.setattr(study, "_start", lambda *a, **k: (running.append(running[-1] + 1), begin(*a, **k))[1])
    monkeypatch.setattr(study, "_outcome", lambda *a, **k: (running.append(running[-1] - 1), end(*a, **k))[1])
    assert start(tmp_path, "--jobs", "3")[0] == 0
    assert running[:4] == [0, 1, 2, 3] and max(running) == 3 and running[-1] == 0
    assert {threads for *_, threads in trainer.events()} == {"2"}  # 7 cores
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    (tmp_path / "events").unlink()
    assert study.main([str(write(tmp_path)), "--out", str(tmp_path / "again"), "--jobs", "4"]) == 0
    assert {threads for *_, threads in trainer.events()} == {"5"}


def when(ready: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Call `act` from another thread as soon as `ready()`."""

    def watch() -> None:
        pause = threading.Event()
        while not ready():
            pause.wait(0.02)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_the_trials_save_and_says_how_to_go_on(
    tmp_path: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    trainer.behaviour = {"grpo/seed_1": "wait", "gcpo/seed_0": "wait"}
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        when(lambda: [e[1] for e in trainer.events()].count("waits") == 2, lambda: os.kill(os.getpid(), number))
        status, data = start(tmp_path, "--jobs", "2")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)
    assert status == 130
    assert [row["status"] for row in data["trials"]] == ["done", "interrupted", "interrupted", "pending"]
    # Each was told once: a second signal would end a training before it has saved.
    assert sorted(e[0] for e in trainer.events() if e[1] == "told") == ["gcpo/seed_0", "grpo/seed_1"]
    shown = capsys.readouterr().out
    assert f"go on with: t2i-gcpo study {tmp_path}/probe.yaml --out {tmp_path}/out --jobs 2" in shown
    trainer.behaviour = {}
    assert start(tmp_path)[0] == 0


def test_no_trial_outlives_the_study(tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.behaviour = {"grpo/seed_0": "wait"}
    started: list[Any] = []
    begin = study._start

    def remembered(*args: Any, **options: Any) -> Any:
        started.append(begin(*args, **options))
        return started[-1]

    def defect(trial: Trial) -> str:
        raise RuntimeError("defect")

    monkeypatch.setattr(study, "_start", remembered)
    monkeypatch.setattr(study, "_progress", defect)
    with pytest.raises(RuntimeError, match="defect"):
        start(tmp_path)
    assert len(started) == 1 and started[0].process.poll() is not None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"images": null}'])
def test_a_damaged_evaluation_after_is_made_again(tmp_path: Path, trainer: Trainer, content: str) -> None:
    assert start(tmp_path)[0] == 0
    trainer.resumed.clear()
    (tmp_path / "out" / "trials" / "grpo" / "seed_1" / "eval_after.json").write_text(content)
    status, data = start(tmp_path)
    assert status == 0 and trainer.resumed == {"grpo/seed_1": True}
    assert [row["status"] for row in data["trials"]] == ["done"] * 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("eval_before.json", "{"),
        ("metrics.jsonl", "[]\n{}\n"),
        ("config.yaml", "steps: ["),
        ("config.yaml", "setps: 4"),
        ("config.yaml", None),
    ],
)
def test_a_damaged_trial_does_not_stop_the_others(
    tmp_path: Path, trainer: Trainer, name: str, content: str | None
) -> None:
    first = read(write(tmp_path), tmp_path / "out").trials[0]
    run_folder(first, first.folder, [0.25] * 6)
    damaged = first.folder / name
    if content is None:
        damaged.unlink()
    else:
        damaged.write_text(content)
    status, data = start(tmp_path)
    assert status == 1 and [row["status"] for row in data["trials"]] == ["failed", "done", "done", "done"]
    assert data["trials"][0]["last_line"].endswith(f"mend it, or remove {first.folder} to train it again")
    assert str(first.folder) in data["trials"][0]["last_line"] and "grpo/seed_0" not in trainer.resumed


@contextmanager
def held(folder: Path) -> Iterator[Callable[[], None]]:
    """Inside, another thread, which stands for another process, holds a folder's lock until the function is called."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(folder):
            taken.set()
            done.wait()

    folder.mkdir(parents=True, exist_ok=True)
    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield done.set
    finally:
        done.set()
        thread.join()


def test_one_study_at_a_time_writes_into_a_folder(tmp_path: Path, trainer: Trainer) -> None:
    with held(tmp_path / "out"):
        with pytest.raises(ValueError, match="is in use by process .*name another --out"):
            start(tmp_path)
        assert not trainer.events() and [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert start(tmp_path)[0] == 0


def test_a_trial_that_still_runs_is_waited_for_and_not_started_beside_itself(
    tmp_path: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    first = read(write(tmp_path), tmp_path / "out").trials[0]
    with held(first.folder) as end:
        when(lambda: [event[1] for event in trainer.events()].count("ends") == 3, end)
        assert start(tmp_path)[0] == 0
    assert [event[0] for event in trainer.events() if event[1] == "starts"][-1] == "grpo/seed_0"
    assert capsys.readouterr().out.count("grpo/seed_0 is being trained by process") == 1


#: The training of a trial, without a training: it says that it runs, and when it is told to stop.
TRIAL = """
import signal, sys, time
from t2i_gcpo import cli
from t2i_gcpo.study import trial

def train(argv):
    def told(*_):
        open(argv[1], "w").write("told")
        sys.exit(143)
    signal.signal(signal.SIGTERM, told)
    open(argv[0], "w").write("runs")
    time.sleep(600)

cli.main = train
sys.exit(trial.main(sys.argv[1:]))
"""
#: Starts a trial as a study does, says its process and waits to be killed.
STUDY = """
import subprocess, sys, time
line = [sys.executable, "-c", *sys.argv[1:]]
process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
print(process.pid, flush=True)
time.sleep(600)
"""


def test_kill_9_of_a_study_ends_its_trials_and_lets_them_save(tmp_path: Path) -> None:
    runs, told = tmp_path / "runs", tmp_path / "told"
    line = [sys.executable, "-c", STUDY, TRIAL, str(runs), str(told)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    trial = int(process.stdout.readline())
    _wait(runs.exists)
    process.kill()
    process.communicate()
    _wait(told.exists)
    _wait(lambda: not _is_alive(trial))


def _wait(ready: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and whose parent is gone may stay a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_trial_is_started_by_the_module_that_ends_with_the_study(tmp_path: Path) -> None:
    trial = read(write(tmp_path), tmp_path / "out").trials[0]
    line = study.command(trial, resume=True)
    assert line[:4] == [sys.executable, "-m", "t2i_gcpo.study.trial", "train"] and line[-1] == "--resume"


def test_secrets_are_in_no_shown_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study's logs are passed on; a trial needs the token none the less."""
    parts = "rewards: {a: {name: remote, url: 'http://a', token: s3cret}, b: {name: clip, api_key: s3cret}}"
    one, two = "{name: remote, url: 'http://a', token: s3cret}", f"{{name: composite, {parts}}}"
    arms = f"one: {{reward: {one}}}\n  two: {{reward: {two}}}"
    file = write(tmp_path, f"seeds: [0]\narms:\n  {arms}\n")
    trials = read(file, tmp_path / "out").trials
    monkeypatch.setattr(study.subprocess, "Popen", lambda *_, **__: None)
    for trial in trials:
        assert "s3cret" in " ".join(study.command(trial, resume=False)), "the trial is told"
        study._start(trial, 1, resume=False)
        shown = trial.log.read_text()
        assert "s3cret" not in shown and "(hidden)" in shown
        assert "http://a" in shown and trial.settings.output_dir in shown
    monkeypatch.undo()
    assert study.main([str(file), "--dry-run", "--out", str(tmp_path / "other")]) == 0
    assert "s3cret" not in capsys.readouterr().out


def test_sigusr1_lets_the_running_trials_save(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.behaviour = {"grpo/seed_0": "wait"}
    sent: list[int] = []
    begin = study._start

    def recorded(*args: Any, **options: Any) -> Any:
        job = begin(*args, **options)
        send = job.process.send_signal

        def record(number: int) -> None:
            sent.append(number)
            send(signal.SIGINT)  # what ends this trial

        monkeypatch.setattr(job.process, "send_signal", record)
        return job

    monkeypatch.setattr(study, "_start", recorded)
    when(lambda: any(e[1] == "waits" for e in trainer.events()), lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert start(tmp_path, text=TWO_ARMS.replace("[0, 1]", "[0]"))[0] == 1
    assert sent == [signal.SIGUSR1]


# -- a study that trains -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    tiny.checkpoint(folder / "model")
    (folder / "reward.py").write_text(
        "def redness(images, prompts, metadata):\n    return images[:, 0].float().mean(dim=(1, 2)) / 255\n"
    )
    rows = [
        {"prompt": f"a {color} {shape}", "tag": shape} for color in ("red", "green") for shape in ("circle", "star")
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = "\n".join(f"  {name}: {folder / 'prompts.jsonl'}" for name in ("train", "validation", "test"))
    (folder / "base.yaml").write_text(
        f"generator: {{checkpoint: {folder / 'model'}, compile: 'off', device: cpu}}\n"
        f"reward: {{name: '{folder / 'reward.py'}:redness'}}\nprompts:\n{prompts}\n"
        "steps: 2\nprompts_per_step: 2\nmicro_batch: 8\nalgorithm: {group_size: 4}\noptim: {lr: 1e-2, warmup_steps: "
        "0}\n"
        "pictures: {every: 0}\nlogging: {tensorboard: false}\n"
    )
    write(
        folder, "config: base.yaml\nseeds: [1, 2]\noptions: {evaluate.every: 0}\narms: {gcpo: {algorithm.name: gcpo}}\n"
    )
    return folder


def test_a_study_of_two_seeds_trains_and_is_not_trained_again(workplace: Path) -> None:
    out = workplace / "out"
    argv = ["study", str(workplace / "probe.yaml"), "--out", str(out), "--jobs", "2"]
    assert cli.main(argv) == 0, "\n".join(log.read_text() for log in (out / "logs").rglob("*.log"))
    data = json.loads((out / "results.json").read_text())
    (group,) = data["groups"]
    assert (group["seeds"], group["images"]) == (2, 8)
    one, two = (read_run(row["folder"]) for row in data["trials"])
    assert one.before is not None and two.before is not None and (one.before.seed, two.before.seed) == (1, 2)
    # Another seed is another noise of the evaluation, of the same prompts.
    assert [row.text for row in one.before.rows] == [row.text for row in two.before.rows]
    assert [row.score for row in one.before.rows] != [row.score for row in two.before.rows]
    differences = [row["difference"]["overall"] for row in data["trials"]]
    assert (
        group["difference"]["overall"] == pytest.approx(np.mean(differences), abs=1e-12)
        and differences[0] != differences[1]
    )
    stamps = {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*") if path.is_file()}
    assert cli.main(argv) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*") if path.is_file()}
    assert json.loads((out / "results.json").read_text())["groups"] == data["groups"]


def test_a_run_resumed_with_other_noise_of_its_evaluation_is_not_paired(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "train",
        "--config",
        str(workplace / "base.yaml"),
        "--logging.progress",
        "False",
        "--evaluate.every",
        "0",
    ]
    assert cli.main([*options, "--output-dir", str(tmp_path / "run"), "--steps", "1"]) == 0
    assert read_run(tmp_path / "run").difference()[0] is not None
    assert "difference" in capsys.readouterr().out
    assert cli.main(["train", "--output-dir", str(tmp_path / "run"), "--resume", "--evaluate.seed", "5"]) == 0
    after = read_run(tmp_path / "run").after
    assert after is not None and after.seed == 5
    assert "difference" not in capsys.readouterr().out
