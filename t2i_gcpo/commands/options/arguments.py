"""Command line and YAML -> `TrainConfig`, and back.

A YAML is flattened to dotted arguments that stand *before* the user's, so that one parser sees both: the command line
wins, and a typo in a YAML gets the same hint as one on the command line. Four things are settled before that parser
runs:

* `--config FILE` (more than one is allowed, later ones win) and, with `--resume`, the run folder's own config.yaml;
* the bare flags `--resume` and `--print-config`;
* `--algorithm.name`, the last one given, because its row of the table is where the other `--algorithm.*` defaults come
    from;
* `--reward.KEY`, the scorer's own keyword arguments, which no dataclass lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from t2i_gcpo.algorithms import resolve
from t2i_gcpo.commands.options.config import DEFAULT_ALGORITHM, RewardConfig, TrainConfig
from t2i_gcpo.commands.options.scorers import scorer_options
from t2i_gcpo.commands.options.values import as_argument, convert, from_argument, members
from t2i_gcpo.utils import yaml_files
from t2i_gcpo.utils.nested import flatten
from t2i_gcpo.utils.secret_options import without_secrets
from t2i_gcpo.utils.yaml_files import Scalar

CONFIG_NAME = "config.yaml"
_FLAGS = {"--resume", "--print-config"}


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

    Raises ValueError for an unreadable YAML or an unknown algorithm, FileNotFoundError for a missing file or run
    folder.
    """
    user = list(argv)
    files, user = _take_configs(user)
    flags = {token.replace("_", "-") for token in user} & _FLAGS
    user = [token for token in user if token.replace("_", "-") not in _FLAGS]
    arguments = [token for file in files for token in read_arguments(file)]
    if "--resume" in flags:
        folder = _last(arguments + user, "--output-dir") or TrainConfig().output_dir
        own = Path(folder).expanduser() / CONFIG_NAME
        if not own.is_file():
            raise FileNotFoundError(
                f"no run to resume in {folder}: {own} is missing; leave --resume out to start a run there"
            )
        arguments = read_arguments(own) + arguments

    reward, rest = take_reward_options(arguments + user)
    name = _last(rest, "--algorithm.name") or DEFAULT_ALGORITHM
    default = TrainCommand(TrainConfig(algorithm=resolve(name), reward=reward), config=tuple(map(str, files)))
    command = tyro.cli(
        TrainCommand,
        args=rest,
        default=default,
        prog="t2i-gcpo train",
        config=(tyro.conf.FlagConversionOff,),
        registry=_declared_types(),
    )
    settings = replace(command.settings, output_dir=str(Path(command.settings.output_dir).expanduser()))
    return replace(command, settings=settings, resume="--resume" in flags, print_config="--print-config" in flags)


def _declared_types() -> ConstructorRegistry:
    """Let tyro read text, numbers and truth values as `values.py` does."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kinds = members(info.type)
        types = tuple(kind for kind in kinds if kind in METAVARS)
        words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        rest = [kind for kind in kinds if kind not in METAVARS and get_origin(kind) is not Literal]
        if rest or not types or kinds == (NoneType,):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="|".join([*words, *(METAVARS[kind] for kind in types)]),
            instance_from_str=lambda given: _read_word(given[0], kinds),
            is_instance=lambda value: value in words or isinstance(value, (*types, int) if float in types else types),
            str_from_instance=lambda value: [_word(value)],
        )

    return registry


#: Type -> how the help names it.
METAVARS: dict[Any, str] = {str: "TEXT", int: "INT", float: "FLOAT", bool: "true|false", NoneType: "null"}


def _read_word(word: str, kinds: tuple[Any, ...]) -> Any:
    """The value of one word of the command line. ValueError says what it is and what it must be."""
    try:
        return convert(from_argument(word), kinds)
    except ValueError as error:
        raise ValueError(f"it is {word!r}; {error}") from error


def _word(value: Any) -> str:
    """A value as the help shows it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def load(path: str | Path) -> TrainConfig:
    """The options in a YAML over the defaults: a run's config.yaml gives exactly the options it ran with."""
    return parse(["--config", str(path)]).settings


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """Options -> nested mapping of plain values, as a YAML holds them; secret ones are left out."""
    mapping = _plain(dataclasses.asdict(config))
    mapping["reward"].update(mapping["reward"].pop("options"))
    return without_secrets(mapping)


