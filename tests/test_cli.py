"""The commands' table, exit statuses, and what a user's mistake looks like."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

import t2i_gcpo
from t2i_gcpo import cli


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], object]], None]:
    """Put a function behind `t2i-gcpo probe`."""

    def install(function: Callable[[list[str]], object]) -> None:
        module = ModuleType("probe_command")
        module.main = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("probe_command:main", "a probe"))

    return install


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"t2i-gcpo {t2i_gcpo.__version__}\n"
    assert cli.main([]) == 2


def test_every_command_has_its_function() -> None:
    for name, (target, _) in cli.COMMANDS.items():
        module, function = target.split(":")
        assert importlib.util.find_spec(module), f"{name}: {module} is missing"
        assert callable(getattr(importlib.import_module(module), function)), name


def test_an_unknown_command_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "'trian'; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (1, 1)])
def test_arguments_go_in_and_the_status_comes_out(command: Callable, result: object, status: int) -> None:
    seen = []
    command(lambda argv: seen.append(argv) or result)
    assert cli.main(["probe", "--a", "b"]) == status
    assert seen == [["--a", "b"]]


@pytest.mark.parametrize(
    "error", [ValueError("steps is 0"), FileNotFoundError(2, "no such file", "x"), ImportError("no wandb")]
)
def test_a_users_mistake_is_one_line(
    command: Callable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(argv: list[str]) -> None:
        raise error

    command(fail)
    monkeypatch.delenv("T2I_GCPO_TRACEBACK", raising=False)
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"
    monkeypatch.setenv("T2I_GCPO_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.main(["probe"])


def test_a_training_that_diverged_is_no_usage_error(command: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    def diverge(argv: list[str]) -> None:
        raise FloatingPointError("the loss was not finite")

    command(diverge)
    assert cli.main(["probe"]) == 1
    assert capsys.readouterr().err == "error: the loss was not finite\n"


@pytest.mark.parametrize(
    ("raised", "status"), [(SystemExit(2), 2), (SystemExit(None), 0), (SystemExit("no"), 1), (KeyboardInterrupt(), 130)]
)
def test_other_ways_out(
    command: Callable, capsys: pytest.CaptureFixture[str], raised: BaseException, status: int
) -> None:
    def leave(argv: list[str]) -> None:
        raise raised

    command(leave)
    assert cli.main(["probe"]) == status


def test_a_defect_keeps_its_traceback(command: Callable) -> None:
    def fail(argv: list[str]) -> None:
        raise KeyError("defect")

    command(fail)
    with pytest.raises(KeyError, match="defect"):
        cli.main(["probe"])


def test_the_installed_command_refuses_a_typo_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "t2i_gcpo.cli", "prompts", "shapes:tset", "--out", "/nowhere/x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: shapes:tset") and "Traceback" not in done.stderr


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
def test_what_one_process_does_is_not_done_by_several_of_a_torchrun(
    rank: str,
    said: int,
    command: Callable[[Callable[[list[str]], object]], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They would write the same files; one of them says so."""
    done: list[object] = []
    command(done.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", rank)
    for size, status in (("2", 2), ("1", 0)):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert cli.main(["probe"]) == status
    assert done == [[]]
    assert capsys.readouterr().err.count("error: torchrun started 2 processes, and probe is the work of one") == said
