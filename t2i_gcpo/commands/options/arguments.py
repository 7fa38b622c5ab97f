"""Command line and YAML -> `TrainConfig`, and back.

A YAML is flattened to dotted arguments that stand *before* the user's, so that one parser sees both: the command line wins, and a
typo in a YAML gets the same hint as one on the command line. Four things are settled before that parser runs:

* `--config FILE` (more than one is allowed, later ones win) and, with `--resume`, the run folder's own config.yaml;
* the bare flags `--resume` and `--print-config`;
* `--algorithm.name`, the last one given, because its row of the table is where the other `--algorithm.*` defaults come from;
* `--reward.KEY`, the scorer's own keyword arguments, which no dataclass lists.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from t2i_gcpo.algorithms import resolve
from t2i_gcpo.commands.options.config import DEFAULT_ALGORITHM, RewardConfig, TrainConfig
from t2i_gcpo.utils.nested import flatten

CONFIG_NAME = "config.yaml"
_FLAGS = {"--resume", "--print-config"}


class Loader(yaml.SafeLoader):
    """YAML 1.2's floats: YAML 1.1 reads 1e-4 as a string, and everybody means the number."""


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `Loader` would read as numbers."""


for _class in (Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


@dataclass(frozen=True)
class TrainCommand:
    """Fine-tune a text-to-image generator. Options of a YAML come first, the command line overrides them."""

    settings: Annotated[TrainConfig, tyro.conf.arg(name="")]
    config: tuple[str, ...] = ()
    """YAML files of options, `--config FILE`; of several, later ones win."""
    resume: Annotated[bool, tyro.conf.arg(metavar="")] = False
    """Bare flag: go on from the newest whole checkpoint of the run in --output-dir, with that run's options."""
    print_config: Annotated[bool, tyro.conf.arg(metavar="")] = False
    """Bare flag: print the resolved options as YAML and exit."""


def parse(argv: Sequence[str]) -> TrainCommand:
    """Arguments of `t2i-gcpo train` -> options. Exits with status 2 and a hint where tyro refuses one.

    Raises ValueError for an unreadable YAML or an unknown algorithm, FileNotFoundError for a missing file or run folder.
    """
    user = list(argv)
    files, user = _take_configs(user)
    flags = {token.replace("_", "-") for token in user} & _FLAGS
    user = [token for token in user if token.replace("_", "-") not in _FLAGS]
    arguments = [token for file in files for token in read_arguments(file)]
    if "--resume" in flags:
        folder = _last(arguments + user, "--output-dir") or TrainConfig().output_dir
        own = Path(folder) / CONFIG_NAME
        if not own.is_file():
            raise FileNotFoundError(
                f"no run to resume in {folder}: {own} is missing; leave --resume out to start a run there"
            )
        arguments = read_arguments(own) + arguments

    reward, rest = take_reward_options(arguments + user)
    name = _last(rest, "--algorithm.name") or DEFAULT_ALGORITHM
    default = TrainCommand(TrainConfig(algorithm=resolve(name), reward=reward), config=tuple(map(str, files)))
    command = tyro.cli(
        TrainCommand, args=rest, default=default, prog="t2i-gcpo train", config=(tyro.conf.FlagConversionOff,)
    )
    return replace(command, resume="--resume" in flags, print_config="--print-config" in flags)


def load(path: str | Path) -> TrainConfig:
    """The options in a YAML over the defaults: a run's config.yaml gives exactly the options it ran with."""
    return parse(["--config", str(path)]).settings


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """Options -> nested mapping of plain values, as a YAML holds them."""
    mapping = _plain(dataclasses.asdict(config))
    mapping["reward"].update(mapping["reward"].pop("options"))
    return mapping


def dump(config: TrainConfig) -> str:
    """Options -> YAML text that `load` reads back as an equal object."""
    return yaml.dump(to_mapping(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_arguments(path: str | Path) -> list[str]:
    """A YAML file -> dotted arguments. ValueError names the file and line of a mistake."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such config file: {path}")
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if mapping is None:
        return []
    if not isinstance(mapping, dict):
        raise ValueError(f"{path} holds a {type(mapping).__name__}; it must be a mapping of options, e.g. `steps: 100`")
    reward = mapping.pop("reward", None)
    arguments = []
    if reward is not None:
        if not isinstance(reward, dict):
            raise ValueError(f"{path}: reward is {reward!r}; write `reward: {{name: {reward}}}`")
        # The name first: it drops the options of the reward before it.
        for key in sorted(reward, key=lambda key: key != "name"):
            value = reward[key] if key == "name" else json.dumps(reward[key], ensure_ascii=False, default=str)
            arguments.append(f"--reward.{key}={value}")
    for name, value in flatten(_without_empty_groups(mapping)).items():
        arguments += argument(path, name, value)
    return arguments


def argument(path: Path, name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, list):
        if any(isinstance(item, (list, dict)) for item in value):
            raise ValueError(f"{path}: {name} is {value!r}; a list of options holds plain values only")
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]


def _without_empty_groups(mapping: dict[str, Any]) -> dict[str, Any]:
    """Leave out `optim:` with nothing below it (all its options commented out), which YAML reads as null."""
    groups = {
        f.name for f in dataclasses.fields(TrainConfig) if dataclasses.is_dataclass(getattr(TrainConfig(), f.name))
    }
    return {key: value for key, value in mapping.items() if value is not None or key not in groups}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _last(arguments: Sequence[str], flag: str) -> str | None:
    """The value of the last `flag VALUE` or `flag=VALUE`."""
    found = None
    for index, token in enumerate(arguments):
        head, equals, value = token.partition("=")
        if head.replace("_", "-") == flag:
            found = value if equals else arguments[index + 1] if index + 1 < len(arguments) else None
    return found


def _take_configs(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Split `--config FILE` off the arguments."""
    files, rest, tokens = [], [], iter(arguments)
    for token in tokens:
        if token == "--config":
            file = next(tokens, None)
            if file is None or file.startswith("--"):
                raise ValueError("--config needs a file, e.g. --config configs/quickstart.yaml")
            files.append(Path(file))
        elif token.startswith("--config="):
            files.append(Path(token.removeprefix("--config=")))
        else:
            rest.append(token)
    return files, rest


def take_reward_options(arguments: list[str]) -> tuple[RewardConfig, list[str]]:
    """Split `--reward.KEY VALUE` off the arguments. Another reward's name drops the options that came before it."""
    reward, rest, index = RewardConfig(), [], 0
    while index < len(arguments):
        token = arguments[index]
        index += 1
        if not token.startswith("--reward."):
            rest.append(token)
            continue
        key, equals, text = token.removeprefix("--reward.").partition("=")
        values = [text] if equals else []
        while not equals and index < len(arguments) and not arguments[index].startswith("--"):
            values.append(arguments[index])
            index += 1
        if not values:
            raise ValueError(f"--reward.{key} needs a value")
        if key == "name":
            reward = RewardConfig(values[-1], reward.options if values[-1] == reward.name else {})
        else:
            read = [_value(value) for value in values]
            option = read[0] if len(read) == 1 else read
            reward = RewardConfig(reward.name, {**reward.options, key.replace("-", "_"): option})
    return reward, rest


def _value(text: str) -> Any:
    """Text of a reward's option -> number, boolean, null, list, mapping, else the text itself."""
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        return text
