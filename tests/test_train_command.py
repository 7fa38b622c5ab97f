"""`t2i-gcpo train` and `sample` from the command line, on a tiny random checkpoint.

What a run writes, and that it can be resumed.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from helpers import tiny
from t2i_gcpo import cli
from t2i_gcpo.commands.options.arguments import load
from t2i_gcpo.evaluation.evaluate import EvalResult
from t2i_gcpo.generators import load as load_generator
from t2i_gcpo.training.tracker import read_metrics

REWARD = "def redness(images, prompts, metadata):\n    return images[:, 0].float().mean(dim=(1, 2)) / 255\n"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    tiny.checkpoint(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    rows = [
        {"prompt": f"a {c} {s}", "tag": s}
        for c in ("red", "green", "blue", "white")
        for s in ("circle", "square", "star")
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def arguments(workplace: Path, out: Path, *more: str) -> list[str]:
    prompts = [f"--prompts.{name}={workplace / 'prompts.jsonl'}" for name in ("train", "validation", "test")]
    options = "--prompts-per-step 3 --algorithm.group-size 4 --micro-batch 8 --optim.lr 1e-2 --optim.warmup-steps 2"
    options += " --checkpoint.every 2 --checkpoint.keep 0 --evaluate.every 2 --evaluate.limit 6 --pictures.every 2"
    options += (
        " --logging.tensorboard False --logging.progress False --generator.compile off --generator.device cpu --seed 3"
    )
    reward = f"--reward.name={workplace / 'reward.py'}:redness"
    return [
        "train",
        f"--generator.checkpoint={workplace / 'model'}",
        reward,
        *prompts,
        *options.split(),
        "--output-dir",
        str(out),
        *more,
    ]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_s"))} for row in rows]


@pytest.fixture(scope="module")
def whole(workplace: Path) -> Path:
    assert cli.main(arguments(workplace, workplace / "whole", "--steps", "4")) == 0
    return workplace / "whole"


def test_a_run_writes_its_folder(whole: Path, workplace: Path) -> None:
    config = load(whole / "config.yaml")
    assert (config.steps, config.seed, config.algorithm.group_size, config.optim.lr) == (4, 3, 4, 1e-2)
    rows = read_metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["images_sampled"] for row in rows] == [12, 24, 36, 48]
    assert ["validation/overall" in row for row in rows] == [False, True, False, True]
    assert all(row["grad_norm"] > 0 and row["entropy"] > 0 for row in rows)
    assert [path.name for path in sorted((whole / "checkpoints").glob("step_*"))] == ["step_000002", "step_000004"]
    before, after = (EvalResult.load(whole / f"eval_{name}.json") for name in ("before", "after"))
    assert before.n == after.n == 12 and before.overall != after.overall
    for step in (0, 2, 4):
        assert Image.open(whole / "samples" / f"step_{step:06d}_samples.png").size[0] > 8
    assert (whole / "samples" / "before_after.png").is_file()
    for when in ("before", "after"):
        assert [path.name for path in sorted((whole / "test_images" / when).iterdir())] == [
            f"{k:04d}_0.png" for k in range(12)
        ]
    heatmaps = {
        f"{name}{ending}" for name in ("step_000004", "step_000004_trained") for ending in (".png", ".npz", ".html")
    }
    assert heatmaps <= {path.name for path in (whole / "heatmaps").iterdir()}


def test_the_weights_moved_and_the_checkpoint_is_what_was_evaluated(whole: Path, workplace: Path) -> None:
    first, last = load_generator(str(workplace / "model")), load_generator(str(whole / "checkpoints" / "step_000004"))
    moved = [
        not torch.equal(a, b) for a, b in zip(first.trainable_parameters(), last.trainable_parameters(), strict=True)
    ]
    assert all(moved)
    out = workplace / "eval"
    reward = f"{workplace / 'reward.py'}:redness"
    argv = [
        "eval",
        "--checkpoint",
        str(whole / "checkpoints" / "step_000004"),
        "--prompts",
        str(workplace / "prompts.jsonl"),
    ]
    assert cli.main([*argv, "--reward", reward, "--out", str(out), "--device", "cpu"]) == 0
    # Same noise, prompts and guidance: the command repeats the run's own evaluation.
    assert (
        json.loads((out / "eval.json").read_text())["images"]
        == json.loads((whole / "eval_after.json").read_text())["images"]
    )


def test_a_resumed_run_is_the_run_uninterrupted(
    whole: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = workplace / "part"
    assert cli.main(arguments(workplace, part, "--steps", "2")) == 0
    assert cli.main(arguments(workplace, part, "--steps", "4")) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert cli.main(["train", "--output-dir", str(part), "--resume", "--steps", "4"]) == 0
    assert "at step 2" in capsys.readouterr().out
    assert without_times(read_metrics(part)) == without_times(read_metrics(whole))
    for name in ("model.safetensors", "config.json"):
        assert (part / "checkpoints/step_000004" / name).read_bytes() == (
            whole / "checkpoints/step_000004" / name
        ).read_bytes()
    assert cli.main(["train", "--output-dir", str(part), "--resume", "--optim.lr", "1"]) == 2
    assert "optim.lr: 0.01 -> 1.0" in capsys.readouterr().err
    assert load(part / "config.yaml").optim.lr == 1e-2


def test_a_wrong_option_leaves_no_run_behind(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = workplace / "never"
    for more, message in (
        (["--generator.checkpoint", "nothing"], "no checkpoint 'nothing'"),
        (["--reward.name", "beauty"], "unknown reward 'beauty'"),
        (["--reward.name", "geneval", "--reward.strictness", "3"], "has no option strictness"),
        (["--prompts.test", "missing.txt"], "missing.txt"),
        (["--generator.device", "cuda:99"], "device is 'cuda:99'"),
    ):
        assert cli.main(arguments(workplace, out, *more)) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_print_config(workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments(workplace, tmp_path / "run", "--print-config", "--algorithm.name", "grpo")) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = load(tmp_path / "printed.yaml")
    assert config.algorithm.name == "grpo" and config.algorithm.credit == "uniform"
    assert not (tmp_path / "run").exists()


def test_sample_writes_images_that_depend_on_their_seed_only(workplace: Path, tmp_path: Path) -> None:
    base = ["sample", "--checkpoint", str(workplace / "model"), "--prompt", "a red circle", "--device", "cpu"]
    for name, more in (("a", []), ("b", ["--batch", "1"]), ("c", ["--seed", "1"])):
        assert cli.main([*base, "--num", "3", "--out", str(tmp_path / name), *more]) == 0
    records = {name: json.loads((tmp_path / name / "samples.json").read_text()) for name in "abc"}
    tokens = {name: [row["tokens"] for row in record["images"]] for name, record in records.items()}
    assert tokens["a"] == tokens["b"] != tokens["c"]
    assert len({tuple(row) for row in tokens["a"]}) == 3
    assert records["a"]["sampling"]["guidance"] == 2.0 and records["a"]["images"][2]["file"] == "000_02.png"
    assert Image.open(tmp_path / "a" / "000_00.png").size == (8, 8) and (tmp_path / "a" / "grid.png").is_file()
    assert cli.main(["sample", "--checkpoint", "x", "--out", str(tmp_path)]) == 2


SIGNALS = """
import os, signal

