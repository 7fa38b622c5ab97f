"""report.html: whole and partial runs, what it shows, that it needs nothing from outside."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import run_folders
from helpers.fake_generator import FakeGenerator
from helpers.limits import no_file_above
from t2i_gcpo import heatmap
from t2i_gcpo.algorithms import resolve, token_advantages
from t2i_gcpo.records import Prompt, Sampling, ScoredRollout
from t2i_gcpo.reports import curves
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
    assert text.count("data:image/png") == 5 and text.count("data:image/svg+xml") == 1
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
