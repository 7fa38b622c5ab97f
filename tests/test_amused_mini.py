"""The embedded masked generator: its files, its log-probs, and the commands with nothing but its name changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rewards
from t2i_gcpo import cli, generators, heatmap
from t2i_gcpo.data.shapes.prompts import TASKS
from t2i_gcpo.demo.scoring import Scorer
from t2i_gcpo.demo.sessions import inspection
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.checkpoints import ASSETS
from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.training.tracker import read_metrics

FOLDER = ASSETS / "amused-mini"
PROMPT = "a photo of a red circle"


@pytest.fixture(scope="module")
def generator() -> Amused:
    found = generators.load("amused-mini", compile=False, decode_dtype="float32")
    assert isinstance(found, Amused)
    return found


def test_it_is_small_and_its_card_is_that_of_its_files() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 30e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    scores = json.loads((FOLDER / "training" / "eval.json").read_text(encoding="utf-8"))
    settings = json.loads((FOLDER / "training" / "settings.json").read_text(encoding="utf-8"))
    assert scores["n"] == 600 and set(scores["by_task"]) == set(TASKS)
    for name, score in {**scores["by_task"], "overall": scores["overall"]}.items():
        assert f"| {name} | {score:.3f} | " in card
    last = json.loads((FOLDER / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["step"] == settings["steps"] and f"--steps {settings['steps']} --batch {settings['batch']}" in card


def test_scoring_again_gives_what_sampling_recorded(generator: Amused) -> None:
    rollout = generator.sample([PROMPT, "a photo of two stars"], Sampling(group_size=4, guidance=2.0, seed=3))
    with torch.no_grad():
        found = generator.token_logprobs(rollout)
    torch.testing.assert_close(found, rollout.logprob_positive, atol=1e-5, rtol=0)
    assert rollout.logprob_negative is not None
    contrast = (rollout.logprob_positive - rollout.logprob_negative).abs()
    assert float(contrast.max()) > 1, "the prompt does nothing"


def test_single_objects_are_mostly_right(generator: Amused) -> None:
    """Far above chance: one of 64 pairs of colour and class is right."""
    scorer = Scorer(rewards.load("geneval"), "geneval")
    found = inspection.sample(generator, "masked", scorer, scorer.prompt(PROMPT), seed=1, num=16, guidance=2.0)
    assert float(found.image_scores.scores.mean()) > 0.2
    assert "order" in found.kinds and found.first_kind in ("advantage", "weight")
    _, flat = inspection.pictures(found, "order")
    assert flat is None, "no rule decides the order"


def test_the_quickstart_trains_it_and_draws_the_order(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = (
        "--steps 1 --prompts-per-step 2 --algorithm.group-size 4 --evaluate.every 0 "
        "--evaluate.test-limit 6 --pictures.every 1"
    )
    more = ["--generator.compile", "off", "--logging.progress", "False", "--output-dir", str(run)]
    assert cli.main(["train", "--config", "configs/quickstart_masked.yaml", *options.split(), *more]) == 0
    (row,) = read_metrics(run)
    assert row["images_sampled"] == 8 and np.isfinite(row["grad_norm"])
    drawn = heatmap.load(run / "heatmaps" / "step_000001.npz")
    assert isinstance(drawn, Heatmap) and int(drawn.maps()["order"].max()) == 11, "12 sampling steps"
    page = (run / "heatmaps" / "step_000001.html").read_text(encoding="utf-8")
    assert "order" in page


@pytest.mark.parametrize(
    ("command", "written"),
    [
        (["sample", "--prompt", PROMPT, "--num", "2"], "grid.png"),
        (["eval", "--prompts", "shapes:val", "--limit", "6"], "eval.json"),
        (["heatmap", "--prompt", PROMPT, "--num", "2", "--map", "order", "weight", "--gif"], "heatmap.gif"),
    ],
)
def test_the_commands_take_its_name(command: list[str], written: str, tmp_path: Path) -> None:
    assert cli.main([*command, "--checkpoint", "amused-mini", "--compile", "off", "--out", str(tmp_path)]) == 0
    assert (tmp_path / written).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 145}, "145 sampling steps for 144 tokens"),
        ({"prompt": "a photo of a red elephant"}, "elephant"),
        ({"prompt": " ".join(["red"] * 20)}, "would be cut off"),
    ],
)
def test_mistakes_are_named(
    options: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, prompt = options.get("steps", 12), options.get("prompt", PROMPT)
    command = [
        "sample",
        "--checkpoint",
        "amused-mini",
        "--prompt",
        prompt,
        "--steps",
        str(steps),
        "--out",
        str(tmp_path),
    ]
    assert cli.main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # loading shows its progress before
    assert message in error and error.startswith("error: ")


def test_prompts_are_those_of_the_vocabulary(generator: Amused) -> None:
    generator.check_prompts([Prompt("a photo of two blue stars")])
    with pytest.raises(ValueError, match="does not know 'elephant'"):
        generator.check_prompts([Prompt("an elephant")])
