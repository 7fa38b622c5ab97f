"""Options: YAML and command line, their order, their mistakes, and the way back to a YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import pytest
import yaml

from t2i_gcpo.algorithms import TABLE
from t2i_gcpo.commands.options.arguments import dump, load, parse, to_mapping
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.commands.options.values import members


def settings(*argv: str) -> TrainConfig:
    return parse(argv).settings


def yaml_file(tmp_path: Path, text: str, name: str = "run.yaml") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of an option that is refused.

    Tyro's box and status 2, or a ValueError, which the command line turns into both.
    """
    with pytest.raises((SystemExit, ValueError)) as caught:
        parse(argv)
    if isinstance(caught.value, ValueError):
        return str(caught.value)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    return " ".join((printed.err + printed.out).replace("│", " ").split())


def test_no_arguments_are_the_defaults() -> None:
    assert settings() == TrainConfig()
    assert settings().algorithm == TABLE["gcpo"]


def test_the_last_algorithm_name_picks_the_row_and_options_change_single_choices(tmp_path: Path) -> None:
    assert settings("--algorithm.name", "grpo").algorithm == TABLE["grpo"]
    assert settings("--algorithm.name=dapo", "--algorithm.name=grpo").algorithm == TABLE["grpo"]
    assert settings("--algorithm.group-size", "4", "--algorithm.name=dapo").algorithm == dataclasses.replace(
        TABLE["dapo"], group_size=4
    )
    file = yaml_file(tmp_path, "algorithm: {name: dapo, kl_coef: 0.5, group_size: 6}")
    assert settings("--config", file).algorithm == dataclasses.replace(TABLE["dapo"], kl_coef=0.5, group_size=6)
    over = settings("--config", file, "--algorithm.name", "grpo", "--algorithm.group_size", "3").algorithm
    assert over == dataclasses.replace(TABLE["grpo"], kl_coef=0.5, group_size=3)
    with pytest.raises(ValueError, match=r"'grop'.*allowed: grpo"):
        settings("--algorithm.name", "grop")


def test_yaml_values_of_every_kind_come_through_and_the_command_line_wins(tmp_path: Path) -> None:
    text = """
        steps: 30
        kl_stop: null
        optim:
          lr: 1e-5          # YAML 1.1 reads this as a string
          betas: [0.5, 0.75]
        logging: {tensorboard: false, wandb: true}
        sampling: {negative_prompt: "--a: 'photo'"}
        checkpoint:         # all of it commented out
        output_dir: "runs/with space"
    """
    file = yaml_file(tmp_path, text)
    config = settings("--config", file)
    assert (config.steps, config.kl_stop, config.optim.lr, config.optim.betas) == (30, None, 1e-5, (0.5, 0.75))
    assert (config.logging.tensorboard, config.logging.wandb) == (False, True)
    assert config.sampling.negative_prompt == "--a: 'photo'" and config.output_dir == "runs/with space"
    assert config.checkpoint == TrainConfig().checkpoint
    assert settings("--steps", "7", f"--config={file}", "--logging.wandb", "False").steps == 7
    second = yaml_file(tmp_path, "steps: 40", "second.yaml")
    assert settings("--config", file, "--config", second).steps == 40
    assert settings("--config", second, "--config", file).steps == 30
    assert settings("--config", yaml_file(tmp_path, "# nothing", "empty.yaml")) == TrainConfig()


def test_reward_options_are_free_and_belong_to_their_reward(tmp_path: Path) -> None:
    assert settings().reward.options == {"detector": "shapes"}
    assert settings("--reward.detector", "mask2former").reward.options == {"detector": "mask2former"}
    file = yaml_file(
        tmp_path,
        "reward: {threshold: 1e-1, name: geneval, detector: shapes, strict: true, parts: {a: {w: 0.5}}, text: '1'}",
    )
    reward = settings("--config", file).reward
    assert reward.options == {
        "detector": "shapes",
        "threshold": 0.1,
        "strict": True,
        "parts": {"a": {"w": 0.5}},
        "text": "1",
    }
    over = settings(
        "--config", file, "--reward.strict=false", "--reward.max-boxes", "16", "--reward.tags", "a", "b"
    ).reward
    assert over.options == {**reward.options, "strict": False, "max_boxes": 16, "tags": ["a", "b"]}
    # Another reward does not inherit geneval's options.
    assert settings("--config", file, "--reward.name", "clip", "--reward.model", "mini").reward.options == {
        "model": "mini"
    }
    with pytest.raises(ValueError, match="reward is 'clip'"):
        settings("--config", yaml_file(tmp_path, "reward: clip"))
    with pytest.raises(ValueError, match=r"--reward.model needs a value"):
        settings("--reward.model", "--steps", "3")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--algorithm.name", "dapo", "--algorithm.top", "0.3", "--optim.lr", "3.3e-7", "--optim.betas", "0.1", "0.2"],
        [
            "--reward.name",
            "clip",
            "--reward.model",
            "m",
            "--reward.weights",
            "{a: 1e-3, b: null}",
            "--reward.word",
            "'1'",
        ],
        [
            "--kl-stop",
            "0.5",
            "--sampling.negative-prompt",
            "läuft: \"x\" #1\n- 'y'",
            "--evaluate.guidance",
            "3",
            "--output-dir=1e-3",
        ],
        ["--sampling.negative-prompt="],
    ],
)
def test_the_written_config_reads_back_equal(tmp_path: Path, argv: list[str]) -> None:
    config = settings(*argv)
    assert load(yaml_file(tmp_path, dump(config))) == config
    if argv:
        assert config != TrainConfig()