def redness(images, prompts, metadata):
    if len(set(prompts)) == 12:  # an evaluation of the test prompts
        os.environ["EVALUATIONS"] = str(int(os.environ["EVALUATIONS"]) + 1)
        if os.environ["EVALUATIONS"] == os.environ["SIGTERM_AT"]:
            signal.raise_signal(signal.SIGTERM)
    return images[:, 0].float().mean(dim=(1, 2)) / 255
"""


@pytest.mark.parametrize(
    ("at", "where"), [("1", "before the first step"), ("2", "after step 2 of 2, whose checkpoint is saved")]
)
def test_a_sigterm_during_an_evaluation_says_how_to_go_on(
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: str,
    where: str,
) -> None:
    """Schedulers send it at any time; outside of a step there is nothing to save first."""
    previous = signal.getsignal(signal.SIGTERM)
    (tmp_path / "signals.py").write_text(SIGNALS)
    monkeypatch.setenv("EVALUATIONS", "0")
    monkeypatch.setenv("SIGTERM_AT", at)
    folder = tmp_path / "a run"
    more = (
        "--steps",
        "2",
        "--pictures.every",
        "0",
        "--evaluate.every",
        "0",
        f"--reward.name={tmp_path}/signals.py:redness",
    )
    assert cli.main(arguments(workplace, folder, *more)) == 143
    assert signal.getsignal(signal.SIGTERM) == previous
    shown = capsys.readouterr()
    assert f"SIGTERM: ended {where}; go on with: t2i-gcpo train --output-dir '{folder}' --resume" in shown.out
    assert "Traceback" not in shown.err and not (folder / "eval_after.json").exists()
    assert cli.main(["train", "--output-dir", str(folder), "--resume"]) == 0
    assert [row["step"] for row in read_metrics(folder)] == [1, 2]
    assert EvalResult.load(folder / "eval_after.json").n == EvalResult.load(folder / "eval_before.json").n == 12
