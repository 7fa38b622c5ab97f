"""What the pages quote from the code is there: commands with their options, options of a run, messages."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from helpers import pages
from helpers.pages import DOCS, PAGES, ROOT
from t2i_gcpo import cli
from t2i_gcpo.cli import COMMANDS
from t2i_gcpo.commands import benchmark
from t2i_gcpo.commands.options import arguments, reference
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.commands.options.shared import take_reward

#: What stands in a page for what is filled in.
GAP = "…"


# -- commands ----------------------------------------------------------------------------------------------------------


def check_command(line: str, folder: Path = ROOT) -> None:
    """Parse a command line as the command would, and run nothing. SystemExit or ValueError: it would be refused."""
    name, *rest = shlex.split(line, comments=True)[1:]
    if name.startswith("-"):
        return
    if name not in COMMANDS:
        raise ValueError(f"there is no command {name}: {line}")
    if name == "plan":  # takes all of train's options
        _, rest = reference.parsers(name)[name].parse_known_args(rest)
    if name in ("train", "plan"):
        configs = [word for word in rest if word.startswith("configs/")]
        assert all((folder / config).is_file() for config in configs), line
        # --resume reads the options of a run that a reader has, and this test has not.
        arguments.parse([str(folder / word) if word in configs else word for word in rest if word != "--resume"])
        return
    if name in cli.GROUPS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name == "eval" and benchmark.asked(rest):
        name = f"eval {benchmark.OPTION}"
        _, rest = take_reward(["--reward", "any", *rest])
    if name == "text train":  # takes all of TRL's options, so only a TRL that is installed can say
        check_text_training([str(folder / word) if word.startswith("configs/") else word for word in rest])
        return
    if name in ("score", "serve-rewards"):
        _, rest = take_reward(rest)
    reference.parsers(name.split()[0])[name].parse_args(rest)
    assert all((folder / word).is_file() for word in rest if word.startswith("configs/")), line


def check_text_training(rest: list[str]) -> None:
    """Parse the options of a `text train`, where TRL is installed."""
    from t2i_gcpo.text import options
    from t2i_gcpo.text.trl_version import require_trl

    try:
        require_trl()
    except ImportError:
        return
    options.parse(rest)


def commands(text: str) -> list[str]:
    """The lines of a code block that call t2i-gcpo, however they are begun."""
    found = (
        re.search(r"(?:^|/|--no-python )(t2i-gcpo .*)", line.split(" | ")[0].strip()) for line in text.splitlines()
    )
    return [line[1] for line in found if line]


def command_lines(page: Path) -> list[str]:
    return [line for language in ("", "bash") for code in pages.blocks(page, language) for line in commands(code)]


WITH_COMMANDS = {page: lines for page in PAGES if (lines := command_lines(page))}
#: Such as `t2i-gcpo eval --seed`: too short to be parsed, long enough to be wrong.
IN_SENTENCES = pages.matching(r"`t2i-gcpo ([^`]+)`")


def test_the_commands_are_seen() -> None:
    assert {"README.md", "demo.md", "studies.md"} <= {page.name for page in WITH_COMMANDS}
    assert sum(map(len, WITH_COMMANDS.values())) > 30 and sum(map(len, IN_SENTENCES.values())) > 30


@pages.each(WITH_COMMANDS)
def test_every_command_is_accepted(page: Path) -> None:
    for line in WITH_COMMANDS[page]:
        try:
            check_command(line)
        except SystemExit as error:
            pytest.fail(f"{line}: refused with status {error.code}")


@pytest.mark.parametrize(
    "line",
    [
        "t2i-gcpo smaple --out x",
        "t2i-gcpo sample --checkpoint janus-mini --prompt x",
        "t2i-gcpo sample --checkpoint janus-mini --prompt x --out x --number 4",
        "t2i-gcpo bench credit --ouput x",
        "t2i-gcpo train --optim.rate 1",
        "t2i-gcpo train --config configs/none.yaml",
        "t2i-gcpo score --images runs --out x.json",
        "t2i-gcpo eval --benchmark dpg --checkpoint janus-mini --prompts x --out y --credit",
    ],
)
def test_a_wrong_command_is_found_out(line: str) -> None:
    with pytest.raises((SystemExit, ValueError, AssertionError)):
        check_command(line)


@pages.each(IN_SENTENCES)
def test_every_command_in_a_sentence_exists_with_its_options(page: Path) -> None:
    for line in IN_SENTENCES[page]:
        name, *rest = line.split()
        assert name in COMMANDS or name.startswith("-") or name == "COMMAND", line
        if name not in ("train", "COMMAND") and not name.startswith("-"):
            parsers = reference.parsers(name)
            known = {
                option for parser in parsers.values() for action in parser._actions for option in action.option_strings
            }
            unknown = {word for word in rest if word.startswith("--")} - known
            if name == "plan":  # takes all of train's options
                arguments.parse([part for word in unknown for part in (word, "configs/quickstart.yaml")])
                unknown = set()
            assert not unknown, line
            if len(parsers) > 1 and rest and rest[0].islower() and not rest[0].startswith("-"):
                assert f"{name} {rest[0]}" in parsers, line


# -- options of a run --------------------------------------------------------------------------------------------------


def has(owner: Any, path: str) -> bool:
    for name in path.replace("-", "_").split("."):
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return True


def module_has(path: str) -> bool:
    """Whether `sampling.mix` is something of t2i_gcpo."""
    module, _, name = path.partition(".")
    try:
        return hasattr(importlib.import_module(f"t2i_gcpo.{module}"), name)
    except ModuleNotFoundError:
        return False


GROUPS = "algorithm|generator|sampling|reward|prompts|optim|logging|checkpoint|evaluate|pictures|watch"
WITH_OPTIONS = pages.matching(rf"(?<![\w/.])(?:--)?((?:{GROUPS})\.[a-z][\w.-]*[a-z0-9])\b")


def test_the_options_are_seen() -> None:
    assert {"algorithms.md", "troubleshooting.md"} <= {page.name for page in WITH_OPTIONS}
    assert sum(map(len, WITH_OPTIONS.values())) > 80


@pages.each(WITH_OPTIONS)
def test_every_option_of_a_run_that_is_named_exists(page: Path) -> None:
    config = TrainConfig()
    for path in WITH_OPTIONS[page]:
        scorers = path.startswith("reward.")  # its options are the scorer's
        a_file = path.endswith((".py", ".md", ".json"))
        assert has(config, path) or scorers or a_file or module_has(path) or path == "generator.sample", path


# -- messages ----------------------------------------------------------------------------------------------------------


@functools.cache
def templates() -> list[str]:
    """Every text in the sources, with a gap for each value that is filled in."""

    def text(node: ast.AST) -> str | None:
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else None
        if isinstance(node, ast.JoinedStr):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
        return None

    sources = [path for package in ("t2i_gcpo", "rewards") for path in sorted((ROOT / package).rglob("*.py"))]
    texts = (text(node) for path in sources for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return [found for found in texts if found]


def test_every_message_that_troubleshooting_quotes_is_in_the_code() -> None:
    quoted = [" ".join(code.split()) for code in pages.blocks(DOCS / "troubleshooting.md", "text")]
    assert len(quoted) > 25
    for message in quoted:
        assert len(message.replace(GAP, "")) > 15, f"too little of a message to be found again: {message}"
        assert any(message in " ".join(template.split()) for template in templates()), message


def test_a_message_that_is_not_in_the_code_is_found_out() -> None:
    assert any("…: the checkpoint of step … was not written" in template for template in templates())
    assert not any("…: the checkpoint of step 3 was not written" in template for template in templates())
