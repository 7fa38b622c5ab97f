"""`t2i-gcpo score` reads every picture before it scores one, says what it left out, and saves before it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_gcpo import cli

REWARD = """
def brightness(images, prompts, metadata):
    (__import__("pathlib").Path(__file__).parent / "called").write_text("yes")
    return images.float().mean(dim=(1, 2, 3)) / 255
"""

Score = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures 0.png and 1.png of two prompts, and a scorer that leaves a mark."""
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "prompts.txt").write_text("a gradient\nnoise\n")
    images = tmp_path / "images"
    images.mkdir()
    grey = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(grey).save(images / "0.png")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images / "1.png")
    return tmp_path


@pytest.fixture
def score(folder: Path) -> Score:
    def run(*more: str) -> int:
        options = ["--reward", f"{folder / 'reward.py'}:brightness", "--images", str(folder / "images")]
        out = ["--out", str(folder / "scores.json")]
        return cli.main(["score", *options, "--prompts", str(folder / "prompts.txt"), *out, *more])

    return run


def test_what_was_left_out_of_the_pictures_is_said(
    score: Score, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("white", "black")]
    frames[0].save(folder / "images" / "1.png", save_all=True, append_images=frames[1:])
    assert score() == 0
    data = json.loads((folder / "scores.json").read_text())
    assert [round(row["score"], 2) for row in data["rows"]] == [0.5, 1.0]
    assert data["notes"] == {"several frames: the first one is read": ["1.png"]}
    assert "1 of 2 images have several frames: the first one is read (1.png)" in capsys.readouterr().out


def test_a_damaged_last_picture_shows_before_any_is_scored(
    score: Score, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = folder / "images" / "1.png"
    last.write_bytes(last.read_bytes()[:600])
    assert score() == 2
    assert "1.png cannot be read as a picture" in capsys.readouterr().err
    assert not (folder / "called").exists() and not (folder / "scores.json").exists()


def test_a_place_that_cannot_be_written_shows_first(
    score: Score, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("--out", str(folder / "prompts.txt" / "scores.json")) == 2
    assert "prompts.txt is a file, not a folder" in capsys.readouterr().err and not (folder / "called").exists()


def test_a_prompt_that_is_no_text_shows_first(score: Score, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"images": [{"file": "0.png", "prompt": "\ud83d"}]}
    (folder / "images" / "samples.json").write_text(json.dumps(rows))
    options = ["--reward", f"{folder / 'reward.py'}:brightness", "--images", str(folder / "images")]
    assert cli.main(["score", *options, "--out", str(folder / "scores.json")]) == 2
    assert "the prompt '\\ud83d', which is no text" in capsys.readouterr().err and not (folder / "called").exists()
