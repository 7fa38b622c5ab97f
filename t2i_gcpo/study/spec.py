"""Reads the file of a study: its trials, each with the arguments of its training, checked before anything runs.

What the file holds is documented in `command.py`.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2i_gcpo.commands.options.arguments import argument, parse, reward_argument
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.utils.secret_options import without_secrets
from t2i_gcpo.utils.yaml_files import Scalar, load_scalars, plain

KEYS = ("out", "config", "seeds", "options", "arms", "grid", "against")
#: What the study gives each trial itself.
OWN = ("seed", "output_dir", "evaluate.seed", "config", "resume", "print_config")
#: A trial's output is a log, where a progress bar is noise; a study may switch it on again.
DEFAULTS = {"logging.progress": Scalar("false")}


@dataclass(frozen=True)
class Trial:
    """One training of a study."""

    arm: str
    group: str
    """The arm and its point of the grid: what is pooled over seeds. Also a folder's name."""
    options: dict[str, Any]
    """The dotted options of the group, as the file gives them."""
    seed: int
    arguments: tuple[str, ...]
    """The arguments of `t2i-gcpo train`."""
    settings: TrainConfig
    """The options that `t2i-gcpo train` makes of them."""
    out: Path
    """The study's folder."""

    @property
    def name(self) -> str:
        return f"{self.group}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.settings.output_dir)

    @property
    def log(self) -> Path:
        return self.out / "logs" / f"{self.name}.log"


@dataclass(frozen=True)
class Study:
    file: Path
    content: dict[str, Any]
    """The content of the file."""
    out: Path
    trials: tuple[Trial, ...]
    baselines: tuple[str, ...] = ()
    """Arms that the others are compared with, at the same point of the grid."""

    @property
    def groups(self) -> dict[str, list[Trial]]:
        """The trials by group, in the file's order."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.trials:
            groups.setdefault(trial.group, []).append(trial)
        return groups

    def compared_with(self, trial: Trial) -> list[str]:
        """Name the groups that a trial's group is compared with.

        The baselines at its point of the grid, for a baseline those before it.
        """
        point, arms = trial.group.removeprefix(trial.arm), self.baselines
        return [f"{arm}{point}" for arm in (arms[: arms.index(trial.arm)] if trial.arm in arms else arms)]


def read(path: str | Path, out: str | Path | None = None) -> Study:
    """Read the trials, seed by seed, so that a study that ends early compares all arms. `out` is before the file's own.

    FileNotFoundError for a missing file or base config; ValueError, naming the place, for a mistake in it or in a
    trial's options.
    """
    path = Path(path).expanduser()
    tree = _content(path)
    content = plain(tree)
    folder = Path(out or content.get("out") or Path("runs", "studies", path.stem)).expanduser()
    seeds, common = _seeds(path, content), _dotted(tree.get("options", {}), f"{path}: options")
    grid = _dotted(tree.get("grid", {}), f"{path}: grid")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: grid: {name} is {plain(values)!r}; give a list of values, e.g. [0, 0.01]")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    trials: list[Trial] = []
    for arm, (config, own) in _arms(path, tree).items():
        for name in grid:
            if name in own or name in common:
                raise ValueError(
                    f"{path}: {name} is in grid and in "
                    f"{f'the arm {arm}' if name in own else 'options'}; leave it in one of them"
                )
        for point in points:
            group = "-".join([arm, *(f"{name}={_text(plain(value))}" for name, value in point.items())])
            arguments = [] if config is None else ["--config", str(config)]
            for layer in (DEFAULTS, common, own, point):
                arguments += _arguments(path, layer)
            options = without_secrets(plain({**common, **own, **point}))
            trials += [_trial(path, arm, group, options, arguments, s, folder) for s in seeds]
    trials.sort(key=lambda trial: seeds.index(trial.seed))
    study = Study(path, without_secrets(content), folder, tuple(trials), _baselines(path, content))
    _check_distinct(study)
    return study


def _content(path: Path) -> dict[str, Any]:
    """Read the file as nested dicts and lists of `Scalar`, its outermost keys checked."""
    if not path.is_file():
        raise FileNotFoundError(f"no such study file: {path}")
    tree = load_scalars(path)
    content = plain(tree)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must be a mapping of {', '.join(KEYS)}")
    unknown = [str(key) for key in content if key not in KEYS]
    if unknown:
        raise ValueError(
            f"{path}: unknown {', '.join(unknown)}; a study has {', '.join(KEYS)}. Options of the training belong "
            "below `options:` or an arm"
        )
    for name in ("out", "config"):
        if name in content and not (isinstance(content[name], str) and content[name]):
            raise ValueError(f"{path}: {name} is {content[name]!r}; it must be a path")
    return dict(tree)


def _seeds(path: Path, content: dict[str, Any]) -> list[int]:
    seeds = content.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"{path}: seeds is {seeds!r}; give a list of whole numbers from 0, e.g. [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"{path}: seeds is {seeds}; a seed that comes twice is the same training twice, name each once"
        )
    return seeds


def _arms(path: Path, tree: dict[str, Any]) -> dict[str, tuple[Path | None, dict[str, Any]]]:
    """Return each arm's base config and options, by its name."""
    arms = tree.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise ValueError(
            f"{path}: arms is {plain(arms)!r}; give at least one, e.g. `arms: {{gcpo: {{algorithm.name: gcpo}}}}`"
        )
    arms_by_name = {}
    for name, options in arms.items():
        where = f"{path}: the arm {name}"
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"{where}: its name becomes a folder's; use letters, digits, and . _ + - after the first")
        if not isinstance(options, dict) or not options:
            raise ValueError(
                f"{where} is {plain(options)!r}; give it options (dotted, e.g. "
                f"`{{algorithm.name: gcpo}}`) or a `config:`"
            )
        options = dict(options)
        config = plain(options.pop("config", tree.get("config")))
        arms_by_name[name] = (None if config is None else _base(path, where, config), _dotted(options, where))
    return arms_by_name


