"""A run on several processes is the run on one: the same images, losses and weights, with less memory on each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import ranks_cases, ranks_resume
from helpers.ranks_cases import CASES, STEPS, Result, metrics, run, together
from helpers.training import distance, same, weights
from t2i_gcpo.training.options import Schedule

SCRIPT = Path(ranks_cases.__file__)
#: Each is one start of torchrun, of less than a minute on two cores.
GROUPS = {
    "full": ["grpo", "gcpo", "dapo", "random", "failing"],
    "more": ["shuffled", "variance", "passes", "uneven", "each_pass"],
    "lora": ["lora", "lora_dapo", "lora_passes"],
    "masked": ["masked_grpo", "masked_gcpo", "masked_random", "masked_dapo", "masked_passes", "masked_lora"],
}
BOTH = [(group, count) for group in GROUPS for count in (2, 4)]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Runs = Callable[[str, int], tuple[dict[str, Result], Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Run the cases of a group on a number of processes, once; the tests compare them."""

    @functools.cache
    def results(group: str, count: int) -> tuple[dict[str, Result], Path]:
        folder, cases = tmp_path_factory.mktemp(f"{group}_{count}"), GROUPS[group]
        if count == 1:
            return {case: run(case, folder / case) for case in cases}, folder
        done = together(count, SCRIPT, folder, *cases)
        assert done.returncode == 0, done.stderr[-3000:]
        return {case: Result(**torch.load(folder / f"{case}.pt")) for case in cases}, folder

    return results


def test_every_case_is_compared() -> None:
    cases = [case for group in GROUPS.values() for case in group]
    assert sorted(cases) == sorted(set(CASES) - {"bfloat16"})


def rows(step: list[Tensor]) -> list[tuple[int, ...]]:
    """The images of a step, in an order of their own: a process has those of its prompts."""
    return sorted(tuple(row.tolist()) for part in step for row in part)


def check_same(case: str, one: Result, many: Result, folders: tuple[Path, Path], start: list[Tensor]) -> None:
    for step in range(STEPS):
        assert rows([part[step] for part in one.tokens]) == rows([part[step] for part in many.tokens]), (case, step)
    print(f"{case}: weights differ by {distance(one.weights, many.weights):.1e}")
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


@pytest.mark.parametrize(("group", "count"), BOTH)
def test_twice_as_many_processes_are_the_same_run(group: str, count: int, runs: Runs, tmp_path: Path) -> None:
    """One process against two, and two against four."""
    fewer, before = runs(group, count // 2)
    more, after = runs(group, count)
    one, _ = runs(group, 1)
    for case in GROUPS[group]:
        start = weights(ranks_cases.make(case, tmp_path / case).generator)  # type: ignore[arg-type]
        check_same(case, fewer[case], more[case], (before / case, after / case), start)
        check_memory(one[case], more[case])


def test_what_is_left_of_a_difference_is_rounding_that_adamw_blows_up(tmp_path: Path) -> None:
    """One process differs from itself as much, where it adds up the same rows in other micro-batches."""

    def weights_of(micro_batch: int, eps: float) -> list[Tensor]:
        optim = replace(ranks_cases.OPTIM, lr=1e-2, eps=eps)
        target = ranks_cases.make("gcpo", tmp_path / f"{micro_batch}_{eps}", micro_batch=micro_batch, optim=optim)
        target.train()
        return weights(target.generator)  # type: ignore[arg-type]

    default = Schedule().eps
    assert distance(weights_of(3, default), weights_of(8, default)) > 1e-5
    assert distance(weights_of(3, 1e-5), weights_of(8, 1e-5)) < 2e-6


@pytest.mark.parametrize(("group", "case"), [("full", "dapo"), ("lora", "lora_dapo"), ("masked", "masked_dapo")])
def test_dynamic_sampling_leaves_the_processes_unequal_shares(group: str, case: str, runs: Runs) -> None:
    many, _ = runs(group, 2)
    assert any(len(one) != len(other) for one, other in zip(*many[case].tokens, strict=True))


def test_whole_groups_failed_and_the_processes_went_on_together(runs: Runs) -> None:
    results, folder = runs("full", 2)
    assert any(math.isnan(score) for score in results["failing"].scores) is False
    failed = [row["rows/failed"] for row in metrics(folder / "failing")]
    assert 8 in failed or 16 in failed


@pytest.mark.parametrize("case", ["gcpo", "lora"])
def test_a_run_that_is_killed_goes_on_with_another_number_of_processes(case: str, tmp_path: Path) -> None:
    """2, 2, 1, 2 and 4 processes, with kill -9 between, are the run on one; the first two are that on 2 to the bit."""
    script = Path(ranks_resume.__file__)
    ranks_resume.go_on(tmp_path / "one", STEPS, case)
    done = together(2, script, tmp_path / "two", str(STEPS), case)
    assert done.returncode == 0, done.stderr[-3000:]
    for count, until in ((2, 1), (2, 2), (1, 3), (2, 4), (4, STEPS)):
        done = together(count, script, tmp_path / "mixed", str(until), case)
        assert (done.returncode == 0) == (until == STEPS), done.stderr[-3000:]
    one, two, mixed = (tmp_path / name for name in ("one", "two", "mixed"))
    assert same(torch.load(two / "weights_2.pt"), torch.load(mixed / "weights_2.pt"))
    last = torch.load(one / f"weights_{STEPS}.pt")
    assert distance(last, torch.load(mixed / f"weights_{STEPS}.pt")) < 1e-5
    assert [row["step"] for row in metrics(mixed)] == list(range(1, STEPS + 1))
    start = weights(ranks_cases.make(case, tmp_path / "start").generator)  # type: ignore[arg-type]
    assert distance(last, start) > 1e-3
