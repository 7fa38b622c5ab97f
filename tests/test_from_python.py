"""What a person calls in Python: pictures of a prompt, rewards with weights, mistakes that end before any sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rewards
from helpers.fake_generator import FakeGenerator
from t2i_gcpo import Prompt, Sampling, Trainer, generators, prompts
from t2i_gcpo.evaluation.evaluate import evaluate
from t2i_gcpo.reports import run as run_reader
from t2i_gcpo.training.options import PicturesConfig

RING = {"tag": "single_object", "include": [{"class": "ring", "count": 1}]}


def redness(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
    return images[:, 0].float().mean(dim=(1, 2)) / 255


def two_columns(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
    return torch.zeros(len(images), 2)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_are_those_of_the_rollout() -> None:
    generator = generators.load("janus-mini", compile=False)
    pictures = generator.images("a photo of a red circle", n=2, seed=3, sampling=Sampling(guidance=3.0))
    rollout = generator.sample(["a photo of a red circle"], Sampling(group_size=2, seed=3, guidance=3.0))
    expected = generator.decode(rollout.tokens)
    for picture, image in zip(pictures, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())
    several = generator.images([prompts.row("a red circle"), "a photo of a star"], n=1, seed=3)
    assert len(several) == 2 and several[0].size == (96, 96)
    for call, message in (
        (lambda: generator.images("a photo of a zebra"), "zebra"),
        (lambda: generator.images("a photo of a star", n=0), "group_size is 0"),
        (lambda: generator.images([]), "non-empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# -- rewards with weights ----------------------------------------------------------------------------------------------


def test_a_composite_of_a_name_a_reward_and_a_function() -> None:
    images = torch.zeros(2, 3, 96, 96, dtype=torch.uint8)
    images[0, 0] = 255
    geneval = rewards.load("geneval", score="clauses")
    mixture = rewards.composite({"geneval": 1.0, geneval: 2.0, redness: 0.25})
    output = mixture(images, ["a photo of a ring"] * 2, [RING] * 2)
    assert output.scores.tolist() == [0.25, 0.0]
    assert {"geneval", "geneval_2", "redness"} <= set(output.parts)
    assert mixture.weights == {"geneval": 1.0, "geneval_2": 2.0, "redness": 0.25}
    with pytest.raises(ValueError, match="no metadata for the prompt 'a cat'"):
        mixture.check_prompts(["a cat"], [{}])


@pytest.mark.parametrize(
    ("weighted", "message"),
    [
        ({"clipp": 1.0}, "unknown reward 'clipp'; available: aesthetic"),
        ({redness: "much"}, "the weight of 'redness' is 'much'; it must be a number"),
        ({redness: float("nan")}, "the weight of reward 'redness' is nan"),
        ({3: 1.0}, r"3 is int, which cannot score; give a name \(aesthetic"),
        ({}, "at least one reward"),
        (["clip", redness], "it was given list"),
    ],
)
def test_what_cannot_be_mixed_is_said_in_a_sentence(weighted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.composite(weighted)


def test_scores_of_a_wrong_shape_are_said_in_a_sentence() -> None:
    mixture = rewards.composite({two_columns: 1.0})
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"'two_columns' returned scores of shape \(3, 2\) for 3 images .* one number"):
        mixture(images, ["a"] * 3, [{}] * 3)


# -- before the first rollout ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True])
def test_a_prompt_that_geneval_cannot_read_ends_before_the_first_rollout(tmp_path: Path, mixed: bool) -> None:
    generator: Any = FakeGenerator()
    reward: Any = rewards.composite({"geneval": 0.5, redness: 0.5}) if mixed else rewards.load("geneval")
    unread = ["a photo of a cat", Prompt("a ring", {"tag": "x", "include": [{"class": "unicorn", "count": 1}]})]
    for prompt in unread:
        given = [prompts.row("a ring"), prompt]
        with pytest.raises(ValueError, match="geneval reward|the class 'unicorn'"):
            Trainer(generator, reward, given, tmp_path / "run", steps=1)
        with pytest.raises(ValueError, match="geneval reward|the class 'unicorn'"):
            evaluate(
                generator,
                [p if isinstance(p, Prompt) else Prompt(p) for p in given],
                reward,
                sampling=Sampling(),
                seed=0,
            )
    assert generator.batches == [], "nothing was sampled"
    with pytest.raises(ValueError, match=r"t2i_gcpo.prompts.row\(text\)"):
        Trainer(generator, reward, ["a ring"], tmp_path / "run")


# -- the run folder ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("gcpo", "grpo"):
        generator = generators.load("janus-mini", compile=False)
        given = [prompts.row("a red ring"), prompts.row("a star")]
        trainer = Trainer(generator, redness, given, folder / name, algorithm=name, steps=2, prompts_per_step=1,
                          group_size=2, pictures=PicturesConfig(every=2, prompts=1, group=2))  # fmt: skip
        trainer.train()
    return folder


@pytest.mark.slow
def test_a_run_from_python_is_a_run_folder(runs: Path) -> None:
    found = run_reader.read(runs / "gcpo")
    assert found.algorithm == "gcpo" and found.step == 2 and found.config["steps"] == 2
    assert found.config["reward.name"] == "redness" and found.config["generator.checkpoint"] == "janus-mini"
    assert found.config["algorithm.group_size"] == 2 and found.config["prompts.train"] == "2 prompts given in Python"
    assert [path.name for path in found.pictures("samples")] == [f"step_00000{k}_samples.png" for k in (0, 2)]
    names = ["step_000000", "step_000002", "step_000002_trained"]
    assert [path.stem for path in found.pictures("heatmaps")] == names
    text = (runs / "gcpo" / "report.html").read_text()
    assert "gcpo: gcpo" in text and "Token" in text.title() and "2 of 2 steps" in text
    groups = run_reader.groups([run_reader.read(runs / name) for name in ("gcpo", "grpo")])
    assert [label.split(",")[0] for label in groups] == ["gcpo", "grpo"], "compare knows the algorithms"


@pytest.mark.slow
def test_the_run_folder_can_be_left_out(tmp_path: Path) -> None:
    generator = generators.load("janus-mini", compile=False)
    options: dict[str, Any] = {"steps": 1, "prompts_per_step": 1, "group_size": 2}
    trainer = Trainer(generator, redness, ["a photo of a star"], tmp_path, run_folder=False, **options)
    trainer.train()
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {"metrics.jsonl", "checkpoints"}
    with pytest.raises(ValueError, match="holds a run already"):
        Trainer(generator, redness, ["a photo of a star"], tmp_path, **options).train()


@pytest.mark.slow
def test_pictures_change_nothing_of_the_training(runs: Path, tmp_path: Path) -> None:
    generator = generators.load("janus-mini", compile=False)
    given = [prompts.row("a red ring"), prompts.row("a star")]
    Trainer(generator, redness, given, tmp_path / "x", algorithm="gcpo", steps=2, prompts_per_step=1, group_size=2,
            run_folder=False).train()  # fmt: skip
    own, other = (run_reader.read(path) for path in (tmp_path / "x", runs / "gcpo"))
    for name in ("reward/mean", "kl", "entropy"):
        assert own.series(name) == other.series(name)
