"""Several processes of which one fails: all end together, one line names it, and the run goes on from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.ranks_command import arguments, checkpoints, finished, start, steps
from helpers.ranks_rewards import STEP
from t2i_gcpo.training.ranks import Ranks

#: Seconds in which all processes must have ended; the start of torchrun, on a busy machine, is most of it.
LIMIT = 400
#: How a process fails -> the line that says so, and the step of the newest checkpoint.
FAILURES = {
    "raise": ("rank 1: Traceback", STEP - 1),
    "memory": ("error: the device is out of memory (rank 1: CUDA out of memory). By the plan", STEP - 1),
    "step": ("error: the device is out of memory (rank 1: CUDA out of memory). By the plan", STEP - 1),
    "reduce": ("while the processes exchanged gradients or weights, ran out of memory (CUDA out of memory)", STEP - 1),
    "publish": ("while the processes exchanged gradients or weights, ran out of memory (CUDA out of memory)", STEP - 1),
    "kill": ("error: rank 1 (process ", STEP - 1),
    "SIGTERM": ("rank 1: interrupted (SIGTERM)", STEP),
    "SIGHUP": ("rank 1: interrupted (SIGHUP)", STEP),
    "Ctrl-C": ("rank 1: interrupted (Ctrl-C)", STEP),
}


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        ([("ValueError", "no prompts"), ("ValueError", "no prompts")], "no prompts"),
        ([None, ("ValueError", "no prompts"), None], "rank 1: no prompts"),
        (
            [("ValueError", "no file a"), ("OSError", "the disk is full"), ("ValueError", "no file a"), None],
            "ranks 0, 2: no file a; rank 1: the disk is full",
        ),
        (
            [("", "Traceback of 0"), ("ValueError", "no file"), ("", "of 2")],
            "rank 1: no file; ranks 0, 2: Traceback of 0",
        ),
    ],
)
def test_each_reason_is_said_with_its_processes(errors: list[tuple[str, str] | None], line: str) -> None:
    ranks = object.__new__(Ranks)
    assert str(ranks._error(errors, None)) == line
    kind = next(error for error in errors if error is not None)[0]
    assert type(ranks._error(errors, None)).__name__ == (kind or "RankFailed")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("failure", FAILURES)
def test_all_end_together_and_the_run_goes_on_with_another_number_of_processes(failure: str, tmp_path: Path) -> None:
    line, saved = FAILURES[failure]
    _, said = finished(start(2, arguments(tmp_path), FAILURE=failure), LIMIT)
    assert said.count(line) == 1, said[-3000:]
    assert checkpoints(tmp_path)[-1] == f"step_{saved:06d}"
    status, said = finished(start(1, arguments(tmp_path, "--resume")), LIMIT)
    assert status == 0 and f"resumed {tmp_path / 'run'} at step {saved}" in said, said[-3000:]
    assert steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sigterm_to_all_ends_them_while_one_waits_for_the_other_in_an_evaluation(tmp_path: Path) -> None:
    """It comes to one in its own work, and to one in the middle of an exchange."""
    options = arguments(tmp_path, "--evaluate.before", "true")
    status, said = finished(start(2, options, FAILURE="all", FAILURE_CALL="1"), LIMIT)
    assert status != 0 and said.count("SIGTERM: ended before the first step; go on with") == 1, said[-3000:]
    assert "error: " not in said and "gloo" not in said, said[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rewards_that_are_all_nan_on_one_process_end_nothing(tmp_path: Path) -> None:
    status, said = finished(start(2, arguments(tmp_path), FAILURE="nan"), LIMIT)
    assert status == 0 and steps(tmp_path) == [1, 2, 3, 4], said[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_that_hangs_is_named_after_the_time_out(tmp_path: Path) -> None:
    options = arguments(tmp_path, "--ranks.timeout", "20")
    status, said = finished(start(2, options, FAILURE="hang"), LIMIT)
    lost = [line for line in said.splitlines() if line.startswith("error: rank 1 (process ")]
    assert status != 0 and len(lost) == 1 and "is gone, or hangs" in lost[0], said[-3000:]
    assert "error: rank 0" not in said and checkpoints(tmp_path)[-1] == f"step_{STEP - 1:06d}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_starts_them_again_and_they_go_on_by_themselves(tmp_path: Path) -> None:
    """No --resume in the line: the restarted processes find the run that they began."""
    status, said = finished(start(2, arguments(tmp_path), torchrun=["--max-restarts", "3"], FAILURE="kill"), LIMIT)
    assert status == 0 and f"resumed {tmp_path / 'run'} at step {STEP - 1}" in said, said[-3000:]
    assert steps(tmp_path) == [1, 2, 3, 4] and checkpoints(tmp_path)[-1] == "step_000004"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_restart_goes_on_with_no_run_of_another_start(tmp_path: Path) -> None:
    """The folder's run is refused as often as torchrun tries, and is left as it is."""
    status, said = finished(start(1, arguments(tmp_path, "--steps", "1")), LIMIT)
    assert status == 0, said[-3000:]
    status, said = finished(start(2, arguments(tmp_path, "--steps", "1"), torchrun=["--max-restarts", "1"]), LIMIT)
    assert status != 0 and said.count("holds a run already") == 2 and steps(tmp_path) == [1], said[-3000:]
