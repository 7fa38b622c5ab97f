"""Heatmaps: colours by hand, one scale, one cell a token, the saved tensor and nothing else, the page, the command."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.fake_generator import FakeGenerator
from t2i_gcpo import generators, heatmap
from t2i_gcpo.algorithms import TokenAdvantages, resolve, token_advantages
from t2i_gcpo.commands import heatmap as heatmap_command
from t2i_gcpo.heatmap import Heatmap
from t2i_gcpo.heatmap.html import page, payload
from t2i_gcpo.heatmap.kinds import KINDS
from t2i_gcpo.heatmap.paint import overlay_colors, paint, render
from t2i_gcpo.heatmap.scale import Scale, fit, percentile_end, words
from t2i_gcpo.records import Prompt, Sampling, ScoredRollout

GREY = np.full((3, 8, 8), 128, dtype=np.uint8)


def scored(prompt: str = "a photo of a star") -> tuple[ScoredRollout, TokenAdvantages]:
    """Two prompts, three images each, one of them failed."""
    return scored_on((4, 4), prompt)


def scored_on(grid: tuple[int, int], prompt: str = "a photo of a star") -> tuple[ScoredRollout, TokenAdvantages]:
    """The same on a grid of any size."""
    sampling = Sampling(group_size=3, guidance=2.0, seed=1)
    generator = FakeGenerator(grid=grid)
    rollout = generator.sample([Prompt(prompt), Prompt("b")], sampling)
    result = ScoredRollout(
        rollout, generator.decode(rollout.tokens), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, torch.nan])
    )
    return result, token_advantages(resolve("gcpo", group_size=3), rollout, result.scores)


def test_positive_is_red_negative_is_blue_and_zero_shows_the_picture() -> None:
    cells = np.array([[2.0, -2.0], [0.0, np.nan]])
    drawn = paint(GREY, cells, signed=True, end=2.0).astype(int)
    red, blue = drawn[0, 0], drawn[0, -1]
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50
    assert (drawn[4:] == 128).all()
    np.testing.assert_array_equal(
        red, np.rint(0.15 * 128 + 0.85 * overlay_colors(True)[255])
    )  # worked out: opacity 0.85 at the end
    half = paint(GREY, np.full((1, 1), 1.0), signed=True, end=2.0)[0, 0]
    np.testing.assert_array_equal(half, np.rint((1 - 0.425) * 128 + 0.425 * overlay_colors(True)[191]))
    assert (paint(GREY, cells * 10, signed=True, end=2.0)[0, 0] == red).all()  # clipped


def test_a_cell_is_a_token_and_rows_are_rows() -> None:
    cells = np.arange(8.0).reshape(2, 4)
    drawn = paint(GREY, cells, signed=False, end=7.0)
    for row in range(8):
        for column in range(8):
            expected = np.rint(0.2 * 128 + 0.8 * overlay_colors(False)[round(cells[row // 4, column // 2] / 7 * 255)])
            np.testing.assert_array_equal(drawn[row, column], expected)


def test_the_picture_below_loses_its_colour() -> None:
    image = np.zeros((3, 4, 4), dtype=np.uint8)
    image[0] = 200
    drawn = paint(image, np.zeros((1, 1)), signed=True, end=1.0)[0, 0]
    np.testing.assert_array_equal(
        drawn, np.rint([0.25 * 200 + 0.75 * 0.299 * 200, 0.75 * 0.299 * 200, 0.75 * 0.299 * 200])
    )


def test_the_scale_is_the_98th_percentile_over_all_panels() -> None:
    values = np.concatenate([np.linspace(-1, 1, 99), [100.0]])
    assert percentile_end(values) == pytest.approx(float(np.percentile(np.abs(values), 98)))
    assert percentile_end(values) < 2
    assert percentile_end(np.zeros(5)) == 1.0 and percentile_end(np.array([np.nan, 3.0])) == 3.0
    assert percentile_end(np.concatenate([np.zeros(999), [5.0]])) == 5.0
    # What lies beyond the end is clipped, so that the largest is named.
    values[-1] = 3.0
    assert fit(values, KINDS["kl"]) == Scale(percentile_end(values))
    assert "98th percentile of |value| (the largest is 3)" in words(values, KINDS["kl"])
    assert "opacity" in words(values, KINDS["advantage"])
    given = words(-values, KINDS["kl"], given=Scale(9.0))
    assert given == "one scale for all panels (the largest value of these is 3)"
    assert words(values, KINDS["order"]).endswith("to the largest value")
    assert words(np.array([0.0, np.nan]), KINDS["kl"]) == "all values are 0"

    # The same values look paler beside a panel with larger ones, unless the scale is given.
    images, small = np.full((2, 3, 8, 8), 128, dtype=np.uint8), np.ones((2, 4), dtype=np.float32)
    large = np.concatenate([small[:1], 4 * small[:1]])

    def first_cell(values: np.ndarray, end: float | None = None) -> tuple[int, ...]:
        drawn = np.asarray(
            render(images, values, (2, 2), kind=KINDS["advantage"], captions=["", ""], columns=2, end=end)
        ).astype(int)
        tinted = np.argwhere(drawn[90:, :, 0] - drawn[90:, :, 2] > 5)  # red cells, below title and bar
        y, x = tinted[0]
        return tuple(drawn[90 + y, x])

    assert first_cell(small) != first_cell(large)
    assert first_cell(small, end=4.0) == first_cell(large)


def test_what_is_drawn_is_the_saved_tensor(tmp_path: Path) -> None:
    result, advantages = scored()
    paths = heatmap.save(tmp_path, "step_000010", result, advantages)
    assert [path.name for path in paths] == ["step_000010.png", "step_000010.npz", "step_000010.html"]
    loaded = Heatmap.load(paths[1])
    np.testing.assert_array_equal(loaded.maps()["advantage"], advantages.advantages.numpy())
    np.testing.assert_array_equal(loaded.tokens, result.rollout.tokens.numpy())
    np.testing.assert_array_equal(
        loaded.maps()["contrast"], (result.rollout.logprob_positive - result.rollout.logprob_negative).numpy()
    )
    assert loaded.prompts.tolist() == ["a photo of a star"] * 3 + ["b"] * 3 and loaded.grid == (4, 4)
    assert list(loaded.maps()) == (
        ["advantage", "weight", "contrast", "kl", "abs", "js", "information_gain", "entropy", "surprisal", "order"]
    )
    np.testing.assert_array_equal(np.asarray(loaded.draw()), np.asarray(Image.open(paths[0])))
    # Not computed again from scores and weights: another tensor gives another picture.
    changed = replace(advantages, advantages=advantages.advantages.flip(-1))
    assert heatmap.save(tmp_path, "flipped", result, changed)[0].read_bytes() != paths[0].read_bytes()
    with pytest.raises(ValueError, match="no map 'exact_kl' here; allowed: advantage, weight"):
        loaded.draw("exact_kl")


def test_some_rows_keep_their_prompts(tmp_path: Path) -> None:
    result, advantages = scored()
    loaded = Heatmap.load(heatmap.save(tmp_path, "x", result, advantages, rows=[4, 0])[1])
    assert loaded.prompts.tolist() == ["b", "a photo of a star"]
    np.testing.assert_array_equal(loaded.advantages, advantages.advantages[[4, 0]].numpy())  # type: ignore[arg-type]
    np.testing.assert_array_equal(loaded.images, result.images[[4, 0]].numpy())
    np.testing.assert_array_equal(loaded.scores, [0.5, 1.0])
    np.testing.assert_array_equal(loaded.stats["entropy"], result.rollout.stats["entropy"][[4, 0]].numpy())


def test_without_scores_the_weights_are_drawn(tmp_path: Path) -> None:
    result, advantages = scored()
    bare = replace(result, scores=torch.full((6,), torch.nan))
    loaded = Heatmap.load(heatmap.save(tmp_path, "x", bare, weights=advantages.weights)[1])
    assert next(iter(loaded.maps())) == "weight" and loaded.advantages is None
    assert loaded.notes() == ["0 % of credit below the floor"] * 5 + [""]
    with pytest.raises(ValueError, match="nothing to draw"):
        heatmap.save(tmp_path, "y", bare)


def test_wrong_shapes_and_kinds_are_refused() -> None:
    images = np.zeros((1, 3, 8, 8), dtype=np.uint8)
    for values, captions in ((np.zeros((1, 5)), ["a"]), (np.zeros((2, 4)), ["a"]), (np.zeros((1, 4)), [])):
        with pytest.raises(ValueError, match="expected"):
            render(images, values, (2, 2), kind=KINDS["weight"], captions=captions)


def test_the_page_holds_every_number_and_asks_nothing_of_the_network() -> None:
    result, advantages = scored(prompt="</script><b>&")
    text = page(Heatmap.of(result, advantages), title="a <b>")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|fetch\(|url\(", text)
    assert text.count("</script>") == 2 and "a &lt;b&gt;" in text
    data = json.loads(
        re.search(
            r'<script id="data" '
            r'type="application/json">(.*?)</script>',
            text,
            re.S,
        )[1]
    )  # type: ignore[index]
    assert data["images"][0]["prompt"] == "</script><b>&" and data["grid"] == [4, 4]
    row = data["images"][4]
    np.testing.assert_allclose(row["maps"]["advantage"], advantages.advantages[4], rtol=1e-4)
    np.testing.assert_allclose(row["maps"]["weight"], advantages.weights[4], rtol=1e-4)
    np.testing.assert_allclose(row["logprob_negative"], result.rollout.logprob_negative[4], rtol=1e-4)  # type: ignore[index]
    assert row["tokens"] == result.rollout.tokens[4].tolist() and row["step"] == list(range(16))
    picture = Image.open(io.BytesIO(base64.b64decode(row["picture"].split(",")[1])))
    np.testing.assert_array_equal(np.asarray(picture).transpose(2, 0, 1), result.images[4])


def test_what_is_not_finite_is_null_in_the_page() -> None:
    result, advantages = scored()
    logprob = result.rollout.logprob_negative.clone()  # type: ignore[union-attr]
    logprob[0, 0] = -torch.inf
    broken = Heatmap.of(replace(result, rollout=replace(result.rollout, logprob_negative=logprob)), advantages)
    row = payload(broken)["images"][0]
    assert (
        row["logprob_negative"][0] is None
        and row["maps"]["contrast"][0] is None
        and row["maps"]["contrast"][1] is not None
    )


def node() -> str:
    """A JavaScript engine: the machine's own, else the one that Playwright brings, which the extra [dev] installs."""
    own = shutil.which("node")
    if own is not None:
        return own
    from playwright._impl._driver import compute_driver_executable

    return str(compute_driver_executable()[0])


