"""report.html: whole and partial runs, what it shows, that it needs nothing from outside."""

from __future__ import annotations

import base64
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import run_folders
from helpers.fake_generator import FakeGenerator
from helpers.limits import no_file_above
from t2i_gcpo import heatmap
from t2i_gcpo.algorithms import resolve, token_advantages
from t2i_gcpo.evaluation.evaluate import ScoredImage
from t2i_gcpo.evaluation.intervals import Estimates
from t2i_gcpo.records import Prompt, Sampling, ScoredRollout
from t2i_gcpo.reports import changes, curves, verdict
from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.reports import run_report as report
from t2i_gcpo.utils import pictures


def with_pictures(run: Path) -> Path:
    generator = FakeGenerator()
    rollout = generator.sample([Prompt("a")], Sampling(group_size=2))
    images = generator.decode(rollout.tokens)
    scored = ScoredRollout(rollout, images, torch.tensor([1.0, 0.0]))
    advantages = token_advantages(resolve("gcpo", group_size=2), rollout, scored.scores)
    (run / "samples").mkdir()
    for step in (0, 2, 4):
        pictures.sample_grid(images, ["a", "a"], columns=2).save(run / "samples" / f"step_{step:06d}_samples.png")
        heatmap.save(run / "heatmaps", f"step_{step:06d}", scored, advantages)
    pictures.before_after(images, images, ["a", "a"]).save(run / "samples" / "before_after.png")
    return run


def test_a_whole_run(tmp_path: Path) -> None:
    run = with_pictures(run_folders.write(tmp_path / "first"))
    assert report.write(run) == run / "report.html"
    text = (run / "report.html").read_text()
    assert "Not in the run folder yet" not in text and "No paired difference" not in text
    assert "4 of 10 steps, 256 images sampled" in text and "8.0 s" in text
    assert "<td>+0.125 [+0.125, +0.125]</td>" in text  # 4 tokens of 32, for every image
    assert "Best validation score: 0.340 at step 4" in text
    assert text.count("data:image/png") == 5 and text.count("data:image/svg+xml") == 2  # light and dark
    links = re.findall(r'href="([^"]+)"', text)
    assert links
    for link in links:
        assert (run / link).exists(), link
    assert not re.search(r'(src|href)="(https?:|//|/)', text)


def test_a_full_disk_leaves_the_report_that_was_there(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "first", steps=1)
    before = report.write(run).read_bytes()
    with pytest.raises(OSError, match="report.html"), no_file_above(100):
        report.write(run)
    assert (run / "report.html").read_bytes() == before


def test_a_partial_run_says_what_is_missing(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "early", steps=1, after=False)
    text = report.write(run).read_text()
    assert "eval_after.json (score after training), validation scores, samples/, heatmaps/." in text
    assert "No paired difference: there is no eval_after.json" in text and "eval_before.json (score" not in text
    (run / "metrics.jsonl").write_text("")
    (run / "eval_before.json").unlink()
    bare = report.write(run).read_text()
    assert "metrics.jsonl, eval_before.json" in bare and "0 of 10 steps" in bare