#: A key at the top of the YAML files of other commands -> the command.
OTHERS: dict[str, str] = {"base": "t2i-gcpo text study", "arms": "t2i-gcpo study", "model": "t2i-gcpo text train"}


def dump(config: TrainConfig) -> str:
    """Write options as YAML text that `load` reads back as an equal object.

    Secret options are not written.
    """
    return yaml_files.dump(to_mapping(config))


def read_arguments(path: str | Path) -> list[str]:
    """A YAML file -> dotted arguments. ValueError names the file and line of a mistake."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such config file: {path}")
    tree = yaml_files.load_scalars(path)
    if isinstance(tree, Scalar) and tree.is_null:
        return []
    if not isinstance(tree, dict):
        kind = type(yaml_files.plain(tree)).__name__
        raise ValueError(f"{path} holds a {kind}; it must be a mapping of options, e.g. `steps: 100`")
    for key, command in OTHERS.items():
        if key in tree:
            raise ValueError(f"{path} has the key {key}: it is a file for {command}, and no options of t2i-gcpo train")
    reward = tree.pop("reward", None)
    arguments = []
    if isinstance(reward, dict):
        # The name first: it drops the options of the reward before it.
        for key in sorted(reward, key=lambda key: key != "name"):
            arguments += reward_argument(path, key, reward[key])
    elif reward is not None and not reward.is_null:
        raise ValueError(f"{path}: reward is {reward.text!r}; write `reward: {{name: {reward.text}}}`")
    for name, value in flatten(_without_empty_groups(tree)).items():
        arguments += argument(path, name, value)
    return arguments


def argument(path: Path, name: str, value: Scalar | list[Scalar]) -> list[str]:
    """An option of a YAML as words of the command line. ValueError for a list that holds more than single values."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, Scalar):
        return [f"{flag}={as_argument(value)}"]
    if not all(isinstance(item, Scalar) for item in value):
        raise ValueError(f"{path}: {name} is {yaml_files.plain(value)!r}; a list of options holds plain values only")
    return [flag, *map(as_argument, value)]


def reward_argument(path: Path, key: str, value: Any) -> list[str]:
    """Turn a scorer's option of a YAML into a word of the command line.

    `--reward.KEY=TEXT`, or `--reward.KEY:=YAML` for what is no plain text.
    """
    if isinstance(value, Scalar) and (key == "name" or not value.quoted):
        if key == "name" and value.is_null:
            raise ValueError(f"{path}: reward.name has no value; name a scorer, e.g. geneval")
        return [f"--reward.{key}={as_argument(value)}"]
    return [f"--reward.{key}:={yaml_files.flow(value)}"]


def _without_empty_groups(mapping: dict[str, Any]) -> dict[str, Any]:
    """Leave out `optim:` with nothing below it (all its options commented out), which is a null."""
    groups = {f.name for f in dataclasses.fields(TrainConfig) if dataclasses.is_dataclass(vars(TrainConfig())[f.name])}
    return {
        key: value
        for key, value in mapping.items()
        if key not in groups or not (isinstance(value, Scalar) and value.is_null)
    }


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
    """Split `--reward.KEY VALUE` off the arguments. Another reward's name drops the options that came before it.

    ValueError: a value that is not of the type that the scorer declares for its option.
    """
    default, rest, index = RewardConfig(), [], 0
    name, options = default.name, dict[str, Any](default.options)
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
            name, options = values[-1], options if values[-1] == name else {}
        elif key.endswith(":"):
            options[key.removesuffix(":").replace("-", "_")] = _structured(key, text)
        else:
            read = [from_argument(value) for value in values]
            options[key.replace("-", "_")] = read[0] if len(read) == 1 else read
    return RewardConfig(name, scorer_options(name, options)), rest


def _structured(key: str, text: str) -> Any:
    """The value of `--reward.KEY:=YAML`."""
    try:
        return yaml_files.parse_scalars(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--reward.{key}= takes YAML on one line, and {text!r} is none: {error}") from error
