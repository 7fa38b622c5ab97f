"""A user's mistakes, from the command line.

One clear message, a status that says so, no traceback, and nothing lost.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers import tiny
from helpers.training import sha256
from t2i_gcpo import cli
from t2i_gcpo.training import checkpoint
from t2i_gcpo.training.tracker import read_metrics

REWARDS = """
import math

def redness(images, prompts, metadata):
    return images[:, 0].float().mean(dim=(1, 2)) / 255

def miscounts(images, prompts, metadata):
    return [0.5, 0.5]

def undefined(images, prompts, metadata):
    scores = redness(images, prompts, metadata)
    scores[3] = math.nan
    return scores

def words(images, prompts, metadata):
    return ["good"] * len(images)

calls = []

def later(images, prompts, metadata):
    calls.append(1)
    return undefined(images, prompts, metadata) if len(calls) == 3 else redness(images, prompts, metadata)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    tiny.checkpoint(folder / "model")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "prompts.txt").write_text("a red circle\na blue square\na green star\na white circle\n")
    return folder


def arguments(workplace: Path, out: Path, *more: str) -> list[str]:
    prompts = [f"--prompts.{name}={workplace / 'prompts.txt'}" for name in ("train", "validation", "test")]
    named = [f"--generator.checkpoint={workplace / 'model'}", f"--reward.name={workplace / 'rewards.py'}:redness"]
    options = (
        "--steps 4 --prompts-per-step 2 --algorithm.group-size 4 --optim.warmup-steps "
        "0 --pictures.every 0 --evaluate.every 0"
    )
    options += (
        " --evaluate.before False --evaluate.after False --checkpoint.every 2 --generator.compile off "
        "--generator.device cpu"
    )
    options += " --logging.tensorboard False --logging.progress False"
    return ["train", *named, *prompts, *options.split(), "--output-dir", str(out), *more]


Refused = Callable[..., str]


