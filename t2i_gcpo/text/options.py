"""Declare and read the options of `t2i-gcpo text train`.

They are those of the run and all of `GCPOConfig`'s, from YAML files and the command line.

A YAML's keys become arguments that stand before the user's, so one parser sees both and the command line wins.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_gcpo.utils import yaml_files

if TYPE_CHECKING:
    from t2i_gcpo.text.config import GCPOConfig


def _help(text: str) -> dict[str, Any]:
    return {"help": text}


@dataclass
class TextRun:
    """Says what a run trains, on which data, and how it is evaluated."""

    model: str = field(default="text-mini", metadata=_help("text-mini, a folder, or a repository of the hub."))
    data: str = field(
        default="arithmetic:train",
        metadata=_help("arithmetic:train, a .jsonl, .json, .csv or .parquet file, or NAME:SPLIT of the hub."),
    )
    data_limit: int = field(default=20000, metadata=_help("Questions at most; 0: all there are."))
    eval_data: str = field(default="", metadata=_help("Questions to evaluate on before and after; empty: none."))
    eval_limit: int = field(default=300, metadata=_help("Questions of eval_data at most; 0: all."))
    eval_seed: int = field(default=0, metadata=_help("Seed of the evaluations' sampling."))
    eval_batch: int = field(default=100, metadata=_help("Completions that an evaluation samples at once."))
    eval_before: bool = field(default=True, metadata=_help("Evaluate before the training as well."))
    reward: str = field(default="arithmetic", metadata=_help("arithmetic, math, or your own as module:callable."))
    system: str = field(default="", metadata=_help("System message of chats that have none."))
    lora_rank: int = field(
        default=0, metadata=_help("Rank of a LoRA adapter on all linear layers; 0 trains the whole model.")
    )
    lora_alpha: int = field(default=32, metadata=_help("Scale of the LoRA adapter."))
    max_completions: int = field(
        default=0,
        metadata=_help(
            "Training ends after the update with which so many completions were sampled, discarded ones included; 0: "
            "after max_steps alone."
        ),
    )
    resume: bool = field(default=False, metadata=_help("Go on from the newest checkpoint of the run in output_dir."))

    def __post_init__(self) -> None:
        for name in ("data_limit", "eval_limit", "eval_seed", "lora_rank", "max_completions"):
            if self.__dict__[name] < 0:
                raise ValueError(f"{name} is {self.__dict__[name]}; it must be at least 0")
        if self.resume and self.max_completions:
            raise ValueError(
                "max_completions counts from the start of a process, so it cannot be used with resume; set max_steps"
            )
        for name in ("eval_batch", "lora_alpha"):
            if self.__dict__[name] < 1:
                raise ValueError(f"{name} is {self.__dict__[name]}; it must be at least 1")


def parse(argv: Sequence[str]) -> tuple[TextRun, GCPOConfig, str]:
    """Read the options of one run; the third value is those that were given, as YAML.

    ValueError: a file that is no mapping of options, or an unknown option, with the nearest one.
    """
    from transformers import HfArgumentParser

    from t2i_gcpo.text.config import GCPOConfig

    files, rest = _files(argv)
    parser = HfArgumentParser([TextRun, GCPOConfig], prog="t2i-gcpo text train", description=DESCRIPTION)
    if "-h" in rest or "--help" in rest:
        parser.print_help()
        raise SystemExit(0)
    given: dict[str, Any] = {}
    for file in files:
        given |= _read(file)
    given |= _from_command_line(rest)
    run, config = parser.parse_args_into_dataclasses(_arguments(given))
    given.pop("resume", None)
    return run, config, yaml_files.dump(given)


DESCRIPTION = (
    "Fine-tune a causal language model with GCPO, on TRL. --config FILE (more than one is allowed, later ones win) "
    "reads options from YAML; the "
    "command line wins. All options of TRL's GRPOConfig can be given."
)


def check_option(name: str, where: str) -> None:
    """Raise a ValueError for a name that is no option, with the nearest one."""
    from t2i_gcpo.text.config import GCPOConfig

    known = [f.name for kind in (TextRun, GCPOConfig) for f in dataclasses.fields(kind)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; `t2i-gcpo text train --help` lists them"
        raise ValueError(f"{where}: there is no option {name!r}{hint}")


def _files(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate the files of `--config` from the other arguments."""
    files, rest, waiting = [], [], False
    for argument in argv:
        if waiting:
            files.append(Path(argument).expanduser())
            waiting = False
        elif argument == "--config":
            waiting = True
        elif argument.startswith("--config="):
            files.append(Path(argument.removeprefix("--config=")).expanduser())
        else:
            rest.append(argument)
    if waiting:
        raise ValueError("--config needs the path of a YAML file")
    return files, rest


def _read(file: Path) -> dict[str, Any]:
    options = yaml_files.load(file)
    if not isinstance(options, dict):
        raise ValueError(f"{file} is no mapping of options to values")
    for name in options:
        check_option(str(name), str(file))
    return options


def _from_command_line(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `--name value`, `--name=value` and the bare `--name` of a switch. ValueError for anything else."""
    given: dict[str, Any] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            check_option(name, "the command line")
            given[name] = _value(value) if equals else True
        elif not name:
            raise ValueError(f"{argument!r} stands where an option is expected; options are --name value")
        else:
            value = _value(argument)
            given[name] = value if given[name] is True else [*_listed(given[name]), value]
    return given


def _arguments(options: dict[str, Any]) -> list[str]:
    arguments = []
    for name, value in options.items():
        if value is not None:
            texts = [json.dumps(v) if isinstance(v, dict | bool) else str(v) for v in _listed(value)]
            arguments += [f"--{name}", *texts]
    return arguments


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _value(text: str) -> Any:
    return yaml_files.Scalar(text).value if text else ""