def _baselines(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    against = content.get("against", [])
    names = against if isinstance(against, list) else [against]
    if len(content["arms"]) < 2 and names:
        raise ValueError(f"{path}: against is {against!r}, and there is no other arm to compare with it")
    if any(name not in [*content["arms"]] for name in names) or len({*map(str, names)}) < len(names):
        raise ValueError(
            f"{path}: against is {against!r}; give an arm, or a list of different ones, of {', '.join(content['arms'])}"
        )
    return tuple(names)


def _base(path: Path, where: str, config: Any) -> Path:
    if not isinstance(config, str):
        raise ValueError(f"{where}: config is {config!r}; it must be the path of a training's YAML")
    candidates = [Path(config), path.parent / config]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{where}: no such config file: {' nor '.join(map(str, dict.fromkeys(candidates)))}")


def _dotted(options: Any, where: str) -> dict[str, Any]:
    """Turn nested or dotted options into dotted ones with underscores.

    ValueError for one that comes twice or that the study sets.
    """
    if not isinstance(options, dict):
        raise ValueError(f"{where} is {plain(options)!r}; it must be a mapping of options, e.g. `optim.lr: 1e-4`")
    dotted: dict[str, Any] = {}
    for name, value in _leaves(options):
        if name in OWN:
            raise ValueError(f"{where}: {name} is set by the study (allowed: every other option of t2i-gcpo train)")
        if name in dotted:
            raise ValueError(f"{where}: {name} is there twice, dotted and nested; keep one of them")
        dotted[name] = value
    return dotted


def _leaves(options: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        name = f"{prefix}{key}".replace("-", "_")
        # A mapping below `reward` is the value of one of the scorer's own options.
        if isinstance(value, dict) and not name.startswith("reward."):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _arguments(path: Path, options: dict[str, Any]) -> list[str]:
    """Turn dotted options into arguments.

    The reward's name comes first, as it drops the options of the reward before it.
    """
    arguments: list[str] = []
    for name in sorted(options, key=lambda name: name != "reward.name"):
        if name.startswith("reward."):
            arguments += reward_argument(path, name.removeprefix("reward."), options[name])
        else:
            arguments += argument(path, name, options[name])
    return arguments


def _trial(
    path: Path, arm: str, group: str, options: dict[str, Any], arguments: list[str], seed: int, out: Path
) -> Trial:
    folder = out / "trials" / group / f"seed_{seed}"
    own = ["--seed", str(seed), "--output-dir", str(folder), "--evaluate.seed", str(seed)]
    arguments = [*arguments, *own]
    made = settings(arguments, f"{path}: {group}")
    if not (made.evaluate.before and made.evaluate.after):
        raise ValueError(
            f"{path}: {group}: evaluate.before is {made.evaluate.before} and evaluate.after {made.evaluate.after}; "
            "a study compares the scores before and after, so leave both on"
        )
    return Trial(arm, group, options, seed, tuple(arguments), made, out)


def settings(arguments: Sequence[str], where: str) -> TrainConfig:
    """Return what `t2i-gcpo train` makes of the arguments. ValueError with its own message where it refuses them."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            return parse(arguments).settings
    except SystemExit as stop:
        raise ValueError(f"{where}: {_unboxed(printed.getvalue())} (t2i-gcpo train --help lists the options)") from stop
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _unboxed(text: str) -> str:
    """Return the message in tyro's box, without its frame, its title and its last line, the way to the help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in text.splitlines()[1:]]
    return " ".join(line for line in lines if line.strip("-")).partition(" For full helptext")[0]


def _check_distinct(study: Study) -> None:
    """Raise ValueError where two groups share a folder or a training."""
    seen: list[tuple[Trial, TrainConfig]] = []
    for trial in (trial for trial in study.trials if trial.seed == study.trials[0].seed):
        evaluation = replace(trial.settings.evaluate, seed=0)
        settings = replace(trial.settings, output_dir="any", seed=0, evaluate=evaluation)
        for other, theirs in seen:
            if trial.group == other.group or settings == theirs:
                raise ValueError(
                    f"{study.file}: {other.group} and {trial.group} are "
                    + (
                        "the same training; leave one of them out"
                        if settings == theirs
                        else "one folder's name; rename"
                    )
                )
        seen.append((trial, settings))


def _text(value: Any) -> str:
    """Return a value as it stands in a folder's name."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.,+-]+", "_", text)