@pytest.fixture
def refused(workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a training with further arguments; returns its message, in one line and without the box around it."""

    def run(*more: str, status: int = 2, out: Path | None = None, writes: bool = False) -> str:
        capsys.readouterr()
        assert cli.main(arguments(workplace, out or tmp_path / "run", *more)) == status
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        assert writes or out or not (tmp_path / "run").exists(), "nothing is written for a wrong option"
        return " ".join((shown.err + shown.out).replace("│", " ").split())

    return run


# -- options -----------------------------------------------------------------------------------------------------------


def test_a_mistyped_option_gets_a_hint(refused: Refused, tmp_path: Path) -> None:
    assert "--algorithm.group-size" in refused("--algorithm.grup-size", "4")
    (tmp_path / "run.yaml").write_text("optim:\n  learning_rat: 1e-4\n")
    message = refused("--config", str(tmp_path / "run.yaml"))
    assert "learning" in message and "nrecognized" in message
    (tmp_path / "typo.yaml").write_text("prompts_per_stp: 4\n")
    assert "--prompts-per-step" in refused("--config", str(tmp_path / "typo.yaml"))


def test_values_that_are_not_allowed(refused: Refused) -> None:
    assert "algorithm.group_size is 1; it must be at least 2" in refused("--algorithm.group-size", "1")
    assert "unknown algorithm 'gcop'; allowed: grpo" in refused("--algorithm.name", "gcop")
    assert "--optim.lr" in refused("--optim.lr", "fast")


def test_a_missing_config(refused: Refused) -> None:
    assert "no such config file: nowhere.yaml" in refused("--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("file", "command"),
    [("text_arithmetic", "text train"), ("studies/tune", "study"), ("text_studies/arithmetic", "text study")],
)
def test_a_file_of_another_command_is_named_so(refused: Refused, file: str, command: str) -> None:
    assert f"it is a file for t2i-gcpo {command}, and" in refused(
        "--config", str(Path(__file__).parent.parent / "configs" / f"{file}.yaml")
    )


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_missing(refused: Refused, tmp_path: Path) -> None:
    assert "no checkpoint 'nowhere'" in refused("--generator.checkpoint", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint: expected a config.json" in refused("--generator.checkpoint", str(tmp_path / "empty"))


def test_a_kind_of_checkpoint_without_an_adapter(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    message = refused("--generator.checkpoint", str(tmp_path / "llama"))
    assert "model type 'llama'; there are adapters for" in message and "janus" in message


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.jsonl", None, "no prompt file"),
        ("empty.txt", "\n\n", "empty.txt holds no prompts"),
        ("bad.jsonl", '{"prompt": "a red circle"}\n{"prompt": \n', "bad.jsonl, line 2: not valid JSON"),
        (
            "keys.jsonl",
            '{"prompt": "a red circle"}\n\n{"text": "a red circle"}\n',
            'keys.jsonl, line 3: "prompt" is None',
        ),
        ("columns.csv", "text,tag\na red circle,x\n", 'columns.csv, line 1: no column "Prompts"'),
        ("split", "shapes:tset", "shapes:tset"),
    ],
)
def test_prompt_files(refused: Refused, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if name != "split" and text is not None:
        (tmp_path / name).write_text(text)
    source = text if name == "split" and text else str(tmp_path / name)
    for role in ("train", "test"):
        assert message in refused(f"--prompts.{role}", source)


def test_a_word_that_the_tokenizer_does_not_know(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\na purple zebra\n")
    for role in ("train", "validation", "test"):
        message = refused(f"--prompts.{role}", str(tmp_path / "prompts.txt"))
        assert "does not know 'purple', 'zebra' (prompt 'a purple zebra')" in message
        assert "t2i-gcpo prompts shapes:vocabulary" in message
    assert "'blurry'" in refused("--sampling.negative-prompt", "blurry")


# -- rewards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("miscounts", "shape (2,) for 8 images"),
        ("undefined", "gave 1 of 8 images a score that is not finite"),
        ("words", "no list of numbers"),
    ],
)
def test_a_reward_that_gives_no_scores(refused: Refused, workplace: Path, name: str, message: str) -> None:
    shown = refused("--reward.name", f"{workplace / 'rewards.py'}:{name}", writes=True)
    assert message in shown and f":{name}'" in shown
    assert name == "words" or "(prompts: 'a " in shown


def test_a_reward_that_fails_later_loses_nothing(
    refused: Refused, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step before it is saved, although no checkpoint was due.

    Repaired, the run goes on as if nothing had happened.
    """
    faulty = workplace / "faulty.py"
    faulty.write_text(REWARDS)
    more = ("--reward.name", f"{faulty}:later", "--checkpoint.every", "0")
    assert "not finite" in refused(*more, writes=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*")] == ["step_000002"]
    faulty.write_text(REWARDS.replace("len(calls) == 3", "False"))
    assert cli.main(["train", "--output-dir", str(tmp_path / "run"), "--resume"]) == 0
    assert cli.main(arguments(workplace, tmp_path / "whole", *more)) == 0
    assert model(tmp_path / "run") == model(tmp_path / "whole")


def model(run: Path, step: int = 4) -> str:
    return sha256(run / "checkpoints" / f"step_{step:06d}" / "model.safetensors")


def test_an_unknown_reward(refused: Refused, workplace: Path) -> None:
    assert (
        "unknown reward 'beauty'; available: aesthetic, clip, composite, geneval, git_vqa, grounding_dino, hps, "
        "image_reward, ocr," in refused("--reward.name", "beauty")
    )
    assert "has no callable 'nothing'" in refused("--reward.name", f"{workplace / 'rewards.py'}:nothing")


# -- run folders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(workplace: Path, tmp_path: Path) -> Path:
    assert cli.main(arguments(workplace, tmp_path / "done")) == 0
    return tmp_path / "done"


def contents(folder: Path) -> dict[str, str]:
    return {str(path): sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_another_run_is_left_as_it_is(refused: Refused, finished: Path) -> None:
    before = contents(finished)
    message = refused("--seed", "8", out=finished)
    assert "holds a run already" in message and "--resume" in message and contents(finished) == before


def test_what_a_resumed_run_cannot_change(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    assert (
        cli.main(
            [
                "train",
                "--output-dir",
                str(finished),
                "--resume",
                "--steps",
                "6",
                "--algorithm.name",
                "grpo",
                "--seed",
                "9",
            ]
        )
        == 2
    )
    shown = capsys.readouterr().err
    assert "algorithm.name: 'gcpo' -> 'grpo'" in shown and "seed: 0 -> 9" in shown and "Traceback" not in shown
    assert contents(finished) == before
    assert cli.main(["train", "--output-dir", str(tmp_path / "nowhere"), "--resume"]) == 2
    assert "no run to resume in" in capsys.readouterr().err


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, saves = torch.save, []

    def save(state: object, file: Path) -> None:
        saves.append(file)
        real(state, file)
        if len(saves) > 1:
            os.truncate(file, 100)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    run = tmp_path / "run"
    assert cli.main(arguments(workplace, run)) == 2
    shown = capsys.readouterr().err
    assert "the disk is full: the checkpoint of step 4 was not written" in shown and "Traceback" not in shown
    newest = checkpoint.newest(run)
    assert newest is not None and newest.name == "step_000002"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000002"]
    monkeypatch.undo()
    assert cli.main(["train", "--output-dir", str(run), "--resume"]) == 0
    monkeypatch.undo()
    assert cli.main(arguments(workplace, tmp_path / "whole")) == 0
    assert model(run) == model(tmp_path / "whole")


def test_a_training_that_diverges_stops_and_saves_no_such_weights(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert (
        cli.main(
            arguments(
                workplace, run, "--steps", "9", "--optim.lr", "1e25", "--max-nonfinite", "2", "--checkpoint.every", "0"
            )
        )
        == 1
    )
    shown = capsys.readouterr()
    assert (
        "not finite in 2 updates in a row" in shown.err and "--optim.lr" in shown.err and "Traceback" not in shown.err
    )
    last = read_metrics(run)[-1]
    assert last["updates/skipped"] == 1 and last["loss"] is None
    assert "Its weights were not saved (the log-probs of the updated weights are not finite)" in shown.out
    assert checkpoint.newest(run) is None


@pytest.mark.parametrize("part", ["", "checkpoints", "samples", "heatmaps", "watch", "tensorboard"])
def test_a_folder_that_cannot_be_written_shows_before_any_work(refused: Refused, tmp_path: Path, part: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / (part or "file")).write_text("")
    message = refused("--generator.checkpoint", "nowhere", out=tmp_path / "run" / ("" if part else "file/run"))
    if part == "checkpoints":
        assert "holds a run already (checkpoints)" in message
    else:
        assert "--output-dir: nothing can be written to the folder" in message
        assert "is a file, not a folder" in message


@pytest.mark.parametrize("name", ["report.html", "eval_after.json"])
def test_a_folder_in_the_place_of_a_result_shows_before_any_work(refused: Refused, tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    message = refused("--generator.checkpoint", "nowhere", out=tmp_path / "run")
    assert f"{name} is a folder, and a file of this name is to be written there" in message


def test_a_board_that_is_not_installed_shows_before_any_work(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not there
    message = refused("--logging.wandb", "True", "--evaluate.before", "True")
    assert "--logging.wandb needs the package wandb" in message
