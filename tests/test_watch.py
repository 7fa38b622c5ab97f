"""Watching for reward hacking: how varied images are, and the warnings."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import training
from rewards import RewardOutput
from t2i_gcpo.evaluation.image_diversity import color_entropy, near_duplicates
from t2i_gcpo.reports import curves
from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.reports import run_report as report
from t2i_gcpo.training.callbacks.reward_hacking import WARNINGS, Change, Watch, alarms, change, read_warnings
from t2i_gcpo.training.tracker import read_metrics
from t2i_gcpo.training.trainer import StepRecord, Trainer

RISING = [0.2 + 0.01 * (k % 3) for k in range(10)] + [0.8 + 0.01 * (k % 3) for k in range(10)]
FALLING = RISING[::-1]
FLAT = [0.5 + 0.01 * (k % 3) for k in range(20)]


def plain(*levels: tuple[int, int, int], size: int = 32) -> Tensor:
    """One image a colour."""
    return torch.stack([torch.tensor(level, dtype=torch.uint8).view(3, 1, 1).expand(3, size, size) for level in levels])


# -- variety ---------------------------------------------------------------------------------------------------------


def test_color_entropy_by_hand() -> None:
    one = plain((200, 10, 10))
    half = one.clone()
    half[..., :16] = 0  # half of the pixels in another cell: ln 2
    quarters = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for k, level in enumerate((0, 70, 140, 210)):
        quarters[:, 0, :, 8 * k : 8 * k + 8] = level
    found = color_entropy(torch.cat([one, half, quarters]))
    assert found.tolist() == pytest.approx([0.0, math.log(2), math.log(4)], abs=1e-6)
    assert float(color_entropy(plain((63, 0, 0)))) == 0.0
    mixed = plain((63, 0, 0))
    mixed[..., 0] = 64  # in all channels: the next bin of each
    assert float(color_entropy(mixed)) > 0


def test_color_entropy_is_that_of_a_slow_count() -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for image, found in zip(images, color_entropy(images), strict=True):
        counts: dict[tuple[int, ...], int] = {}
        for pixel in image.flatten(1).T.tolist():
            cell = tuple(level // 64 for level in pixel)
            counts[cell] = counts.get(cell, 0) + 1
        slow = -sum(n / 256 * math.log(n / 256) for n in counts.values())
        assert float(found) == pytest.approx(slow, abs=1e-5)


def test_near_duplicates_by_hand() -> None:
    """Grey levels 100, 102, 110 of one prompt: only the first two are nearer than 3.

    Those of the other prompt are all alike.
    """
    images = plain((100,) * 3, (102,) * 3, (110,) * 3, (9,) * 3, (9,) * 3, (9,) * 3)
    assert near_duplicates(images, 3) == pytest.approx((1 + 3) / 6)
    assert math.isnan(near_duplicates(images, 1))


def test_siblings_are_compared_with_siblings_only() -> None:
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images[4] = images[0]  # the same image for another prompt
    assert near_duplicates(images, 4) == 0.0
    images[1] = images[0]
    assert near_duplicates(images, 4) == pytest.approx(1 / 12)


def test_near_duplicates_is_that_of_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.randint(60, 190, (2, 1, 3, 32, 32), generator=generator)
    noise = torch.randint(-15, 16, (2, 5, 3, 32, 32), generator=generator) * torch.rand(
        2, 5, 1, 1, 1, generator=generator
    )
    images = (base + noise).to(torch.uint8)
    alike = []
    for group in images:
        small = [torch.nn.functional.avg_pool2d(image.float(), 2) for image in group]
        alike += [float((a - b).abs().mean()) < 3.0 for a, b in combinations(small, 2)]
    expected = sum(alike) / len(alike)
    assert 0 < expected < 1, "the test would show nothing"
    assert near_duplicates(images.flatten(0, 1), 5) == pytest.approx(expected)


# -- alarms ----------------------------------------------------------------------------------------------------------


def test_change_by_hand() -> None:
    # Means 1 and 3, variances 2 and 2 (ddof 1), two values each: standard error sqrt((2 + 2) / 2).
    assert change([0.0, 2.0, 2.0, 4.0], window=2) == Change(1.0, 3.0, 2 / math.sqrt(2))
    assert change([0.0, 2.0, 99.0, 2.0, 4.0], window=2) == Change(1.0, 3.0, 2 / math.sqrt(2)), "the middle counts"
    assert change([0.0, 2.0, 4.0], window=2) is None
    assert change([1.0, 1.0, 2.0, 2.0], window=2) == Change(1.0, 2.0, math.inf)
    assert change([1.0] * 4, window=2) == Change(1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("watched", "values", "warned"),
    [
        ("held_out/clip", FALLING, True),
        ("held_out/clip", RISING, False),
        ("held_out/clip", FLAT, False),
        ("diversity", FALLING, True),
        ("entropy", FALLING, True),
        ("variety/color_entropy", FALLING, True),
        ("variety/near_duplicates", RISING, True),
        ("variety/near_duplicates", FALLING, False),
        ("diversity", [value - 0.11 * (k > 9) for k, value in enumerate(FLAT)], True),  # by more than a fifth
        ("diversity", [value - 0.08 * (k > 9) for k, value in enumerate(FLAT)], False),  # significant, but small
        (
            "held_out/clip",
            [value - 0.08 * (k > 9) for k, value in enumerate(FLAT)],
            True,
        ),  # a scorer's fall is never small
        ("grad_norm", FALLING, False),
    ],
)
def test_what_gets_worse_while_the_reward_rises(watched: str, values: list[float], warned: bool) -> None:
    assert (watched in alarms({"reward/mean": RISING, watched: values})) == warned
    assert not alarms({"reward/mean": FLAT, watched: values}), "the reward does not rise"
    assert not alarms({"reward/mean": FALLING, watched: values})
    assert not alarms({watched: values})


def test_a_warning_says_what_moved() -> None:
    text = alarms({"reward/mean": RISING, "held_out/clip": FALLING})["held_out/clip"]
    assert text == "reward/mean rose from 0.209 to 0.809 while held_out/clip fell from 0.809 to 0.209"


# -- the callback ----------------------------------------------------------------------------------------------------


class Countdown:
    """A scorer that likes each batch less than the one before."""

    def __init__(self, start: int = 0) -> None:
        self.calls = start

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        self.calls += 1
        return RewardOutput(torch.full((len(images),), -float(self.calls)))


class Countup(Countdown):
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        output = super().__call__(images, prompts, metadata)
        return RewardOutput(-output.scores + torch.arange(len(images)) % 4)


def run(folder: Path, steps: int, *, until: int | None = None, resume: bool = False, every: int = 1) -> Trainer:
    start = until or 0 if resume else 0

    def halt(trainer: Trainer, record: StepRecord) -> None:
        if record.step == until and not resume:
            trainer.stop("for the test")

    watch = Watch({"down": Countdown(start)}, every=every)
    trainer = training.trainer(folder, reward=Countup(start), steps=steps, callbacks=[watch, halt])
    if resume:
        trainer.resume()
    trainer.train()
    return trainer


def test_a_run_logs_what_it_does_not_train_on_and_warns_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "a", 23)
    rows = read_metrics(tmp_path / "a")
    assert [row["held_out/down"] for row in rows] == [-float(k) for k in range(1, 24)]
    assert all(0 <= row["variety/color_entropy"] <= math.log(64) for row in rows)
    assert all(0 <= row["variety/near_duplicates"] <= 1 for row in rows)
    (warning,) = [row for row in read_warnings(tmp_path / "a") if row["metric"] == "held_out/down"]
    assert warning["step"] == 20, "as soon as there are two windows"
    assert (tmp_path / "a" / str(warning["picture"])).is_file()
    assert (tmp_path / "a/watch/step_000001_trained.png").is_file()
    assert "warning, step 20: reward/mean rose" in capsys.readouterr().out
    html = report.write(tmp_path / "a").read_text(encoding="utf-8")
    assert "Signs of reward hacking" in html and "held_out/down fell from" in html
    figure = curves.draw({"gcpo": [run_folder.read(tmp_path / "a")]})
    assert "not trained on: down" in [axes.get_title() for axes in figure.axes]


def test_a_resumed_run_warns_as_the_whole_one(tmp_path: Path) -> None:
    run(tmp_path / "whole", 23)
    run(tmp_path / "cut", 23, until=12)
    assert not (tmp_path / "cut" / WARNINGS).is_file()
    run(tmp_path / "cut", 23, until=12, resume=True)
    assert read_warnings(tmp_path / "cut") == read_warnings(tmp_path / "whole")


def test_a_warning_that_was_given_is_not_given_again_but_one_of_a_lost_step_is(tmp_path: Path) -> None:
    trainer = run(tmp_path, 23, until=21)
    assert [row["step"] for row in read_warnings(tmp_path)].count(20) >= 1
    before = read_warnings(tmp_path)
    (tmp_path / WARNINGS).write_text("".join(json.dumps(row) + "\n" for row in [*before, {**before[0], "step": 22}]))
    run(tmp_path, 23, until=21, resume=True)
    assert read_warnings(tmp_path)[: len(before)] == before
    assert [row["metric"] for row in read_warnings(tmp_path)].count("held_out/down") == 1
    assert trainer.step_number == 21


def test_held_out_scorers_may_score_less_often(tmp_path: Path) -> None:
    run(tmp_path, 7, every=3)
    assert [row["step"] for row in read_metrics(tmp_path) if "held_out/down" in row] == [1, 3, 6]
    with pytest.raises(ValueError, match="every is 0"):
        Watch(every=0)


def test_watching_changes_nothing(tmp_path: Path) -> None:
    with_watch = training.trainer(tmp_path / "a", steps=2, callbacks=[Watch({"down": Countdown()})])
    without = training.trainer(tmp_path / "b", steps=2)
    with_watch.train()
    without.train()
    assert training.same(
        training.weights(with_watch.generator),  # type: ignore[arg-type]
        training.weights(without.generator),  # type: ignore[arg-type]
    )
