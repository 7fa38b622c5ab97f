"""`t2i-gcpo compare`: which runs are one group, the numbers of the table, the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers import run_folders
from helpers.limits import no_file_above
from t2i_gcpo.commands import compare as compare_command
from t2i_gcpo.reports import comparison as compare
from t2i_gcpo.reports import curves
from t2i_gcpo.reports.run import groups, read
from t2i_gcpo.training.options import OptimConfig


def test_seeds_of_an_algorithm_are_one_group(tmp_path: Path) -> None:
    paths = [
        run_folders.write(tmp_path / f"{name}{seed}", algorithm=name, seed=seed, steps=1)
        for name in ("gcpo", "grpo")
        for seed in (0, 1)
    ]
    found = groups([read(path) for path in paths])
    assert {label: [run.name for run in members] for label, members in found.items()} == {
        "gcpo": ["gcpo0", "gcpo1"],
        "grpo": ["grpo0", "grpo1"],
    }


def test_other_options_make_other_groups(tmp_path: Path) -> None:
    first = run_folders.write(tmp_path / "a", steps=1)
    second = run_folders.write(tmp_path / "b", steps=1, seed=1, optim=OptimConfig(lr=3e-4))
    assert list(groups([read(first), read(second)])) == ["gcpo, optim.lr 0.0001", "gcpo, optim.lr 0.0003"]
    with pytest.raises(ValueError, match="more than once"):
        groups([read(first), read(tmp_path / "b" / ".." / "a")])


def test_the_files_and_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        run_folders.write(tmp_path / "g0", seed=0, shift=4),
        run_folders.write(tmp_path / "g1", seed=1, shift=2),
        run_folders.write(tmp_path / "base", algorithm="grpo", after=False, steps=2),
    ]
    out = tmp_path / "out"
    assert compare_command.main(["--runs", *map(str, runs), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"curves.png", "table.json", "table.md", "report.html"}
    data = json.loads((out / "table.json").read_text())
    g0, g1, base = data["runs"]
    assert (g0["group"], g0["algorithm"], g0["seed"], g0["steps"], g0["images_sampled"], g0["seconds"]) == (
        "gcpo",
        "gcpo",
        0,
        4,
        256,
        8.0,
    )
    assert (g0["validation_best"], g0["validation_best_step"], g0["kl"]) == (
        pytest.approx(0.34),
        4,
        pytest.approx(0.004),
    )
    assert g0["difference"] == pytest.approx(0.125) and g0["difference_ci95"] == pytest.approx([0.125, 0.125])
    assert (
        g0["after"] - g0["before"] == pytest.approx(0.125)
        and g0["before_ci95"][0] < g0["before"] < g0["before_ci95"][1]
    )
    assert g1["seed"] == 1 and base["after"] is None and base["no_difference"] == "there is no eval_after.json"
    mean = data["groups"]["gcpo"]["difference"]
    assert mean == {"mean": pytest.approx(0.09375), "std": pytest.approx(0.0625 / np.sqrt(2)), "n": 2}
    assert data["groups"]["grpo"]["after"] == {"mean": None, "std": None, "n": 0}
    markdown = (out / "table.md").read_text()
    assert "| mean of gcpo | 2 runs |" in markdown and "mean of grpo" not in markdown and "+0.094 ± 0.044" in markdown
    assert markdown.splitlines()[2].startswith("| gcpo | g0 | 0 | 4 | 256 | 8.0 s |")
    page = (out / "report.html").read_text()
    assert "data:image/svg+xml" in page and "comparable" not in page and "optim.lr: 0.0001" in page
    assert "mean of gcpo" in capsys.readouterr().out


def test_a_full_disk_leaves_the_files_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("print_table", "print_note"):  # pytest's capture is a file, too
        monkeypatch.setattr(compare, name, lambda *_: None)
    grouped, out = groups([read(run_folders.write(tmp_path / "g0"))]), tmp_path
    before = {path: path.read_bytes() for path in compare.write(grouped, out)}
    for path, content in before.items():
        with pytest.raises(OSError, match=path.name), no_file_above(100):
            compare.write(grouped, out)
        assert path.read_bytes() == content
        path.unlink()
        path.symlink_to("/dev/null")  # this one can be written, so that the next one is tried


def test_the_thick_line_is_the_mean_of_the_seeds(tmp_path: Path) -> None:
    runs = [
        read(run_folders.write(tmp_path / f"r{seed}", seed=seed, steps=steps, before=False, after=False))
        for seed, steps in ((0, 4), (1, 2))
    ]
    reward = curves.draw({"gcpo": runs}).axes[1]
    thin0, thin1, thick = (line.get_xydata() for line in reward.lines)
    assert len(thin0) == 4 and len(thin1) == 2
    np.testing.assert_allclose(thick, (thin0[:2] + thin1) / 2)


def test_scores_that_do_not_compare_are_said_to(tmp_path: Path) -> None:
    runs = [run_folders.write(tmp_path / name, steps=1, algorithm=name, after=False) for name in ("gcpo", "grpo")]
    file = runs[1] / "eval_before.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "guidance": 5.0}))
    assert compare.warning(groups([read(runs[0])])) == ""
    assert "guidance (2.0, 5.0)" in compare.warning(groups([read(run) for run in runs]))


def test_seeds_of_the_images_are_compared_between_groups_not_between_runs(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("gcpo", 0), ("gcpo", 1), ("grpo", 0), ("grpo", 1)):
        folder = run_folders.write(tmp_path / f"{name}{seed}", seed=seed, steps=1, algorithm=name, after=False)
        file = folder / "eval_before.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "seed": seed}))
        runs.append(read(folder))
    assert compare.warning(groups(runs)) == ""
    assert "seed (0, 0+1)" in compare.warning(groups(runs[:3]))


def test_no_run_is_refused(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", steps=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is no run folder"):
        compare_command.main(["--runs", str(run), str(tmp_path / "empty"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
