"""The configuration reference, written from the code.

`python -m t2i_gcpo.commands.options.reference docs/configuration.md`.

The options of `t2i-gcpo train` are the dataclasses of `config.py`: names, types, defaults and attribute docstrings.
What a number may be is asked of the dataclass itself: it is built with a number that is too small and one that is too
large, and says what it must be. The options of the other commands are those of their argparse parsers; of the scorers,
their arguments.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import rewards
from t2i_gcpo.cli import COMMANDS, GROUPS
from t2i_gcpo.commands import benchmark
from t2i_gcpo.commands.options.arguments import TrainCommand
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.training.checkpoint import MAY_CHANGE

HEAD = """# Configuration

*Written by `make docs` from the code, and kept equal to it by a test. Change the dataclasses that `t2i_gcpo/commands/options/config.py` is composed of, not this page.*

An option of `t2i-gcpo train` has one name: `optim.lr` below is `--optim.lr 1e-5` on the command line and `optim: {lr: 1e-5}` in a YAML that
`--config` names. On the command line, `-` and `_` are the same. A YAML holds only what differs from the defaults, the command line overrides it, and
`t2i-gcpo train --print-config` shows what both add up to. An unknown name or a value that is not allowed ends the command with a hint.

A text becomes a value by the type in the column *allowed*, in both places alike: `7e12345` is a revision for `generator.revision`, and `off` is one of
the words of `generator.compile`. `true`, `on`, `yes` and `false`, `off`, `no` are truth values, in any case; NaN and infinity are no numbers. `null` is
no value, where the type allows it; the word itself is `"null"` in a YAML and `\\null` on the command line. A `~` at the start of a path is the home folder. A
value that is more than one text, such as the parts of a composite reward, is written on the command line as YAML on one line: `--reward.rewards:='{clip: {weight: 2}}'`.
The secret options of a scorer (`token`, `password`, `secret`, `credentials`, `api_key`, `access_key`) are used and never written.
"""
COMMANDS_HEAD = """
## The commands

`t2i-gcpo COMMAND --help` prints the same; `t2i-gcpo --help` lists the commands, `t2i-gcpo --version` prints the version."""
TRAIN_NOTE = "All options above, and the following. A run that is resumed may change {free}, and no other option."
REWARDS_HEAD = """
### The scorers' options

Here with their defaults. They are further keys of `reward` in a YAML, `--reward.KEY VALUE` on the command line, and keyword arguments of
`rewards.load`."""
#: Group of options or command -> what its section says besides.
NOTES = {
    "algorithm": "`algorithm.name` sets all the others to those of its row in [the table](algorithms.md); what they "
    "do: [the method](method.md).",
    "reward": "What each scorer measures: [rewards](rewards.md).",
    "study": "[Studies](studies.md) says how the intervals are made.",
}

TOO_SMALL, TOO_LARGE = -1, 10**9
#: Function that reads an option of argparse -> what it takes, in words.
KINDS = {
    "home_path": "path",
    "int": "whole number",
    "positive": "whole number, at least 1",
    "count": "whole number, at least 0",
    "seed": "whole number, at least 0",
    "port": "whole number, 0 to 65535",
    "float": "number",
    "finite": "number",
}
NAMES = {int: "whole number", float: "number", str: "text", bool: "true, false"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m t2i_gcpo.commands.options.reference", description=__doc__)
    parser.add_argument("out", type=home_path, help="file to write")
    parser.parse_args(argv).out.write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """The whole page, as Markdown."""
    default = TrainConfig()
    parts = [HEAD, "## The run", *_table(default, "")]
    for field in dataclasses.fields(default):
        value = vars(default)[field.name]
        if dataclasses.is_dataclass(value):
            parts += _group(value, field.name)
        if field.name == "reward":
            parts += [REWARDS_HEAD, *_rewards()]
    parts.append(COMMANDS_HEAD)
    parts += _rows(
        ["command", "what it does"], ([f"[`{name}`](#{_anchor(name)})", text] for name, (_, text) in COMMANDS.items())
    )
    for name in COMMANDS:
        parts += _command(name)
    return "\n".join(parts) + "\n"


# -- the options of a run ----------------------------------------------------------------------------------------------


def _group(options: Any, path: str) -> Iterator[str]:
    """The section of a group of options, and those of the groups in it."""
    yield " ".join([f"\n## `{path}`\n\n{_line(inspect.getdoc(type(options)) or '')}", NOTES.get(path, "")]).rstrip()
    yield from _table(options, f"{path}.")
    for field in dataclasses.fields(options):
        value = vars(options)[field.name]
        if dataclasses.is_dataclass(value):
            yield from _group(value, f"{path}.{field.name}")


def _table(options: Any, prefix: str) -> Iterator[str]:
    texts, hints = docstrings(type(options)), get_type_hints(type(options))
    rows = []
    for field in dataclasses.fields(options):
        value = vars(options)[field.name]
        if not dataclasses.is_dataclass(value) and not isinstance(value, dict):
            kind = ", ".join(filter(None, [type_name(hints[field.name]), allowed(options, field.name)]))
            rows.append([f"`{prefix}{field.name}`", kind, f"`{_yaml(value)}`", texts[field.name]])
    yield from _rows(["option", "allowed", "default", "what it is"], rows)


def docstrings(kind: type) -> dict[str, str]:
    """Map each field of a class, inherited ones included, to the docstring below it, on one line."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            texts |= _own_docstrings(base)
    return texts


