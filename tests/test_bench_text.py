"""`t2i-gcpo bench text`: both sides' steps run, and what makes up the ratio is counted and checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.text_models import tiny_folder  # first: skips this file where TRL is missing
from t2i_gcpo import cli
from t2i_gcpo.bench import text


def test_the_benchmark_times_all_sides_and_counts_their_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "text.json"
    options = ["--model", str(tiny_folder()), "--prompts", "2", "--group", "2", "--length", "4", "--pairs", "2"]
    assert cli.main(["bench", "text", *options, "--out", str(out)]) == 0
    found, shown = json.loads(out.read_text()), " ".join(capsys.readouterr().out.split())
    # The loss's own pass; with GCPO the negative prompt's; with exact_kl those of both prompts' whole distributions.
    assert found["settings"]["forwards"] == {"grpo": 1, "gcpo": 2, "exact_kl": 4}
    assert "same completions; passes over whole sequences: grpo 1, gcpo 2, exact_kl 4" in shown
    seconds = found["settings"]["seconds"]
    assert {kind: len(values) for kind, values in seconds.items()} == {"grpo": 2, "gcpo": 2, "exact_kl": 2}
    ratios = sorted(ours / theirs for ours, theirs in zip(seconds["gcpo"], seconds["grpo"], strict=True))
    assert found["ratio"] == pytest.approx(sum(ratios) / 2) and found["ratio_ci95"] == pytest.approx(ratios)


def test_sides_that_do_not_differ_by_one_pass_are_refused() -> None:
    with pytest.raises(RuntimeError, match="GCPO took 3 passes over whole sequences and one of GRPO 1"):
        text.check_forwards({"grpo": 1, "gcpo": 3})


def test_a_group_of_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "text", "--group", "1"]) == 2
    assert "--group is 1; it must be at least 2" in capsys.readouterr().err
