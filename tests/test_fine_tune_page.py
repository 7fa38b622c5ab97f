"""The pages on large models are followed: each of their commands runs, with models of cut size."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from helpers import pages, tiny
from helpers.pages import DOCS, ROOT
from t2i_gcpo import generators
from t2i_gcpo.cli import main
from t2i_gcpo.training import checkpoint

PAGE, MODELS = DOCS / "fine_tune_janus_pro.md", DOCS / "models.md"
#: What stands in for a name that is not on this machine.
CUT = {
    "deepseek-community/Janus-Pro-1B": "random:janus-pro-1b:layers=1,width=32",
    "models/Janus-1.3B": "original",
    "models/Janus-1.3B-transformers": "converted",
    "data/test.txt": "prompts.txt",
    "hps": "helpers.training:redness",
    "bfloat16": "float32",
}
SMALL = {
    "plan": ["--generator.layers=1", "--generator.width=32", "--card=H100"],
    "train": [
        "--generator.layers=1", "--generator.width=32", "--generator.device=cpu", "--generator.dtype=float32",
        "--generator.compile=off", "--reward.name=helpers.training:redness", "--prompts.balanced=false", "--steps=1",
        "--prompts-per-step=1", "--algorithm.group-size=2", "--micro-batch=2", "--sampling.unmasking.steps=2",
        "--evaluate.before=false", "--evaluate.after=false", "--evaluate.every=0", "--pictures.every=0",
        "--prompts.train=prompts.txt", "--prompts.validation=prompts.txt", "--prompts.test=prompts.txt",
        "--logging.progress=false", "--watch.rewards",
    ],
    "sample": ["--compile=off", "--device=cpu"],
    "eval": ["--compile=off", "--device=cpu", "--limit=1"],
}  # fmt: skip


def commands(page: Path) -> list[list[str]]:
    """Every command of a page, as words after `t2i-gcpo`."""
    lines = [line for block in pages.blocks(page, "bash") for line in block.splitlines() if line.strip()]
    words = [shlex.split(line) for line in lines]
    assert all(command[0] == "t2i-gcpo" for command in words)
    return [command[1:] for command in words]


def test_the_page_shows_the_whole_way() -> None:
    assert [command[0] for command in commands(PAGE)] == [
        "doctor", "plan", "train", "convert", "train", "train", "train", "sample", "eval", "export"
    ]  # fmt: skip
    assert [command[0] for command in commands(MODELS)] == ["train", "plan"]


def run(page: Path) -> None:
    """Run the commands of a page, one after the other."""
    for name, *options in commands(page):
        options = [CUT.get(word, word) for word in options]
        if "--resume" in options:
            options = [*options, "--steps=2"]  # the run before it had one
        elif name == "train" and "runs/dry" not in options:
            shape = "random:amused-256" if "amused" in options[1] else "random:janus-pro-1b"
            options = [*options, f"--generator.checkpoint={shape}", *SMALL["train"]]
        elif name == "plan":
            options = [*options, "--generator.checkpoint=random:janus-pro-1b", *SMALL["plan"]]
        elif name != "train":
            options = [*options, *SMALL.get(name, [])]
        assert main([name, *options]) == 0, (name, options)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    assert main(["convert", "--checkpoint", str(tiny.checkpoint(tmp_path / "tiny")), "--out", "original"]) == 0
    run(PAGE)
    assert generators.load("converted", compile=False).kind == "janus"
    assert checkpoint.newest("runs/dry") and checkpoint.newest("runs/amused_512_hps_gcpo")
    assert len(list(Path("out/samples").glob("*.png"))) >= 4 and Path("out/eval/eval.json").is_file()
    merged = generators.load("out/model", compile=False)
    assert not merged.has_lora and "gcpo" in Path("out/model/README.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_the_models_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is run as it stands there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run(MODELS)
    assert checkpoint.newest("runs/dry") and Path("runs/dry/report.html").is_file()
