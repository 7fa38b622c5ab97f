"""The fixed pictures of a run show prompts that the model sometimes fails, the same ones for every algorithm."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import run_folders, training
from t2i_gcpo import heatmap
from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.reports import run_report
from t2i_gcpo.training.callbacks import hard_prompts
from t2i_gcpo.training.callbacks.pictures import Pictures

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "count", "chosen"),
    [
        ([1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 0], 1, [1]),  # always right, half right, mostly wrong
        ([1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 0], 1, [2]),  # of equal spread the one that fails more often
        ([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1], 1, [1]),  # without any spread the one that fails
        ([NAN, NAN, NAN, 1, 1, 1, 1, 1, 1, 0, NAN, NAN], 2, [1, 2]),  # what has no scores comes last
        ([0, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0], 2, [0, 2]),  # in their order
    ],
)
def test_prompts_with_spread_come_first(scores: list[float], count: int, chosen: list[int]) -> None:
    assert hard_prompts.hardest(torch.tensor(scores), 4, count) == chosen


def test_the_example_holds() -> None:
    found = doctest.DocTestFinder().find(hard_prompts.hardest, globs={**vars(hard_prompts)})
    assert [doctest.DocTestRunner().run(one).failed for one in found if one.examples] == [0]


def picky(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    """Only two prompts are sometimes failed."""
    light = images.float().mean(dim=(1, 2, 3)).tolist()
    hard = ("a green circle", "a white square")
    return torch.tensor([x if text in hard else 1.0 for x, text in zip(light, prompts, strict=True)])


def drawn(folder: Path, algorithm: str, steps: tuple[int, ...] = (0,)) -> Pictures:
    subject = training.trainer(folder, reward=picky, name=algorithm)
    pictures = Pictures(training.PROMPTS, subject.reward, sampling=subject.sampling, every=1, group=4, seed=7, shown=2)
    for step in steps:
        pictures.draw(subject, step)
    return pictures


def test_the_pictures_are_of_hard_prompts_and_a_resumed_run_keeps_them(tmp_path: Path) -> None:
    first, other = drawn(tmp_path / "gcpo", "gcpo"), drawn(tmp_path / "grpo", "grpo")
    assert first.chosen == other.chosen == [1, 7]
    one, two = (heatmap.load(tmp_path / name / "heatmaps" / "step_000000.npz") for name in ("gcpo", "grpo"))
    assert list(dict.fromkeys(one.prompts.tolist())) == ["a green circle", "a white square"]
    np.testing.assert_array_equal(one.images, two.images)
    assert len(set(one.scores.tolist())) > 2, "the very noise of the choice: the scores differ"
    told = json.loads((tmp_path / "gcpo" / hard_prompts.FILE).read_text())
    assert told["chosen"] == [1, 7] and len(told["candidates"]) == 8
    assert told["rule"].startswith("Of 8 candidates the 2 whose 4 images differ most")
    (tmp_path / "gcpo" / hard_prompts.FILE).write_text(json.dumps({**told, "chosen": [0, 3]}))
    assert drawn(tmp_path / "gcpo", "gcpo", steps=(2,)).chosen == [0, 3], "a run that goes on draws what it drew"
    (tmp_path / "gcpo" / hard_prompts.FILE).write_text("{")
    assert drawn(tmp_path / "gcpo", "gcpo", steps=(2,)).chosen == [1, 7]


def test_the_report_says_how_they_were_chosen(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", steps=1)
    hard_prompts.save(run, training.PROMPTS[:2], torch.tensor([1.0, 0.0, 1.0, 1.0]), [0], seed=3)
    shown = run_report._rule(run_folder.read(run))
    assert shown.startswith("Of 2 candidates the 1 whose 2 images differ most") and shown.endswith("noise of seed 3.")
    (run / hard_prompts.FILE).write_text("[]")
    assert run_report._rule(run_folder.read(run)) == ""