def _own_docstrings(kind: type) -> dict[str, str]:
    """Map each field that a class declares itself to its docstring."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    texts = {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for field, text in itertools.pairwise(body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                texts[name] = _line(docstring)
    return texts


def type_name(hint: Any) -> str:
    """A field's type in a reader's words; of a Literal, its values."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if get_origin(hint) is tuple:
        return f"list of {type_name(parts[0])}" if parts[-1] is Ellipsis else f"{len(parts)} × {type_name(parts[0])}"
    if NoneType in parts:
        return f"{type_name(next(part for part in parts if part is not NoneType))} or null"
    if parts:  # a union
        return ", ".join(map(type_name, parts))
    return NAMES[hint]


def allowed(options: Any, name: str) -> str:
    """Return what a number must be, in the words of the ValueError for one that is too small or too large."""
    default, hint = vars(options)[name], get_type_hints(type(options))[name]
    if not {int, float} & {hint, *get_args(hint)}:
        return ""
    found = []
    for probe in (TOO_SMALL, TOO_LARGE):
        value = (probe,) * len(default) if isinstance(default, tuple) else probe
        try:
            dataclasses.replace(options, **{name: value})
        except ValueError as error:
            found += re.findall(r"must be (.+)$", str(error))
    return ", ".join(dict.fromkeys(found))


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return "[" + ", ".join(map(_yaml, value)) + "]" if isinstance(value, tuple) else str(value)


def _rewards() -> Iterator[str]:
    rows = []
    for name in rewards.available():
        arguments = inspect.signature(rewards.registry.find(name)).parameters.values()
        options = [p.name if p.default is p.empty else f"{p.name}: {_yaml(p.default)}" for p in arguments]
        rows.append([f"`{name}`", ", ".join(f"`{option}`" for option in options)])
    yield from _rows(["scorer", "options"], rows)


# -- the commands ------------------------------------------------------------------------------------------------------


def parsers(command: str) -> dict[str, argparse.ArgumentParser]:
    """Return the words after `t2i-gcpo` -> their parser; several for a command with subcommands, none for `train`."""
    if command == "train":
        return {}
    module = importlib.import_module(COMMANDS[command][0].split(":")[0])
    if command in GROUPS:
        return {f"{command} {name}": parser for name, parser in module.parsers().items()}
    if command == "eval":
        return {command: module.parser(), f"{command} {benchmark.OPTION}": benchmark.parser()}
    return {command: module.parser()}


def _command(command: str) -> Iterator[str]:
    text = COMMANDS[command][1]
    yield " ".join([f"\n### `t2i-gcpo {command}`\n\n{text[0].upper()}{text[1:]}.", NOTES.get(command, "")]).rstrip()
    if command == "train":
        texts = docstrings(TrainCommand)
        flags = ((f"--{name.replace('_', '-')}", texts[name]) for name in ("config", "resume", "print_config"))
        yield "\n" + TRAIN_NOTE.format(free=", ".join(f"`{name}`" for name in MAY_CHANGE))
        yield from _rows(["option", "what it is"], ([f"`{flag}`", text] for flag, text in flags))
    for name, parser in parsers(command).items():
        if name != command:
            yield f"\n`t2i-gcpo {name}`"
        if parser.formatter_class is argparse.RawDescriptionHelpFormatter:  # a text that is laid out by its author
            yield f"\n```text\n{(parser.description or '').strip()}\n```"
        rows = [_action(action, parser) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
        if rows:
            yield from _rows(["option", "allowed", "default", "what it is"], rows)


def _action(action: argparse.Action, parser: argparse.ArgumentParser) -> list[str]:
    """A row of an option's table."""
    name = ", ".join(action.option_strings) or action.dest.upper()
    flag = action.nargs == 0
    kind = "" if flag else getattr(action.type, "__name__", "text").replace("str", "text").lower()
    kind = KINDS.get(kind, kind)
    if action.choices is not None and action.metavar is None:
        kind = ", ".join(f"`{choice}`" for choice in action.choices)
    kind += {"+": ", one or more", "*": ", any number"}.get(str(action.nargs), "")
    needed = [group._group_actions for group in parser._mutually_exclusive_groups if group.required]
    alternatives = next((group for group in needed if action in group), [])
    default = "*needed*" if action.required else "" if flag or action.default in (None, []) else f"`{action.default}`"
    text = _line((action.help or "") % {**vars(action), "prog": parser.prog})
    if alternatives:
        default = "*one of " + ", ".join(f"`{other.option_strings[0]}`" for other in alternatives) + "*"
    text = text.removesuffix(f"(default: {action.default})").rstrip()
    return [f"`{name}`", "flag" if flag else kind, default, text]


# -- Markdown ----------------------------------------------------------------------------------------------------------


def _rows(columns: list[str], rows: Any) -> Iterator[str]:
    yield "\n| " + " | ".join(columns) + " |"
    yield "|" + " --- |" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _line(text: str) -> str:
    return " ".join(text.split())


def _anchor(command: str) -> str:
    return f"t2i-gcpo-{command}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
