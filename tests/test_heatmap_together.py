"""Two algorithms stand side by side with the same images and on one scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_heatmap_views import drawn

from helpers import run_folders
from t2i_gcpo import heatmap
from t2i_gcpo.heatmap import side_by_side as side
from t2i_gcpo.heatmap.data import Heatmap
from t2i_gcpo.heatmap.files import write
from t2i_gcpo.reports import comparison, side_by_side
from t2i_gcpo.reports import run as run_reader


def pair() -> dict[str, Heatmap]:
    one = drawn()
    return {"GCPO": one, "GRPO": heatmap.reweigh(one, credit="uniform")}


def test_one_scale_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, object]] = []
    real = side.paint.render
    monkeypatch.setattr(side.paint, "render", lambda *args, **more: [called.append({"values": args[1], **more}),
                                                                       real(*args, **more)][1])  # fmt: skip
    named = pair()
    own = {name: one.end("advantage") for name, one in named.items()}
    assert own["GRPO"] < 0.6 * own["GCPO"], "scales of their own make them look alike"
    picture = heatmap.together(named, images=2)
    (call,) = called
    both = np.concatenate([one.maps()["advantage"] for one in named.values()])
    assert call["end"].end == pytest.approx(np.percentile(np.abs(both), 98))  # type: ignore[attr-defined]
    assert "the same images, GCPO, GRPO" in str(call["title"]) and picture.width > 400
    values = call["values"]
    np.testing.assert_array_equal(values[0], named["GCPO"].maps()["advantage"][0])  # type: ignore[index]
    np.testing.assert_array_equal(values[1], named["GRPO"].maps()["advantage"][0])  # type: ignore[index]
    assert not call["noise"][1].any(), "uniform credit is no noise"  # type: ignore[index]


def test_rows_are_matched_by_prompt_and_place() -> None:
    one = drawn()
    other = one.rows([4, 3, 1])  # of prompt b the second and the first; of the star one alone
    same = side.shared({"a": one, "b": other})
    assert same["a"].prompts.tolist() == same["b"].prompts.tolist() == ["a photo of a star", "b", "b"]
    np.testing.assert_array_equal(same["a"].images, one.images[[0, 3, 4]])
    np.testing.assert_array_equal(same["b"].images, one.images[[1, 4, 3]])
    assert not side.alike(same) and side.alike(pair())


def test_what_cannot_stand_together_is_said() -> None:
    one = drawn()
    strange = replace(one, prompts=np.array(["x"] * 6))
    small = replace(one, images=one.images[..., :4, :4])
    for named, message in (({"a": one}, "1 heatmaps"), ({"a": one, "b": strange}, "no prompt"),
                           ({"a": one, "b": small}, "different grids or pictures")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            heatmap.together(named)


def test_compare_shows_the_runs_side_by_side(tmp_path: Path) -> None:
    for name, one in pair().items():
        folder = run_folders.write(tmp_path / name, steps=2)
        for step in (0, 2):
            write(one, folder / "heatmaps", f"step_{step:06d}")
        write(one.rows([0]), folder / "heatmaps", "step_000002_trained")
    runs = {name: run_reader.read(tmp_path / name) for name in ("GCPO", "GRPO")}
    found = side_by_side.heatmaps(runs)
    assert [words.split(":")[0] for words, _ in found] == ["Step 0", "Step 2"]
    assert all(data.startswith(b"\x89PNG") for _, data in found)
    comparison.write({name: [run] for name, run in runs.items()}, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "Credit of the tokens, side by side" in text and text.count("one scale for all runs") >= 2
    (tmp_path / "GRPO" / "heatmaps" / "step_000002.npz").write_bytes(b"no")
    assert len(side_by_side.heatmaps(runs)) == 1, "a damaged file costs its picture alone"
    assert side_by_side.heatmaps({"GCPO": runs["GCPO"]}) == []
