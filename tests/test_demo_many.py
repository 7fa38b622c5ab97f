"""What the demo says of several checkpoints: what they are, paired counts over many prompts, reasons, the queue."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch

import rewards
from helpers import run_folders, tiny
from rewards.geneval.rules import Verdict
from t2i_gcpo import generators
from t2i_gcpo.data.shapes.grammar import understand
from t2i_gcpo.data.shapes.scene import Scene, SceneObject
from t2i_gcpo.demo import differences, html_parts, models, origins
from t2i_gcpo.demo.context import DemoContext
from t2i_gcpo.demo.errors import with_user_errors
from t2i_gcpo.demo.jobs import Jobs
from t2i_gcpo.demo.models import Models
from t2i_gcpo.demo.scoring import Judged, Scorer
from t2i_gcpo.demo.sessions import paired_run
from t2i_gcpo.demo.sessions.paired_run import PairedRun, Side
from t2i_gcpo.demo.tabs import compare
from t2i_gcpo.evaluation.separation import joint, overlapping
from t2i_gcpo.generators.checkpoints import Checkpoint, locate
from t2i_gcpo.generators.vocabulary import UnknownWordsError
from t2i_gcpo.records import Prompt, Sampling

TEXTS = ("a red circle", "a blue star", "a red circle and a blue star", "a star above a circle", "a white square")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> DemoContext:
    """Two checkpoints of different weights, scored by how red an image is."""
    folder = tmp_path_factory.mktemp("demo")
    paths = {name: str(tiny.checkpoint(folder / name, seed=seed)) for name, seed in (("base", 0), ("tuned", 1))}
    scorer = Scorer(rewards.load("helpers.training:redness"), "helpers.training:redness")
    return DemoContext(Models(paths, device=torch.device("cpu")), scorer, folder / "runs", random.Random(0))


def prompts() -> list[Prompt]:
    found = [understand(text) for text in TEXTS]
    return [prompt for prompt in found if prompt is not None]


# -- over many prompts -------------------------------------------------------------------------------------------------


def runs(context: DemoContext, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[PairedRun]:
    monkeypatch.setattr(paired_run, "BATCH", 2)
    options = {"prompts": prompts(), "seed": 3, "guidance": 2.0, "stopped": lambda: False, **changes}
    return list(paired_run.run(context.models, context.scorer, "base", "tuned", **options))


def test_counts_grow_and_each_prompt_has_the_noise_of_an_evaluation(
    context: DemoContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = runs(context, monkeypatch)
    assert [found.done for found in seen] == [0, 2, 4, 5] and seen[0].same_noise
    last = seen[-1]
    for side in (last.left, last.right):
        generator = context.models.get(side.name)
        rollout = generator.sample(prompts(), Sampling(group_size=1, guidance=2.0, seed=3))
        assert side.maps is not None
        np.testing.assert_array_equal(side.maps.images, generator.decode(rollout.tokens).numpy())
        redness = side.maps.images[:, 0].reshape(5, -1).mean(axis=1) / 255
        np.testing.assert_allclose([one.score for one in side.judged], redness, rtol=1e-5)
    higher = [one.score > other.score for one, other in zip(last.left.judged, last.right.judged, strict=True)]
    assert last.counts() == {"left": sum(higher), "right": 5 - sum(higher), "equal": 0, "failed": 0}
    assert last.differing(-1) == [k for k, better in enumerate(higher) if better]
    gained = [b.score - a.score for a, b in zip(last.left.judged, last.right.judged, strict=True)]
    by_task: dict[str, list[float]] = {}
    for prompt, gain in zip(prompts(), gained, strict=True):
        by_task.setdefault(prompt.task, []).append(gain)
    expected = np.mean([np.mean(values) for values in by_task.values()])
    assert last.difference().overall == pytest.approx(float(expected))
    assert "5 of 5" in differences.counts(last) and "base scores higher" in differences.counts(last)


def test_a_run_over_prompts_is_stopped_between_batches(context: DemoContext, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    seen = runs(context, monkeypatch, stopped=lambda: len(asked) > 1 or asked.append(0) or False)
    assert [found.done for found in seen] == [0, 2, 4, 4] and [found.stopped for found in seen] == [False] * 3 + [True]
    with pytest.raises(ValueError, match="Both sides are base"):
        next(paired_run.run(context.models, context.scorer, "base", "base", prompts=prompts(), seed=0, guidance=2.0,
                            stopped=lambda: False))  # fmt: skip


def judged(*right: bool) -> tuple[Judged, ...]:
    return tuple(Judged(float(one), Verdict(one, [one], "" if one else "no")) for one in right)


def test_verdicts_are_counted_in_pairs() -> None:
    left, right = judged(True, True, False, False, True), judged(True, False, True, False, False)
    found = PairedRun(tuple(prompts()), Sampling(), Side("GRPO", left), Side("<b>", right), same_noise=False)
    assert found.counts() == {"both": 1, "left": 2, "right": 1, "neither": 1}
    assert (found.differing(-1), found.differing(1), found.differing()) == ([1, 4], [2], [1, 2, 4])
    page = differences.counts(found)
    assert "only GRPO right" in page and "<b>" not in page and "not the same noise" in page
    failed = replace(found, left=Side("GRPO", (Judged(math.nan), *judged(True, True, True, True))))
    assert failed.counts()["failed"] == 1 and 0 not in failed.differing()


def test_held_out_prompts_come_evenly_by_task() -> None:
    tasks = [prompt.task for prompt in paired_run.held_out(12)]
    assert len(set(tasks)) == 6 and all(tasks.count(task) == 2 for task in tasks)


def test_prompts_that_differ_are_shown_with_maps_and_reasons(
    context: DemoContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = runs(context, monkeypatch)[-1]
    verdicts = [Judged(0.0, Verdict(False, [False], "no"), ("red <circle>: there are 0",)), *judged(True, True, True)]
    found = replace(last, left=replace(last.left, judged=(*verdicts, *judged(False))),
                    right=replace(last.right, judged=judged(True, True, True, True, False)))  # fmt: skip
    page = differences.pairs(found, None)
    assert page.count("<section") == 1 and TEXTS[0] in page and TEXTS[1] not in page
    assert page.count("<img") == 4 and "<li>red &lt;circle&gt;: there are 0</li>" in page
    assert page.count("token weights, ") == 2 and "one scale for all" in page
    assert "no such prompt" in differences.pairs(found, -1)


# -- reasons -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "objects", "reasons"),
    [
        ("a red circle and a blue star", [("circle", "red", 8, 8, 30)],
         ("blue star: there are 0", "in the image: 1 red circle")),
        ("a red circle", [("circle", "green", 8, 8, 30)], ("red circle: it is green", "in the image: 1 green circle")),
        ("a star above a circle", [("circle", "red", 8, 8, 30), ("star", "blue", 8, 56, 34)],
         ("star above circle: it is below", "in the image: 1 red circle, 1 blue star")),
        ("two stars", [("star", "blue", 8, 56, 34), ("star", "red", 54, 56, 34), ("star", "blue", 8, 8, 34)],
         ("at most 2 × star: there are 3", "in the image: 2 blue star, 1 red star")),
        ("a star above a circle", [("star", "blue", 8, 56, 34)],
         ("circle: there are 0", "star above circle: no target for star to be above", "in the image: 1 blue star")),
    ],
)  # fmt: skip
def test_a_wrong_image_says_why(text: str, objects: list[Any], reasons: tuple[str, ...]) -> None:
    scorer = Scorer(rewards.load("geneval"), "geneval")
    image = Scene(tuple(SceneObject(*one) for one in objects)).render()
    images = torch.from_numpy(np.stack([image])).permute(0, 3, 1, 2)
    scores = scorer(images, scorer.prompt(text))
    assert scores.caption(0).startswith("✗")
    assert sorted(scores.reasons[0][-1].removeprefix("in the image: ").split(", ")) == sorted(
        reasons[-1].removeprefix("in the image: ").split(", ")
    )
    assert scores.reasons[0][:-1] == reasons[:-1]
    assert f"Image 1: {reasons[0]}" in html_parts.verdict_table(scores)


# -- what the checkpoints are ------------------------------------------------------------------------------------------


def test_joint_intervals_are_wider_and_decide() -> None:
    assert joint(0.5, (0.4, 0.7), 1) == pytest.approx((0.4, 0.7))
    low, high = joint(0.5, (0.4, 0.7), 4)  # quantiles of the normal distribution at 0.99375 and 0.975
    assert (0.5 - low, high - 0.5) == pytest.approx((0.1 * 2.497705 / 1.959964, 0.2 * 2.497705 / 1.959964), rel=1e-5)
    scores = {"a": (0.5, (0.45, 0.55)), "b": (0.61, (0.56, 0.66)), "c": (0.9, (0.85, 0.95))}
    assert overlapping(scores) == [("a", "b")]  # apart alone, not together
    with pytest.raises(ValueError, match="at least one"):
        joint(0.5, (0.4, 0.6), 0)


def test_the_embedded_checkpoints_say_what_they_are() -> None:
    found = origins.origins({name: locate(path) for name, path in models.named([]).items()})
    gcpo = found["GCPO"]
    assert (gcpo.algorithm, gcpo.steps, gcpo.seed) == ("gcpo", 40, 0)
    about = json.loads((Path(generators.__file__).parents[1] / "assets/tuned/gcpo/delta.json").read_text())
    assert gcpo.score is not None and gcpo.score.mean == about["scores"]["test_after"]["overall"]
    assert found["base"].score is not None and found["base"].score.mean == about["scores"]["test_before"]["overall"]
    assert found["masked"] == origins.Origin()
    table = compare.origin_table(found)
    assert "No two of GRPO, DAPO and GCPO are told apart. base is told apart from each of them." in table
    assert "Bonferroni, 4 scores on shapes:val, 384 images" in table and "3,840" in table


def test_a_run_s_checkpoint_says_what_its_run_folder_says(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", steps=4)
    folder = run / "checkpoints" / "step_000004"
    folder.mkdir(parents=True)
    other = tmp_path / "other"
    other.mkdir()
    found = origins.origins({"mine": Checkpoint("mine", folder, "janus"), "other": Checkpoint("x", other, "janus")})
    assert (found["mine"].algorithm, found["mine"].steps) == ("gcpo", 4)
    assert found["mine"].score is not None and found["mine"].images is not None
    assert found["other"] == origins.Origin() and origins.verdict(found) == ""


# -- unknown words, the queue ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["janus-mini", "amused-mini"])
def test_an_unknown_word_is_answered_with_the_nearest_known_ones(name: str) -> None:
    generator = generators.load(name)

    @with_user_errors
    def ask(text: str) -> None:
        generator.check_prompts([text])

    with pytest.raises(gr.Error, match=r"\"The generator does not know 'cirle' \(nearest: circle, circles\)\.\"$"):
        ask("a photo of a cirle")
    with pytest.raises(gr.Error, match=r"'dog' \(no known word is like it\)\. It knows: a, above, .*, yellow\."):
        ask("a photo of a dog")
    with pytest.raises(UnknownWordsError, match="does not know 'Star'") as caught:
        generator.check_prompts(["a photo of a Star"])
    assert "nearest: star" in caught.value.suggestion() and "t2i-gcpo" not in caught.value.suggestion()


def test_a_click_that_waits_is_told_behind_what() -> None:
    jobs = Jobs()
    assert jobs.answer() is None
    with jobs.doing("a live training") as job:
        job.at("step 3 of 6: GCPO")
        answer = jobs.answer()
        assert answer is not None and answer.startswith("Queued behind a live training, step 3 of 6: GCPO. ")
    with pytest.raises(KeyError), jobs.doing("a job that fails"):
        raise KeyError
    assert jobs.running() is None
