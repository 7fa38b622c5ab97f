"""`t2i-gcpo compare`: which runs are one group, the numbers of the table, the files."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import run_folders
from helpers.limits import no_file_above
from t2i_gcpo.commands import compare as compare_command
from t2i_gcpo.reports import comparison as compare
from t2i_gcpo.reports import curves, group_pairs
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


def compared(tmp_path: Path, **shifts: int) -> dict[str, list[Any]]:
    """Two seeds of each algorithm; their images gained `shifts` tokens."""
    return groups(
        [
            read(run_folders.write(tmp_path / f"{name}{seed}", algorithm=name, seed=seed, shift=shift, steps=2))
            for name, shift in shifts.items()
            for seed in (0, 1)
        ]
    )


def test_groups_are_compared_image_by_image_with_an_interval(tmp_path: Path) -> None:
    (found,) = group_pairs.differences(compared(tmp_path, grpo=1, gcpo=4))
    assert (found.name, found.runs, found.apart) == ("gcpo less grpo", 2, True)
    assert found.sentence() == (
        "After training, gcpo less grpo: +0.094 [+0.094, +0.094] (95 % interval, n = 16 pairs of images, 2 seeds), so "
        "these runs tell the two apart; even, odd rose, none fell."
    )
    assert found.row() == ["gcpo less grpo", "2", "16", "+0.094 [+0.094, +0.094]", "yes"]


def test_what_cannot_be_paired_says_why(tmp_path: Path) -> None:
    runs = [
        run_folders.write(tmp_path / name, algorithm=name, seed=k, steps=1) for k, name in enumerate(("gcpo", "grpo"))
    ]
    (apart,) = group_pairs.differences(groups([read(run) for run in runs]))
    assert "no two of their runs have the same seed" in apart.sentence() and apart.to_json()["difference"] is None
    (runs[1] / "eval_after.json").unlink()
    config = (runs[1] / "config.yaml").read_text()
    (runs[1] / "config.yaml").write_text(config.replace("seed: 1\n", "seed: 0\n"))
    (early,) = group_pairs.differences(groups([read(run) for run in runs]))
    assert early.sentence().endswith("they have no scores after training.")


def test_of_many_groups_each_is_compared_with_the_first() -> None:
    named: dict[str, list[Any]] = {name: [] for name in "abcde"}
    assert [one.name for one in group_pairs.differences(named)] == ["b less a", "c less a", "d less a", "e less a"]
    assert len(group_pairs.differences({name: [] for name in "abcd"})) == 6


def test_a_budget_is_equal_only_where_the_images_are(tmp_path: Path) -> None:
    grouped = compared(tmp_path, grpo=1, gcpo=4)
    assert group_pairs.budget(grouped) == "Equal budget: each run sampled 128 images."
    longer = read(run_folders.write(tmp_path / "dapo", algorithm="dapo", steps=3))
    assert group_pairs.budget({**grouped, "dapo": [longer]}) == (
        "Not an equal budget: images sampled, discarded ones included: grpo 128; gcpo 128; "
        "dapo 192, up to 50.0 % more than the least."
    )
    (tmp_path / "dapo" / "metrics.jsonl").write_text("")
    early = read(tmp_path / "dapo")
    assert group_pairs.budget({**grouped, "dapo": [early]}).startswith(
        "Whether the budgets are equal is not known: dapo"
    )
    assert group_pairs.budget({"gcpo": [early]}) == ""


def test_the_page_shows_the_same_prompts_and_noise_where_the_runs_differ(tmp_path: Path) -> None:
    runs = [
        run_folders.write(tmp_path / name, algorithm=name, shift=shift, steps=2, verdicts=True)
        for name, shift in (("grpo", 1), ("gcpo", 2))
    ]
    grouped = groups([read(run) for run in runs])
    one, other = (grouped[name][0].after for name in ("grpo", "gcpo"))
    assert one is not None and other is not None
    differ = [(a, b) for a, b in zip(one.rows, other.rows, strict=True) if a.score != b.score]
    assert 0 < len(differ) < one.n
    page = "".join(group_pairs.pictures(grouped))
    assert f"They differ on {len(differ)} of 8 images" in page and "Runs: grpo: grpo, gcpo: gcpo" in page
    assert sorted(re.findall("<h4>(.*?)</h4>", page)) == sorted(a.text for a, _ in differ)
    assert page.count("data:image/png") == 2 * len(differ) == page.count("<b>grpo</b>") + page.count("<b>gcpo</b>")
    for run in runs:
        for row, _ in differ:
            png = (run / "test_images" / "after" / f"{row.index:04d}_0.png").read_bytes()
            assert base64.b64encode(png).decode() in page
    comparison = tmp_path / "out"
    comparison.mkdir()
    compare.write(grouped, comparison)
    text = (comparison / "report.html").read_text()
    assert text.split("</h1>")[1].lstrip().startswith('<p class="lead">After training, gcpo less grpo: ')
    assert text.index("Equal budget: each run sampled 128 images.") < text.index("Where grpo and gcpo differ")
    data = json.loads((comparison / "table.json").read_text())
    assert data["budget"].startswith("Equal budget") and data["differences"][0]["n"] == 8
    assert "Equal budget" in (comparison / "table.md").read_text()
