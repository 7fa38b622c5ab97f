"""docs/configuration.md: it is what the code says, and what the code says is right."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from t2i_gcpo.cli import COMMANDS
from t2i_gcpo.commands.options import reference
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.training.options import OptimConfig

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


@dataclass(frozen=True)
class Options:
    """A group."""

    size: int | None = 3
    """How large it is,
    in metres."""
    pair: tuple[float, float] = (0.5, 0.5)
    """Two shares."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    names: tuple[str, ...] = ()
    """Some | names."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 2:
            raise ValueError(f"size is {self.size}; it must be at least 2")
        if not all(0 <= value <= 1 for value in self.pair):
            raise ValueError(f"pair is {self.pair}; each must be in [0, 1]")


def test_the_committed_page_is_what_the_code_gives_now() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.page(), (
        "run: python -m t2i_gcpo.commands.options.reference docs/configuration.md"
    )


def test_a_row_by_hand() -> None:
    assert list(reference._table(Options(), "group.")) == [
        "\n| option | allowed | default | what it is |",
        "| --- | --- | --- | --- |",
        "| `group.size` | whole number or null, at least 2 | `3` | How large it is, in metres. |",
        "| `group.pair` | 2 × number, in [0, 1] | `[0.5, 0.5]` | Two shares. |",
        "| `group.kind` | `a`, `b` | `a` | Which. |",
        "| `group.names` | list of text | `[]` | Some \\| names. |",
    ]


def test_what_a_number_must_be_comes_from_both_ends() -> None:
    assert reference.allowed(OptimConfig(), "lr") == "above 0"
    assert reference.allowed(OptimConfig(), "min_ratio") == "in [0, 1]"
    assert reference.allowed(OptimConfig(), "schedule") == ""


def test_every_option_has_its_row_and_every_command_its_section() -> None:
    def names(options: Any, prefix: str = "") -> list[str]:
        found = []
        for field in fields(options):
            value = getattr(options, field.name)
            if is_dataclass(value):
                found += names(value, f"{prefix}{field.name}.")
            elif not isinstance(value, dict):  # the scorer's options have a table of their own
                found.append(prefix + field.name)
        return found

    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_.]+)` \|.*\|.*\|.*[^ |] \|$", text, re.MULTILINE)
    assert set(names(TrainConfig())) <= set(rows)
    assert [f"t2i-gcpo {name}" for name in COMMANDS] == re.findall(r"^### `(t2i-gcpo [a-z-]+)`$", text, re.MULTILINE)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_every_command_has_a_parser_under_its_own_name(command: str) -> None:
    found = reference.parsers(command)
    assert found and all(parser.prog == f"t2i-gcpo {name}" for name, parser in found.items())


def test_an_option_of_a_command_by_hand() -> None:
    parser = argparse.ArgumentParser(prog="probe")
    parser.add_argument("--num", type=int, default=4, help="images (default: %(default)s)")
    parser.add_argument("--names", nargs="+", default=[], help="50 %% of them (default: all)")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--on", action="store_true", help="now")
    group.add_argument("--mode", choices=("x", "y"), required=False)
    _, *actions = parser._actions
    assert [reference._action(action, parser) for action in actions] == [
        ["`--num`", "whole number", "`4`", "images"],
        ["`--names`", "text, one or more", "", "50 % of them (default: all)"],
        ["`--on`", "flag", "*one of `--on`, `--mode`*", "now"],
        ["`--mode`", "`x`, `y`", "*one of `--on`, `--mode`*", ""],
    ]
