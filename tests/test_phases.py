"""The table of where a run's time went: worked by hand, in the command and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import run_folders
from t2i_gcpo import cli
from t2i_gcpo.reports import run_report as report
from t2i_gcpo.reports import step_times as phases
from t2i_gcpo.reports.run import read


def test_shares_and_seconds_by_hand(tmp_path: Path) -> None:
    found, steps = phases.phases(read(run_folders.write(tmp_path / "run", steps=4)))
    # sample takes 1.1, 1.0, 1.1, 1.0 s of steps of 2 s; other is last although nothing says that it is the smallest.
    assert steps == 4 and [phase.name for phase in found] == ["sample", "forward", "other"]
    assert [phase.seconds for phase in found] == pytest.approx([1.05, 0.7, 0.25])
    assert [phase.share for phase in found] == pytest.approx([0.525, 0.35, 0.125])
    assert (
        found[0].ci95 == pytest.approx((0.5, 0.55), abs=0.02) and found[0].ci95[0] < found[0].share < found[0].ci95[1]
    )
    assert found[1].ci95 == pytest.approx((0.35, 0.35))
    assert phases.table_rows(found)[-1][:3] == ["step", "2.000", "100.0%"]


def test_steps_before_the_first_are_left_out(tmp_path: Path) -> None:
    run = read(run_folders.write(tmp_path / "run", steps=4))
    found, steps = phases.phases(run, first_step=4)
    assert steps == 1 and found[0].seconds == pytest.approx(1.0)
    assert phases.phases(run, first_step=5) == ([], 0)


def test_the_command_prints_the_table_and_writes_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = run_folders.write(tmp_path / "run", steps=4), tmp_path / "phases.json"
    assert cli.main(["bench", "phases", "--run", str(run), "--first-step", "2", "--out", str(out)]) == 0
    assert "forward" in capsys.readouterr().out
    numbers = json.loads(out.read_text(encoding="utf-8"))
    assert numbers["steps"] == 3 and numbers["phases"]["forward"]["share"] == pytest.approx(0.35)
    assert cli.main(["bench", "phases", "--run", str(run)]) != 0
    assert "--first-step" in capsys.readouterr().err
    assert cli.main(["bench", "phases", "--run", str(tmp_path / "nothing")]) != 0


def test_the_report_shows_it(tmp_path: Path) -> None:
    text = report.write(run_folders.write(tmp_path / "run", steps=4)).read_text(encoding="utf-8")
    assert "Where a step&#x27;s time goes" in text and "52.5%" in text
