"""The groups of options: the same sentence from Python and from the command line, and single options by their names."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import t2i_gcpo
from helpers.messages import names
from helpers.training import PROMPTS, generator, redness
from t2i_gcpo import CheckpointPlan, Sampling, Schedule, Trainer, resolve
from t2i_gcpo.commands.options.arguments import parse
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.commands.options.shared import add_sampling_options
from t2i_gcpo.training.options import CheckpointConfig, LoopOptions, OptimConfig, SamplingConfig, with_options
from t2i_gcpo.training.updater import Updater


def build(folder: Path, **options: Any) -> Trainer:
    return Trainer(generator(), redness, PROMPTS, folder, **options)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("optim.max_grad_norm", -1.0, "optim.max_grad_norm is -1.0; it must be above 0"),
        ("optim.lr", math.inf, "optim.lr is inf; it must be a finite number"),
        ("optim.betas", (0.9, 1.0), "optim.betas are (0.9, 1.0); each must be in [0, 1)"),
        ("steps", -3, "steps is -3; it must be at least 1"),
        ("seed", 2**63, "seed is 9223372036854775808; it must be at most 9223372036854775807"),
        ("epochs", 0, "epochs is 0; it must be at least 1"),
        ("max_nonfinite", 0, "max_nonfinite is 0; it must be at least 1"),
        ("micro_batch", 0, "micro_batch is 0; it must be at least 1"),
        ("kl_stop", math.nan, "kl_stop is nan; it must be a finite number"),
        ("checkpoint.every", -1, "checkpoint.every is -1; it must be at least 0"),
        ("sampling.guidance", math.nan, "sampling.guidance is nan; it must be a finite number"),
        ("sampling.temperature", 0.0, "sampling.temperature is 0.0; it must be above 0"),
        ("algorithm.group_size", 1, "algorithm.group_size is 1; it must be at least 2"),
        ("algorithm.kl_coef", math.nan, "algorithm.kl_coef is nan; it must be a finite number"),
        ("algorithm.floor", math.inf, "algorithm.floor is inf; it must be a finite number"),
        ("minibatches", 3, "minibatches is 3, which does not divide the 64 images of a rollout"),
    ],
)
def test_python_and_the_command_line_refuse_with_the_same_sentence(
    option: str, value: Any, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        build(tmp_path, **{option.rpartition(".")[2]: value})
    assert sentence in str(caught.value)
    words = [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
    with pytest.raises((SystemExit, ValueError)) as stopped:
        parse([f"--{option.replace('_', '-')}", *words])
    printed = capsys.readouterr()
    told = str(stopped.value) if isinstance(stopped.value, ValueError) else printed.err + printed.out
    assert sentence in " ".join(told.replace("│", " ").split())


def test_the_groups_refuse_by_themselves() -> None:
    with pytest.raises(ValueError, match="optim.max_grad_norm is -1; it must be above 0"):
        Schedule(max_grad_norm=-1)
    with pytest.raises(ValueError, match="checkpoint.every is -1; it must be at least 0"):
        CheckpointPlan(every=-1)
    with pytest.raises(ValueError, match="steps is 2.5; it must be a whole number"):
        LoopOptions(steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="checkpoint.keep_best is 1; it must be True or False"):
        CheckpointPlan(keep_best=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="optim.lr is '1e-4'; it must be a finite number"):
        Schedule(lr="1e-4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=names("distribution", "'guidd'", "conditional", "guided", "guided_detached")):
        LoopOptions(distribution="guidd")  # type: ignore[arg-type]
    assert LoopOptions(kl_stop=None).kl_stop is None and Schedule(lr=1).lr == 1


def test_public_names_are_the_same_classes() -> None:
    assert Schedule is OptimConfig and CheckpointPlan is CheckpointConfig


def test_a_trainer_takes_single_options_by_their_names(tmp_path: Path) -> None:
    run = build(tmp_path, algorithm="gcpo", group_size=16, lr=3e-4, steps=7, guidance=3.0, every=5, kl_coef=0.5)
    assert run.algorithm == resolve("gcpo", group_size=16, kl_coef=0.5) and run.sampling.group_size == 16
    assert run.updater.learning_rate == pytest.approx(3e-4 / 10), "the first of ten steps of warm-up"
    assert (run.steps, run.sampling.guidance, run.checkpoint.every) == (7, 3.0, 5)
    both = build(tmp_path, optim=Schedule(warmup_steps=0), lr=3e-4)
    assert both.updater.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("option", "answer"),
    [("leraning_rate", "allowed: .*lr"), ("max_gradnorm", "did you mean max_grad_norm"), ("name", "no option 'name'")],
)
def test_a_trainer_says_what_to_write(option: str, answer: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=answer):
        build(tmp_path, **{option: 1})


def test_no_two_groups_of_a_trainer_share_a_name() -> None:
    groups = (resolve("gcpo"), LoopOptions(), SamplingConfig(), OptimConfig(), CheckpointConfig())
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    assert len(names) == len(set(names)), "an option is found by its name alone"
    assert with_options({"optim": OptimConfig()}, {"lr": 0.5}) == {"optim": OptimConfig(lr=0.5)}


def test_guidance_is_the_same_number_everywhere(tmp_path: Path) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_sampling_options(parser)
    numbers = {
        Sampling().guidance,
        build(tmp_path).sampling.guidance,
        TrainConfig().sampling.guidance,
        parser.parse_args([]).guidance,
    }
    assert numbers == {2.0}


def test_the_learning_rate_of_a_longer_run_is_that_of_its_schedule(tmp_path: Path) -> None:
    """3 steps are done, then the run is resumed with --steps 30.

    Each step's rate is that of a run of 30 steps at that step.
    """
    policy = generator()
    optim = OptimConfig(lr=1e-4, schedule="cosine", warmup_steps=0)
    short = Updater(policy, resolve("gcpo"), LoopOptions(steps=3), optim)
    short.updates = 3
    long = Updater(policy, resolve("gcpo"), LoopOptions(steps=30), optim)
    long.load_state_dict(short.state_dict())
    straight = Updater(policy, resolve("gcpo"), LoopOptions(steps=30), optim)
    straight.updates = 3
    assert long.learning_rate == straight.learning_rate == pytest.approx(9.75e-05, rel=1e-3)


# -- one declaration each ----------------------------------------------------------------------------------------------

#: Rooms whose functions and classes take the groups, or name an option's default by its declaration.
ROOMS = ("algorithms", "commands", "data", "training", "records.py")
#: What has the name of an option and is something else: of one rollout, of a scorer's progress bar, of a token's event.
OTHERS = {"Sampling.group_size", "Sampling.seed", "score.progress", "Events.width"}


def leaves(options: Any, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Every option of the command with the class whose own body declares it."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            (owner,) = [c for c in type(options).__mro__ if field.name in inspect.get_annotations(c)]
            yield prefix + field.name, owner


def literal_defaults(path: Path) -> Iterator[str]:
    """Name `Class.field` and `function.parameter` of a source file with a default that is written out.

    None does not count: it means that nothing was given.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            pairs = [(a.target, a.value) for a in node.body if isinstance(a, ast.AnnAssign)]
            named = [(target.id, value) for target, value in pairs if isinstance(target, ast.Name)]
        elif isinstance(node, ast.FunctionDef):
            arguments = node.args
            positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
            defaults = [*arguments.defaults, *arguments.kw_defaults]
            named = [(a.arg, d) for a, d in zip([*positional, *arguments.kwonlyargs], defaults, strict=True)]
        else:
            continue
        for name, value in named:
            if isinstance(value, ast.Constant) and value.value is not None:
                yield f"{node.name}.{name}"


def test_every_option_of_the_command_is_declared_once() -> None:
    options = dict(leaves(TrainConfig()))
    assert len(options) > 80
    declared = {f"{owner.__name__}.{name.rpartition('.')[2]}" for name, owner in options.items()}
    names = {name.rpartition(".")[2] for name in options}
    root = Path(t2i_gcpo.__file__).parent
    files = [
        file for room in ROOMS for file in ([root / room] if room.endswith(".py") else (root / room).rglob("*.py"))
    ]
    written = [default for file in files for default in literal_defaults(file) if default.rpartition(".")[2] in names]
    assert len(written) > 60 and len(set(written)) == len(written), "no default is written twice"
    assert set(written) - declared - OTHERS == set(), "take the group, or name the declaration's default"


def test_every_group_checks_what_it_declares() -> None:
    """A value of another type is refused by the class itself, for every number and truth value of every group."""
    for name, owner in leaves(TrainConfig()):
        group = owner()
        value = getattr(group, name.rpartition(".")[2])
        if isinstance(value, (bool, int, float)):
            with pytest.raises(ValueError, match="is 'x'; it must be"):
                dataclasses.replace(group, **{name.rpartition(".")[2]: "x"})