def test_every_field_survives_the_round_trip(tmp_path: Path) -> None:
    """Change every option away from its default: none may be lost on the way."""
    flips: dict[type, Any] = {
        bool: lambda v: not v,
        int: lambda v: 2 * v + 2,
        float: lambda v: v / 2 + 0.03,
        str: lambda v: v + " 1e-3",
    }
    changed = 0

    def flip(owner: Any) -> Any:
        nonlocal changed
        values = {}
        for field in dataclasses.fields(owner):
            value, kinds = vars(owner)[field.name], members(get_type_hints(type(owner))[field.name])
            if dataclasses.is_dataclass(value) and field.name not in ("algorithm", "reward"):
                values[field.name] = flip(value)
            elif Literal in map(get_origin, kinds) and bool in kinds:  # a word, or true and false
                values[field.name] = True
                changed += 1
            elif type(value) in flips and Literal not in map(get_origin, kinds):
                values[field.name] = flips[type(value)](value)
                changed += 1
        return dataclasses.replace(owner, **values)

    config = flip(TrainConfig())
    assert changed > 35
    back = load(yaml_file(tmp_path, dump(config)))
    assert to_mapping(back) == to_mapping(config)
    assert back == config


@pytest.mark.parametrize("in_yaml", [False, True])
def test_a_typo_gets_a_hint_from_the_command_line_and_from_yaml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_yaml: bool
) -> None:
    argv = ["--config", yaml_file(tmp_path, "algorithm: {grup_size: 4}")] if in_yaml else ["--algorithm.grup-size", "4"]
    message = refused(capsys, *argv)
    assert "Perhaps you meant" in message and "--algorithm.group-size" in message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "many"], "--steps"),
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--algorithm.group-size", "1"], "algorithm.group_size is 1; it must be at least 2"),
        (["--optim.schedule", "cosin"], "'constant', 'linear', 'cosine'"),
        (["--optim.lr", "-1"], "optim.lr is -1.0; it must be above 0"),
        (["--optim.lr", "nan"], "optim.lr is nan"),
        (["--optim.weight-decay", "-0.5"], "optim.weight_decay is -0.5; it must be at least 0"),
        (["--optim.betas", "0.9"], "--optim.betas"),
        (["--optim.betas", "0.9", "1"], "optim.betas are (0.9, 1.0); each must be in [0, 1)"),
        (["--optim.min-ratio", "2"], "optim.min_ratio is 2.0; it must be in [0, 1]"),
        (["--minibatches", "3"], "minibatches is 3, which does not divide the 64 images"),
        (["--sampling.top-p", "0"], "sampling.top_p is 0.0; it must be in (0, 1]"),
        (["--logging.wandb", "perhaps"], "--logging.wandb: it is 'perhaps'; it must be true or false"),
        (["--steps", "1.5"], "--steps: it is '1.5'; it must be a whole number"),
        (["--output-dir", "null"], "--output-dir: it is 'null'; null means no value, and this option needs one"),
        (["--optim.lr", "inf"], "optim.lr is inf; it must be a finite number"),
        (["--output-dir="], "output_dir is empty"),
        (["stray"], "stray"),
        (["--algorithm", "grpo"], "--algorithm"),
    ],
)
def test_values_out_of_range_are_refused(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert message in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not a YAML file.*line"),
        ("- steps", "holds a list"),
        ("prompts: {train: [{a: 1}]}", "plain values only"),
    ],
)
def test_a_bad_yaml_names_its_file(tmp_path: Path, text: str, message: str) -> None:
    file = yaml_file(tmp_path, text)
    with pytest.raises(ValueError, match=f"(?s){message}") as caught:
        settings("--config", file)
    assert file in str(caught.value)


def test_a_missing_yaml(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such config file"):
        settings("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match="--config needs a file"):
        settings("--config", "--steps", "3")


def test_bare_flags() -> None:
    command = parse(["--print-config", "--steps", "3"])
    assert command.print_config and not command.resume and command.settings.steps == 3
    assert parse(["--print_config"]).print_config


def test_resume_starts_from_the_options_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump(settings("--seed", "5", "--steps", "9", "--output-dir", str(run))))
    command = parse(["--output-dir", str(run), "--resume", "--steps", "20"])
    assert command.resume and (command.settings.seed, command.settings.steps) == (5, 20)
    file = yaml_file(tmp_path, f"output_dir: {run}\nprompts_per_step: 2\n")
    assert parse(["--config", file, "--resume"]).settings == dataclasses.replace(
        settings("--seed", "5", "--steps", "9"), output_dir=str(run), prompts_per_step=2
    )
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        parse(["--output-dir", str(tmp_path / "other"), "--resume"])


def test_the_mapping_is_what_a_yaml_holds() -> None:
    mapping = to_mapping(settings("--reward.detector", "mask2former"))
    assert mapping["reward"] == {"name": "geneval", "detector": "mask2former"}
    assert mapping["optim"]["betas"] == [0.9, 0.99]
    assert yaml.safe_load(dump(settings("--optim.eps", "1e-8")))["optim"]["eps"] == 1e-8


#: Those of `t2i-gcpo train`; the text_*.yaml are of `t2i-gcpo text train` (test_text_command.py).
CONFIGS = sorted(
    set((Path(__file__).parent.parent / "configs").glob("*.yaml"))
    - set((Path(__file__).parent.parent / "configs").glob("text_*.yaml"))
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configs_parse(path: Path) -> None:
    assert load(path) != TrainConfig()


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name in (
        "--config",
        "--resume",
        "--print-config",
        "--algorithm.name",
        "--generator.checkpoint",
        "--reward.name",
        "--seed",
    ):
        assert f"{name} " in shown
    assert "--reward.options" not in shown and "--settings" not in shown