def test_the_script_is_valid(tmp_path: Path) -> None:
    result, advantages = scored()
    script = re.findall(r"<script>(.*?)</script>", page(Heatmap.of(result, advantages), title="x"), re.S)[0]
    (tmp_path / "script.js").write_text(script)
    subprocess.run([node(), "--check", str(tmp_path / "script.js")], check=True, capture_output=True)
    (tmp_path / "broken.js").write_text(script + "}")
    broken = subprocess.run([node(), "--check", str(tmp_path / "broken.js")], check=False, capture_output=True)
    assert broken.returncode, "the check would notice"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generators, "load", lambda name, **_: FakeGenerator())
    weights = ["--checkpoint", "x", "--prompt", "a cat on a mat", "--num", "2", "--out", str(tmp_path / "a")]
    assert heatmap_command.main(weights) == 0
    assert "no advantages: the prompt is none of the embedded ones" in capsys.readouterr().out
    loaded = Heatmap.load(tmp_path / "a" / "heatmap.npz")
    assert loaded.advantages is None and len(loaded.images) == 2

    function = tmp_path / "brightness.py"
    function.write_text("def score(images, prompts, metadata):\n    return images.float().mean(dim=(1, 2, 3))\n")
    own = ["--checkpoint", "x", "--prompt", "a cat", "--reward", f"{function}:score", "--out", str(tmp_path / "b")]
    assert heatmap_command.main(own) == 0
    loaded = Heatmap.load(tmp_path / "b" / "heatmap.npz")
    assert loaded.advantages is not None
    best, worst = loaded.scores.argmax(), loaded.scores.argmin()
    assert loaded.advantages[best].mean() > 0 > loaded.advantages[worst].mean()

    with pytest.raises(ValueError, match="nothing to draw"):
        heatmap_command.main([*weights, "--algorithm", "grpo"])
    with pytest.raises(SystemExit):
        heatmap_command.main(["--checkpoint", "x", "--prompt", "a", "--num", "0", "--out", str(tmp_path)])
    assert "--num: '0' is not an integer of at least 1" in capsys.readouterr().err


def test_an_embedded_prompt_brings_its_metadata() -> None:
    assert heatmap_command.find_prompt(" a photo of  a star ").task == "single_object"
    assert heatmap_command.find_prompt("a photo of a zebra").metadata == {}
    with pytest.raises(ValueError, match="empty"):
        heatmap_command.find_prompt(" ")
