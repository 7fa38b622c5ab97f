"""A run on several processes is the run on one: the same images, losses and weights, with less memory on each."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import ranks_cases, ranks_resume
from helpers.ranks_cases import CASES, Result, metrics, run, together
from helpers.training import distance, same, weights

SCRIPT = Path(ranks_cases.__file__)
#: Those that one start of torchrun does in a few seconds; the others are marked slow.
QUICK = ["dapo", "failing"]


def rows(step: list[Tensor]) -> list[tuple[int, ...]]:
    """The images of a step, in an order of their own: a process has those of its prompts."""
    return sorted(tuple(row.tolist()) for part in step for row in part)


def check_same(case: str, one: Result, many: Result, folders: tuple[Path, Path], start: list[Tensor]) -> None:
    for step in range(ranks_cases.STEPS):
        assert rows([part[step] for part in one.tokens]) == rows([part[step] for part in many.tokens]), (case, step)
    assert distance(one.weights, many.weights) < 1e-5 < 1e-3 < distance(one.weights, start), case
    assert one.scores == pytest.approx(many.scores, abs=1e-6, nan_ok=True), case
    for mine, theirs in zip(*map(metrics, folders), strict=True):
        assert mine.keys() == theirs.keys(), case
        for name, value in mine.items():
            close = pytest.approx(value, abs=1e-6 if name == "loss" else 1e-4, rel=1e-5)
            assert theirs[name] == close or (value is theirs[name] is None), (case, name)


def check_memory(one: Result, many: Result) -> None:
    """Masters and moments are (1/N + 5 %) of one process's at most, on each."""
    count = len(many.own_bytes)
    assert all(size <= (1 / count + 0.05) * one.own_bytes[0] for size in many.own_bytes)
    assert sum(many.own_bytes) >= one.own_bytes[0]


def compared(count: int, cases: list[str], folder: Path) -> dict[str, tuple[Result, Result]]:
    done = together(count, SCRIPT, folder / "many", *cases)
    assert done.returncode == 0, done.stderr[-3000:]
    results = {}
    for case in cases:
        one = run(case, folder / "one" / case)
        many = Result(**torch.load(folder / "many" / f"{case}.pt"))
        start = weights(ranks_cases.make(case, folder / "start" / case).generator)  # type: ignore[arg-type]
        check_same(case, one, many, (folder / "one" / case, folder / "many" / case), start)
        check_memory(one, many)
        results[case] = (one, many)
    return results


def test_two_processes_are_one(tmp_path: Path) -> None:
    results = compared(2, QUICK, tmp_path)
    shares = [len(part) for process in results["dapo"][1].tokens for part in process]
    assert len(set(shares)) > 1, "dynamic sampling left the processes unequal shares of a rollout"
    assert any(math.isnan(score) for score in results["failing"][0].scores) is False
    failed = [row["rows/failed"] for row in metrics(tmp_path / "many" / "failing")]
    assert 8 in failed or 16 in failed, "whole groups failed, and the processes went on together"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_are_one_in_every_other_way(tmp_path: Path) -> None:
    compared(2, [case for case in CASES if case not in QUICK and case != "bfloat16"], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_processes_are_one(tmp_path: Path) -> None:
    compared(4, [case for case in CASES if case != "bfloat16"], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", ["gcpo", "lora"])
def test_a_run_goes_on_with_another_number_of_processes(case: str, tmp_path: Path) -> None:
    """2, 1, 2 and 4 processes, one after the other, are the run on one; 2 and 2 are the run on 2 to the bit."""
    script = Path(ranks_resume.__file__)
    straight = tmp_path / "straight"
    ranks_resume.go_on(straight, 5, case)
    for folder, parts in (("mixed", [(2, 1), (1, 2), (2, 3), (4, 5)]), ("two", [(2, 2), (2, 5)]), ("once", [(2, 5)])):
        for count, until in parts:
            if count == 1:
                ranks_resume.go_on(tmp_path / folder, until, case)
                continue
            done = together(count, script, tmp_path / folder, str(until), case)
            assert done.returncode == 0, done.stderr[-3000:]
    one, mixed, two, once = (torch.load(tmp_path / f / "weights_5.pt") for f in ("straight", "mixed", "two", "once"))
    assert distance(one, mixed) < 1e-5 and same(two, once) and distance(one, once) < 1e-5
    start = weights(ranks_cases.make(case, tmp_path / "start").generator)  # type: ignore[arg-type]
    assert distance(one, start) > 1e-3
