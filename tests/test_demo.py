"""What is behind the tabs of the demo, without a page.

Bounds, checkpoints, comparisons, inspections, live training, run folders.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

import rewards
from helpers import run_folders, tiny
from rewards.geneval.words import clause_words
from t2i_gcpo import credit, demo, heatmap
from t2i_gcpo.cli import main
from t2i_gcpo.commands.options.arguments import load
from t2i_gcpo.data.shapes.grammar import understand
from t2i_gcpo.data.shapes.scene import Scene, SceneObject
from t2i_gcpo.demo import html_parts, models, plots, run_browser, validate
from t2i_gcpo.demo.context import DemoContext
from t2i_gcpo.demo.errors import with_user_errors
from t2i_gcpo.demo.models import Models
from t2i_gcpo.demo.scoring import Scorer
from t2i_gcpo.demo.server import PASSWORD_VARIABLE, read_password
from t2i_gcpo.demo.sessions import blind_vote as comparison
from t2i_gcpo.demo.sessions import inspection
from t2i_gcpo.demo.sessions import live_training as training
from t2i_gcpo.demo.sessions.blind_vote import Comparison, Tally
from t2i_gcpo.demo.tabs import compare
from t2i_gcpo.demo.tabs import runs as runs_tab
from t2i_gcpo.demo.tabs import train as train_tab
from t2i_gcpo.demo.tabs.inspect import draw, without
from t2i_gcpo.records import Sampling
from t2i_gcpo.reports import side_by_side
from t2i_gcpo.training import checkpoint as checkpoints

TEXT = "a photo of a red circle and a blue star"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> DemoContext:
    """Two checkpoints of different weights, scored by how red an image is."""
    folder = tmp_path_factory.mktemp("demo")
    paths = {name: str(tiny.checkpoint(folder / name, seed=seed)) for name, seed in (("base", 0), ("tuned", 1))}
    scorer = Scorer(rewards.load("helpers.training:redness"), "helpers.training:redness")
    return DemoContext(Models(paths, device=torch.device("cpu")), scorer, folder / "runs", random.Random(0))


# -- bounds and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "  \n "])
def test_an_empty_prompt_is_refused(text: str | None) -> None:
    with pytest.raises(ValueError, match="is empty"):
        validate.prompt_text(text)


def test_texts_and_numbers_have_bounds() -> None:
    assert validate.prompt_text(" a  red\ncircle ") == "a red circle"
    assert len(validate.prompt_text("x" * validate.PROMPT_LENGTH)) == validate.PROMPT_LENGTH
    with pytest.raises(ValueError, match="201 characters; at most 200"):
        validate.prompt_text("x" * 201)
    assert validate.prompt_lines("a circle\n\n a star") == ["a circle", "a star"]
    with pytest.raises(ValueError, match="51 prompts; at most 50"):
        validate.prompt_lines("a\n" * 51)
    with pytest.raises(ValueError, match="no prompts"):
        validate.prompt_lines("\n")
    assert validate.whole(8.0, "n", 1, 8) == 8
    for wrong in (0, 9, 2.5, math.nan, None, "3", True):
        with pytest.raises(ValueError, match=r"^n is"):
            validate.whole(wrong, "n", 1, 8)
    with pytest.raises(ValueError, match="x is 'c'; allowed: a, b"):
        validate.one_of("c", "x", ["a", "b"])


def test_mistakes_become_sentences_and_defects_do_not() -> None:
    @with_user_errors
    def fails(error: Exception) -> None:
        raise error

    @with_user_errors
    def fails_later(error: Exception) -> Any:
        yield 1
        raise error

    with pytest.raises(gr.Error, match="The sentence") as caught:
        fails(ValueError("the sentence"))
    assert caught.value.print_exception is False
    rounds = fails_later(OSError("the disk"))
    assert next(rounds) == 1
    with pytest.raises(gr.Error, match="The disk"):
        next(rounds)
    with pytest.raises(KeyError):
        fails(KeyError("a defect"))


def test_the_next_free_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < demo.free_port("127.0.0.1", port) <= port + demo.TRIES
    assert demo.free_port("127.0.0.1", port) == port
    with pytest.raises(ValueError, match="1 to 65535"):
        demo.free_port("127.0.0.1", 70000)
    with pytest.raises(ValueError, match="does not know"):
        demo.free_port("no.such.host.invalid", port)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "x=/no/such/folder"], "the checkpoint x:"),
        (["--checkpoint", "x=janus-mini", "--checkpoint", "x=janus-mini"], "two checkpoints are called 'x'"),
        (["--checkpoint", "=janus-mini"], "write NAME=PATH"),
        (["--reward", "nothing"], "unknown reward 'nothing'"),
        (["--threads", "0"], "--threads is 0"),
        (["--port", "0"], "--port is 0"),
        (["--port", "70000"], "--port is 70000"),
        (["--port", "-1"], "--port is -1"),
        (["--host", "0.0.0.0"], "give it a password in the environment variable T2I_GCPO_DEMO_PASSWORD"),
        (["--host", "::"], "can be reached from other machines"),
        (["--password-file", "/dev/null"], "--password-file /dev/null is empty"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


# -- checkpoints and scores --------------------------------------------------------------------------------------------


def test_checkpoints_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.named(["a=x/y", "runs/b/", "janus-mini"]) == {"a": "x/y", "b": "runs/b/", "janus-mini": "janus-mini"}
    monkeypatch.setattr(models, "tuned", lambda: {"janus-mini-gcpo": Path("x")})
    assert models.named([]) == {"base": "janus-mini", "GCPO": "janus-mini-gcpo", "masked": "amused-mini"}


def test_a_checkpoint_is_loaded_once_and_the_oldest_leaves(context: DemoContext) -> None:
    few = Models(context.models.checkpoints, device=torch.device("cpu"), keep=1)
    first = few.get("base")
    assert few.get("base") is first and few.fresh("base") is not first
    few.get("tuned")
    assert few.get("base") is not first
    with pytest.raises(ValueError, match="no checkpoint 'other' here; there are base, tuned"):
        few.get("other")


def test_verdicts_clause_by_clause() -> None:
    scorer = Scorer(rewards.load("geneval"), "geneval")
    right = Scene((SceneObject("circle", "red", 8, 8, 30), SceneObject("star", "blue", 52, 50, 36))).render()
    half = Scene((SceneObject("circle", "red", 8, 8, 30),)).render()
    images = torch.from_numpy(np.stack([right, half])).permute(0, 3, 1, 2)
    image_scores = scorer(images, scorer.prompt("a red circle and a blue star"))
    assert image_scores.scores.tolist() == [1.0, 0.0] and image_scores.clauses == ("red circle", "blue star")
    assert (image_scores.caption(0), image_scores.caption(1)) == (
        "✓ 2/2",
        "✗ 1/2",
    ) and image_scores.summary() == "1 of 2 correct"
    table = html_parts.verdict_table(image_scores)
    assert table.count("✓") == 3 and table.count("✗") == 1
    unknown = scorer(images, scorer.prompt("a dog"))
    assert (
        not unknown.scored
        and bool(unknown.scores.isnan().all())
        and "do not cover" in html_parts.verdict_table(unknown)
    )


def test_clauses_in_words() -> None:
    def words(text: str) -> list[str]:
        prompt = understand(text)
        assert prompt is not None
        return clause_words(prompt.metadata)

    assert words("two stars") == ["2 × star", "at most 2 × star"]
    assert words("a red ring above a heart") == ["heart", "red ring above heart"]


def test_texts_of_people_are_escaped() -> None:
    assert "<b>" not in html_parts.table(["<b>"], [["<b>"]]) + html_parts.faint("<b>")


# -- compare -----------------------------------------------------------------------------------------------------------


def compared(context: DemoContext, *, blind: bool = False, **changes: Any) -> list[Comparison]:
    options = {"seed": 3, "num": 2, "guidance": 2.0, "blind": blind, "shuffle": random.Random(1), **changes}
    return list(comparison.generate(context.models, context.scorer, context.scorer.prompt(TEXT), **options))


def test_a_comparison_grows_and_shares_its_noise(context: DemoContext) -> None:
    rounds = compared(context)
    assert [list(found.images) for found in rounds] == [[], ["base"], ["base", "tuned"]]
    assert not torch.equal(rounds[-1].images["base"], rounds[-1].images["tuned"])
    twins = Models(
        {"a": context.models.checkpoints["base"], "b": context.models.checkpoints["base"]}, device=torch.device("cpu")
    )
    same = compared(replace(context, models=twins))[-1]
    assert torch.equal(same.images["a"], same.images["b"]) and same.images["a"].shape[0] == 2
    assert not torch.equal(compared(context, seed=4)[-1].images["base"], rounds[-1].images["base"])
    torch.testing.assert_close(same.image_scores["a"].scores, same.images["a"][:, 0].float().mean(dim=(1, 2)) / 255)


def test_names_and_scores_are_hidden_until_the_vote(context: DemoContext) -> None:
    found = compared(context, blind=True, shuffle=random.Random(0))[-1]
    assert sorted(found.names) == ["base", "tuned"] and found.labels == ["A", "B"]

    def told(outputs: list[Any]) -> str:
        return repr([getattr(output, "value", output) for output in outputs[1:]])

    seen = told(compare.show(found))
    assert "base" not in seen and "tuned" not in seen and "score" not in seen
    with pytest.raises(ValueError, match="Choose A, B or"):
        found.vote(None)
    after, winner = found.vote("B")
    assert winner == found.names[1] and after.labels == [f"A: {found.names[0]}", f"B: {found.names[1]}"]
    assert "base" in told(compare.show(after)) and "score" in told(compare.show(after))
    with pytest.raises(ValueError, match="have voted"):
        after.vote("A")
    with pytest.raises(ValueError, match="names are shown"):
        compared(context)[-1].vote("A")
    with pytest.raises(ValueError, match="Wait until"):
        compared(context, blind=True)[1].vote("A")


def test_blind_orders_differ(context: DemoContext) -> None:
    shuffle = random.Random(0)
    orders = {
        next(
            iter(
                comparison.generate(
                    context.models,
                    context.scorer,
                    context.scorer.prompt(TEXT),
                    seed=0,
                    num=1,
                    guidance=2.0,
                    blind=True,
                    shuffle=shuffle,
                )
            )
        ).names
        for _ in range(20)
    }
    assert orders == {("base", "tuned"), ("tuned", "base")}


def test_votes_are_counted() -> None:
    tally = Tally().add("tuned", ["base", "tuned"]).add(None, ["base", "tuned"]).add("tuned", ["tuned"])
    assert (tally.votes, tally.undecided, tally.shown) == ({"tuned": 2}, 1, {"base": 2, "tuned": 3})


def test_the_slider_holds_the_same_image_of_both(context: DemoContext) -> None:
    found = compared(context)[-1]
    shown = compare.slide(found, "base", "tuned", 7)  # of two
    left, right = (np.asarray(side) for side in shown["value"])
    assert shown["label"] == "base | tuned, image 2 of 2"
    assert np.array_equal(left, np.asarray(html_parts.enlarged(found.images["base"][1], html_parts.LARGE)))
    assert np.array_equal(right, np.asarray(html_parts.enlarged(found.images["tuned"][1], html_parts.LARGE)))
    assert compare.slide(None, "base", "tuned", 1) is None


def test_unknown_words_are_named_before_anything_is_sampled(context: DemoContext) -> None:
    rounds = comparison.generate(
        context.models,
        context.scorer,
        context.scorer.prompt("a photo of a dog"),
        seed=0,
        num=1,
        guidance=2.0,
        blind=False,
        shuffle=random.Random(0),
    )
    with pytest.raises(ValueError, match="does not know 'dog'"):
        next(iter(rounds))


# -- inspect -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inspected(context: DemoContext) -> inspection.Inspection:
    generator = context.models.get("base")
    return inspection.sample(
        generator, "base", context.scorer, context.scorer.prompt(TEXT), seed=3, num=4, guidance=2.0
    )


def logprobs(found: inspection.Inspection) -> tuple[torch.Tensor, torch.Tensor]:
    negative = found.null.logprob_negative
    assert negative is not None
    return torch.from_numpy(found.null.logprob_positive), torch.from_numpy(negative)


def test_the_maps_are_those_of_the_algorithms(inspected: inspection.Inspection) -> None:
    maps = inspected.maps
    weights = credit.token_weights(*logprobs(inspected))
    np.testing.assert_allclose(maps.weights, weights.numpy(), rtol=1e-6)
    scores = inspected.image_scores.scores
    expected = (scores - scores.mean()) / (scores.std() + 1e-4)
    np.testing.assert_allclose(maps.sequence_advantages, expected.numpy(), rtol=1e-4)
    np.testing.assert_allclose(inspected.flat.advantages, np.repeat(expected.numpy()[:, None], 16, axis=1), rtol=1e-4)
    assert inspected.first_kind == "advantage"


def test_another_rule_needs_no_model(
    context: DemoContext, inspected: inspection.Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = context.models.get("base")
    for name in ("sample", "token_logprobs", "decode"):
        monkeypatch.setattr(generator, name, lambda *_, **__: pytest.fail("the model was run"))
    other = inspection.reweighed(inspected, "js", "softmax")
    weights = credit.token_weights(*logprobs(inspected), divergence="js", normalization="softmax")
    np.testing.assert_allclose(other.maps.weights, weights.numpy(), rtol=1e-6)
    back = inspection.reweighed(other, "kl", "rank")
    np.testing.assert_array_equal(back.maps.advantages, inspected.maps.advantages)
    draw(replace(other, cell=(1, 2)), "advantage")


def test_another_contrast_scores_the_same_tokens(context: DemoContext, inspected: inspection.Inspection) -> None:
    generator = context.models.get("base")
    text = without(inspected, "a blue star")
    assert text == "a photo of a red circle"
    found = inspection.contrasted(inspection.reweighed(inspected, "exact_kl", "rank"), generator, text)
    sampling = Sampling(group_size=4, guidance=2.0, seed=3)
    expected = generator.sample([TEXT], sampling, negative_prompts=[text]).logprob_negative
    np.testing.assert_allclose(found.maps.logprob_negative, expected, atol=1e-5)
    assert found.negative == text and f"“{text}”" in found.maps.title("weight")
    # Over the whole codebook, nothing is known about this contrast.
    assert "exact_kl" in inspected.divergences and "exact_kl" not in found.divergences
    assert found.maps.recipe is not None and found.maps.recipe.divergence == "kl"
    back = inspection.contrasted(found, generator, None)
    np.testing.assert_array_equal(back.maps.advantages, inspected.maps.advantages)
    assert back.negative is None and "exact_kl" in back.divergences
    with pytest.raises(ValueError, match="does not know 'dog'"):
        inspection.contrasted(inspected, generator, "a dog")


def test_a_click_finds_its_cell(inspected: inspection.Inspection) -> None:
    side = html_parts.enlarged(inspected.maps.images[0], html_parts.LARGE).width
    cell = side / 4
    assert inspection.at(inspected, 0, 0) == (0, 0)
    assert inspection.at(inspected, 2.5 * cell, 1.5 * cell) == (1, 2)
    assert inspection.at(inspected, side - 1, side - 1) == (3, 3)
    with pytest.raises(ValueError, match="outside the picture"):
        inspection.at(inspected, side, 0)
    found = replace(inspected, image=2, cell=(1, 2))
    numbers = heatmap.cell(found.maps, 2, 1, 2)
    table = inspection.cell_table(found)
    assert "image 3, token 6: row 1, column 2" in table
    for name in ("token", "weight", "advantage"):
        assert f">{inspection._number(numbers[name])}<" in table
    assert f">{inspection._number(float(found.maps.sequence_advantages[2]))}<" in table  # type: ignore[index]


def test_both_pictures_have_one_scale(inspected: inspection.Inspection) -> None:
    own, flat = inspection.pictures(inspected, "advantage")
    end = inspected.maps.end("advantage")
    assert flat is not None and own.size == flat.size
    expected = heatmap.overlay(inspected.flat, "advantage", 0, end=end, width=html_parts.LARGE)
    assert np.array_equal(np.asarray(flat), np.asarray(expected))
    alone = heatmap.overlay(inspected.flat, "advantage", 0, width=html_parts.LARGE)
    assert not np.array_equal(np.asarray(flat), np.asarray(alone))
    assert inspection.pictures(inspected, "entropy")[1] is None
    assert f"{end:.3g}" in inspection.legend(inspected, "advantage")


def test_one_image_has_no_advantage_but_weights(context: DemoContext) -> None:
    found = inspection.sample(
        context.models.get("base"), "base", context.scorer, context.scorer.prompt(TEXT), seed=0, num=1, guidance=2.0
    )
    assert found.maps.advantages is None and found.first_kind == "weight" and "advantage" not in found.kinds
    draw(found, "advantage")


# -- train live --------------------------------------------------------------------------------------------------------


def plan(context: DemoContext, **changes: Any) -> training.Plan:
    options: dict[str, Any] = {
        "algorithms": ("grpo", "gcpo"),
        "prompts": training.prompts_of(context, "", ["a red circle", "two blue star"]),
        "checkpoint": "base",
        "steps": 2,
        "prompts_per_step": 2,
        "group_size": 2,
        "lr": 1e-2,
        "seed": 0,
    }
    return training.Plan(**{**options, **changes})


def test_a_live_training_writes_ordinary_runs(context: DemoContext) -> None:
    seen = list(training.train(context, plan(context), lambda: False))
    assert [found.step for found in seen] == [0, 0, 0, 0, 1, 1, 2]
    runs = run_browser.begun(seen[-1].runs)
    rewards_of = {name: run.series("reward/mean") for name, run in runs.items()}
    # The first step samples the same images for both, from the same weights.
    assert rewards_of["grpo"][1][0] == rewards_of["gcpo"][1][0] and rewards_of["grpo"][0] == [1, 2]
    assert [run.config["algorithm.name"] for run in runs.values()] == ["grpo", "gcpo"]
    assert run_browser.steps(runs.values(), "samples") == [0, 1, 2]
    for run in runs.values():
        assert checkpoints.newest(run.path) is not None
        assert load(run.path / "config.yaml").steps == 2
    assert list(plots.frame(runs, "reward/mean").columns) == ["step", "value", "run"]
    assert len(plots.frame(runs, "reward/mean")) == 4 and "reward/mean" in plots.metrics(runs.values())
    chart = plots.lines(runs, "reward/mean").to_dict()
    assert (
        chart["encoding"]["color"]["scale"]["domain"] == ["grpo", "gcpo"]
        and len(next(iter(chart["datasets"].values()))) == 4
    )


def test_algorithms_stand_in_one_picture_on_one_scale(context: DemoContext, monkeypatch: pytest.MonkeyPatch) -> None:
    together = []
    monkeypatch.setattr(side_by_side, "together", lambda named: together.append(named) or Image.new("RGB", (8, 8)))
    side_by_side._drawn.cache_clear()
    seen = list(training.train(context, plan(context, steps=1), lambda: False))
    runs = run_browser.begun(seen[-1].runs)
    shown = train_tab.show(seen[-1], "")[-1]
    assert [words for _, words in shown] == ["after step 0, one scale for all", "after step 1, one scale for all"]
    assert list(together[0]) == ["GRPO", "GCPO"], "the algorithms are drawn by one call"
    np.testing.assert_array_equal(together[0]["GRPO"].images, together[0]["GCPO"].images)  # step 0: the same images
    assert together[0]["GRPO"].prompts.tolist() == together[1]["GCPO"].prompts.tolist()
    assert train_tab.maps({"GRPO": runs["grpo"]}, 2) == [], "not before all have begun"
    own, (_, words) = train_tab.maps({"GRPO": runs["grpo"]}, 1)
    assert words == "GRPO after step 1" and own[0].width > 8
    kind = train_tab.HEATMAPS
    assert [words for _, words in runs_tab.gallery(runs, kind, 1)] == ["grpo, gcpo, step 1: one scale for all"]
    assert [words for _, words in runs_tab.gallery({"grpo": runs["grpo"]}, kind, 1)] == ["grpo, step 1"]
    for path in (runs["gcpo"].path / "heatmaps").glob("*.npz"):
        path.write_bytes(b"no")
    words = [words for _, words in runs_tab.gallery(runs, kind, 1)]
    assert words == ["grpo, step 1, on its own scale", "gcpo, step 1, on its own scale"]
    assert [words for _, words in runs_tab.gallery(runs, "samples", 1)] == ["grpo, step 1", "gcpo, step 1"]


def test_stop_keeps_what_there_is(context: DemoContext) -> None:
    steps_done = []
    found = None
    for found in training.train(context, plan(context, steps=50), lambda: bool(steps_done)):
        if found.step:
            steps_done.append(found.step)
    assert found is not None and found.step == 1
    for run in run_browser.begun(found.runs).values():
        kept = checkpoints.newest(run.path)
        assert kept is not None and checkpoints.step_of(kept) == run.step == 1


def test_a_training_that_nobody_watches_is_saved(context: DemoContext) -> None:
    rounds = training.train(context, plan(context, algorithms=("grpo",), steps=50), lambda: False)
    found = next(found for found in rounds if found.step == 1)
    rounds.close()  # type: ignore[attr-defined]
    assert checkpoints.newest(found.runs["grpo"]) is not None


def test_prompts_to_train_on_can_be_scored(context: DemoContext) -> None:
    geneval = replace(context, scorer=Scorer(rewards.load("geneval"), "geneval"))
    with pytest.raises(ValueError, match="cannot score “a dog”"):
        training.prompts_of(geneval, "", ["a red circle", "a dog"])
    colors = training.prompts_of(geneval, "colors", [])
    assert colors and {prompt.task for prompt in colors} == {"colors"}
    assert len({prompt.task for prompt in training.prompts_of(geneval, "all", [])}) == 6


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_being_written_is_read(tmp_path: Path) -> None:
    path = run_folders.write(tmp_path / "run", before=False, after=False)
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "rew')
    samples = path / "samples"
    samples.mkdir()
    Image.new("RGB", (64, 64), "red").save(samples / "step_000002_samples.png")
    whole = (samples / "step_000002_samples.png").read_bytes()
    (samples / "step_000004_samples.png").write_bytes(whole[: len(whole) // 2])
    run = run_browser.open_runs([str(path)])["run"]
    assert run.step == 4 and run_browser.steps([run], "samples") == [2], "half a picture is none"
    shown = run_browser.picture(run, "samples", 9)
    assert shown is not None and shown[0] == 2 and shown[1].getpixel((0, 0)) == (255, 0, 0)
    assert run_browser.picture(run, "samples", 1) is None
    (path / "metrics.jsonl").unlink()
    assert run_browser.open_runs([str(path)])["run"].step == 0


def test_runs_are_found_and_told_apart(tmp_path: Path) -> None:
    for name in ("a/seed0", "b/seed0", "b/seed1"):
        run_folders.write(tmp_path / name, before=False, after=False)
    (tmp_path / "empty").mkdir()
    found = run_browser.find(tmp_path)
    assert sorted(found) == [str(tmp_path / name) for name in ("a/seed0", "b/seed0", "b/seed1")]
    assert set(run_browser.open_runs(found)) == {"a/seed0", "b/seed0", "b/seed1"}
    assert set(run_browser.open_runs([*found[:1], *found[:1]])) == {Path(found[0]).name}
    assert run_browser.find(tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match="is no run folder"):
        run_browser.open_runs([str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="is no folder"):
        run_browser.open_runs([str(tmp_path / "gone")])
    shutil.rmtree(tmp_path / "b")
    assert len(run_browser.find(tmp_path)) == 1


def test_two_kinds_of_heatmaps_are_kept_apart(tmp_path: Path) -> None:
    path = run_folders.write(tmp_path / "run", before=False, after=False)
    (path / "heatmaps").mkdir()
    for name, color in (("step_000002", "red"), ("step_000002_trained", "blue"), ("step_000004_trained", "blue")):
        Image.new("RGB", (8, 8), color).save(path / "heatmaps" / f"{name}.png")
    run = run_browser.open_runs([str(path)])["run"]
    assert run_browser.steps([run], "heatmap, fixed prompts") == [2]
    assert run_browser.steps([run], "heatmap, group that was trained on") == [2, 4]


def test_a_password_comes_from_a_file_or_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    assert read_password(None) is None
    monkeypatch.setenv(PASSWORD_VARIABLE, "")
    assert read_password(None) is None
    monkeypatch.setenv(PASSWORD_VARIABLE, "from outside")
    assert read_password(None) == "from outside"
    (tmp_path / "password").write_text("from a file\n")
    assert read_password(tmp_path / "password") == "from a file"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_ends_when_it_is_told_to(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), number))
    timer.start()
    demo.wait_for_signal()
    timer.join()
    assert signal.getsignal(number) is before


def test_a_live_training_saves_when_the_demo_ends(context: DemoContext) -> None:
    ending = replace(context, closing=threading.Event(), training=threading.Lock())
    plan = training.Plan(
        ("grpo",), tuple(training.prompts_of(ending, "all", ["a red circle"])), "base", 3, 1, 2, 1e-3, 0
    )
    steps = training.train(ending, plan, lambda: False)
    first = next(step for step in steps if step.step == 1)
    assert ending.training.locked()
    with pytest.raises(ValueError, match="Another training is going on"):
        next(training.train(ending, plan, lambda: False))
    ending.closing.set()
    assert list(steps) == [] and not ending.training.locked()
    assert [path.name for path in (first.runs["grpo"] / "checkpoints").glob("step_*")] == ["step_000001"]


def test_what_a_script_may_send() -> None:
    assert validate.paths(None, "The run folders", 2) == [] == validate.paths(["", " "], "The run folders", 2)
    for wrong in ("x", 3, {"a": 1}, [3], [["x"]], [None]):
        with pytest.raises(ValueError, match="must be a list of paths"):
            validate.paths(wrong, "The run folders", 2)
    with pytest.raises(ValueError, match="These are 3 run folders; at most 2"):
        validate.paths(["a", "b", "c"], "The run folders", 2)
    for wrong in (None, "grpo", ["gcpo", "x"], [["gcpo"]], [{}]):
        with pytest.raises(ValueError, match="The algorithm is"):
            validate.some_of(wrong, "The algorithm", ["grpo", "gcpo"])
    with pytest.raises(ValueError, match="The prompt is 3; it must be a text"):
        validate.prompt_text(3)
    with pytest.raises(ValueError, match="surrogate"):
        validate.prompt_text("a \ud83d star")
    with pytest.raises(ValueError, match="The seed is 1000000"):
        validate.whole(10**400, "The seed", 0, 9)
    for wrong in (None, 3, [1], [1, 2, 3], "xy "):
        with pytest.raises(ValueError, match="it must have two numbers"):
            validate.pair(wrong)
    # A line ends at a newline alone.
    assert validate.prompt_lines("a\u2028b\r\nc") == ["a b", "c"]