def test_evaluations_of_different_images_are_not_paired(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run")
    other = run_folders.PROMPTS[:4]
    from helpers.fake_generator import options, token_score
    from rewards import RewardOutput
    from t2i_gcpo.evaluation.evaluate import evaluate

    evaluate(
        FakeGenerator(), other, lambda images, prompts, metadata: RewardOutput(token_score(images)), **options()
    ).save(run / "eval_after.json")
    assert "cannot be paired" in report.write(run).read_text()


def test_a_scorer_that_was_not_trained_on_has_its_own_table(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", held_out=True)
    text = report.write(run).read_text()
    trained, other = text.split("The same images under dark, which was not trained on")
    assert "<td>+0.125 [+0.125, +0.125]</td>" in trained and "-0.5" not in trained
    assert "<td>-0.500 [-0.500, -0.500]</td>" in other and "reward dark" in other
    run_folders.write(tmp_path / "early", held_out=True, after=False)
    early = report.write(tmp_path / "early").read_text().split("The same images under dark")[1]
    assert "No paired difference: there is no eval_after.json" in early
    assert "under dark" not in report.write(run_folders.write(tmp_path / "plain")).read_text()


def test_names_are_escaped(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "a<b>&")
    text = report.write(run).read_text()
    assert "<title>gcpo: a&lt;b&gt;&amp;</title>" in text and "<b>&" not in text


def test_the_verdict_comes_first_then_what_changed_the_curves_and_the_options(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", verdicts=True, shift=1)
    text = report.write(run).read_text()
    body = text.split("</h1>")[1]
    assert body.lstrip().startswith('<p class="lead">gcpo did not measurably change the score on the test prompts: ')
    order = [body.index(f"<h2>{name}") for name in ("What changed", "Scores on", "Curves", "Options", "Files")]
    assert order == sorted(order)


def test_the_verdict_has_before_after_interval_n_and_the_tasks(tmp_path: Path) -> None:
    def says(name: str, **options: Any) -> str:
        return verdict.sentence(run_folder.read(run_folders.write(tmp_path / name, **options)))

    assert says("better") == (
        "gcpo raised the score on the test prompts: 0.395 → 0.520, +0.125 [+0.125, +0.125] (95 % interval, n = 8 "
        "pairs of images); even, odd rose, none fell."
    )
    assert says("worse", shift=-1).startswith("gcpo lowered the score on the test prompts: 0.395 → ")
    assert says("early", after=False) == "There is no verdict: there is no eval_after.json."
    assert "did not measurably change" in says("same", shift=0)


def test_tasks_rise_or_fall_where_their_own_interval_says_so() -> None:
    def words(**intervals: tuple[float, float]) -> str:
        return verdict.tasks_in_words(Estimates(0.0, (0.0, 0.0), dict.fromkeys(intervals, 0.0), intervals, {}))

    nan = float("nan")
    assert words(a=(0.1, 0.2), b=(-0.2, -0.1), c=(0.0, 0.3), d=(nan, nan)) == (
        "a rose, b fell, 2 of 4 tasks cannot be told from no change"
    )
    assert words(a=(-0.2, -0.1), b=(-0.3, -0.1)) == "a, b fell, none rose"
    assert words(a=(-0.2, 0.1)) == "no task rose or fell by more than its own interval"


def test_what_changed_stands_side_by_side_with_its_reasons(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", verdicts=True, shift=1)
    data = [json.loads((run / f"eval_{when}.json").read_text())["images"] for when in ("before", "after")]
    rows = list(zip(*data, strict=True))
    rose, fell = ([pair for pair in rows if pair[1]["score"] - pair[0]["score"] == sign] for sign in (1, -1))
    assert rose and fell and len(rose) + len(fell) < len(rows)
    text = "".join(changes.html(run_folder.read(run)))
    up, down = text.split("✗ → ✓: became right")[1].split("✓ → ✗: became wrong")
    assert up.startswith(f" ({len(rose)} of 8 images)") and down.startswith(f" ({len(fell)} of 8 images)")
    for part, pairs, wrong in ((up, rose, 0), (down, fell, 1)):
        assert re.findall("<h4>(.*?)</h4>", part) == [pair[0]["prompt"] for pair in pairs]
        assert part.count("data:image/png") == 2 * len(pairs)
        assert re.findall("<li>(.*?)</li>", part) == [html.escape(pair[wrong]["reasons"][0]) for pair in pairs]
        for pair in pairs:  # the very picture that was judged
            for when, row in zip(("before", "after"), pair, strict=True):
                png = (run / "test_images" / when / f"{row['index']:04d}_0.png").read_bytes()
                assert base64.b64encode(png).decode() in part


def test_scores_without_verdicts_show_the_largest_changes(tmp_path: Path) -> None:
    text = "".join(changes.html(run_folder.read(run_folders.write(tmp_path / "run"))))
    assert "Scores that rose most (8 of 8 images)" in text and "Scores that fell most (0 of 8 images)" in text
    assert "The run kept no test images (evaluate.keep_images)" in text
    row = ScoredImage(0, 0, "a", "t", 0.0)
    pairs = [changes.Pair(row, replace(row, index=k, score=score)) for k, score in enumerate((0.1, 0.9, 0.5))]
    assert [pair.other.index for pair in changes.choose(pairs, strict=False, most=2)] == [1, 2]


def test_a_picture_of_changes_is_the_run_s_own(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", verdicts=True, shift=1)
    everything = "".join(changes.html(run_folder.read(run))).count("data:image/png")
    folder = run / "test_images" / "after"
    (tmp_path / "private.png").write_bytes(next(iter(folder.iterdir())).read_bytes())
    for path in folder.iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "private.png")
    assert "".join(changes.html(run_folder.read(run))).count("data:image/png") == everything // 2


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run folder"):
        report.write(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        report.write(tmp_path / "nothing")
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not a YAML file"):
        report.write(tmp_path)


def test_smoothing_equals_a_slow_loop() -> None:
    values = np.random.default_rng(0).random(11)
    for width in (1, 2, 3, 8, 40):
        half = width // 2
        expected = [np.mean(values[max(0, k - half) : k + half + 1]) for k in range(11)]
        np.testing.assert_allclose(curves.smooth(values, width), expected, rtol=1e-12)
    np.testing.assert_array_equal(curves.smooth([1.0, 5.0], 1), [1.0, 5.0])


def test_the_curves_show_what_was_logged(tmp_path: Path) -> None:
    run = run_folder.read(run_folders.write(tmp_path / "run", steps=3))
    figure = curves.draw({"gcpo": [run]})
    axes = {axis.get_title(): axis for axis in figure.axes}
    assert list(axes) == list(curves.PANELS.values())
    thin = axes["reward, mean of the rollout"].lines[0]
    np.testing.assert_allclose(thin.get_xydata(), [[1, 0.41], [2, 0.42], [3, 0.43]])
    np.testing.assert_allclose(axes["validation score"].lines[-1].get_xydata(), [[2, 0.32]])
    np.testing.assert_allclose(axes["share of tokens clipped"].lines[0].get_ydata(), [0.03] * 3)
    over_images = curves.draw({"gcpo": [run]}, x="images_sampled").axes[1].lines[0]
    np.testing.assert_allclose(over_images.get_xdata(), [64, 128, 192])


def test_durations() -> None:
    assert [report.duration(s) for s in (0.26, 59, 90, 7200)] == ["0.3 s", "59.0 s", "1.5 min", "2.0 h"]
