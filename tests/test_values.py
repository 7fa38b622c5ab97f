"""Text becomes a value by the declared type of its option, on the command line and in a YAML alike.

YAML files are read strictly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t2i_gcpo.commands.options.arguments import dump, load, parse, read_arguments, to_mapping
from t2i_gcpo.commands.options.scorers import scorer_options
from t2i_gcpo.commands.options.shared import take_reward
from t2i_gcpo.commands.options.values import as_argument, convert, from_argument, parameters
from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.study.spec import read as read_study
from t2i_gcpo.utils import yaml_files
from t2i_gcpo.utils.secret_options import is_secret, without_secrets
from t2i_gcpo.utils.yaml_files import MAX_VALUES, Scalar

NULL = type(None)


def yaml_file(folder: Path, text: str, name: str = "run.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def reward(*argv: str) -> dict[str, Any]:
    return dict(parse(argv).settings.reward.options)


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kinds", "value"),
    [
        ("7e12345", (str, NULL), "7e12345"),
        ("2024", (str, NULL), "2024"),
        ("007", (str, NULL), "007"),
        ("no", (str,), "no"),
        ("None", (str, NULL), "None"),
        ("clip #2", (str,), "clip #2"),
        ("null", (str, NULL), None),
        ("\\null", (str, NULL), "null"),
        ("", (str, NULL), ""),
        ("true", (bool,), True),
        ("False", (bool,), False),
        ("off", (bool,), False),
        ("1e-4", (float,), 1e-4),
        ("3", (float, NULL), 3.0),
        ("null", (float, NULL), None),
        ("12", (int,), 12),
        ("12", (Any,), 12),
        ("{a: 1e-3, b: null}", (Any,), {"a": 1e-3, "b": None}),
        ("'1'", (Any,), "1"),
        ("a: [", (Any,), "a: ["),
    ],
)  # fmt: skip
def test_a_word_of_the_command_line(text: str, kinds: tuple[Any, ...], value: Any) -> None:
    made = convert(from_argument(text), kinds)
    assert made == value and type(made) is type(value)


@pytest.mark.parametrize(
    ("text", "kinds", "message"),
    [
        ("many", (int,), "it must be a whole number"),
        ("1e3", (int,), "it must be a whole number"),
        ("1_000", (int,), "it must be a whole number"),
        ("perhaps", (bool,), "it must be true or false"),
        ("x", (float, NULL), "it must be a number or null"),
        ("null", (str,), "null means no value"),
    ],
)
def test_text_of_another_type_is_refused(text: str, kinds: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(from_argument(text), kinds)


def test_words_of_a_yaml_survive_the_command_line() -> None:
    for scalar in (Scalar("null"), Scalar("null", quoted=True), Scalar("\\null"), Scalar("x y"), Scalar("~")):
        back = from_argument(as_argument(scalar))
        assert (back.is_null, convert(back, (str, NULL))) == (scalar.is_null, None if scalar.is_null else scalar.text)


def test_the_same_text_is_the_same_value_in_both_places(tmp_path: Path) -> None:
    for name, text in {
        "generator.revision": "7e12345",
        "generator.compile": "off",
        "logging.wandb": "on",
        "sampling.negative_prompt": "None",
        "prompts.train": "2024",
        "kl_stop": "null",
        "watch.rewards": "no",
    }.items():
        flag = "--" + name.replace("_", "-")
        nested = yaml_file(tmp_path, ": {".join(name.split(".")) + f": {text}" + "}" * name.count("."))
        assert load(nested) == parse([flag, text]).settings, name
    config = load(yaml_file(tmp_path, 'sampling: {negative_prompt: "null"}\ngenerator: {revision: 7e12345}'))
    assert config.sampling.negative_prompt == "null" and config.generator.revision == "7e12345"
    assert load(yaml_file(tmp_path, dump(config))) == config
    assert load(yaml_file(tmp_path, "sampling: {negative_prompt: ~}")).sampling.negative_prompt is None


@pytest.mark.parametrize("text", ["output_dir:", "output_dir: null", "prompts: {train: }"])
def test_an_option_without_a_value_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(yaml_file(tmp_path, text))
    assert "null means no value, and this option needs one" in " ".join(capsys.readouterr().err.split())


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse(["--output-dir", "~/x"]).settings.output_dir == str(tmp_path / "x")
    yaml_file(tmp_path, "steps: 3")
    assert parse(["--config", "~/run.yaml"]).settings.steps == 3


# -- the scorers' options ----------------------------------------------------------------------------------------------


def test_scorers_get_their_declared_types() -> None:
    clip = ("--reward.name", "clip")
    assert reward(*clip, "--reward.checkpoint", "clip #2") == {"checkpoint": "clip #2"}
    assert reward(*clip, "--reward.revision", "7e12345") == {"revision": "7e12345"}
    assert reward(*clip, "--reward.revision", "2024", "--reward.scale", "2") == {"revision": "2024", "scale": 2.0}
    assert reward(*clip, "--reward.revision", "null", "--reward.quick-gelu", "on") == {
        "revision": None,
        "quick_gelu": True,
    }
    remote = ("--reward.name", "remote")
    assert reward(*remote, "--reward.url", "http://a", "http://b") == {"url": ["http://a", "http://b"]}
    with pytest.raises(ValueError, match="reward.retries is 'many'; it must be a whole number"):
        reward(*remote, "--reward.retries", "many")
    with pytest.raises(ValueError, match="reward.timeout is 'inf'; it must be a finite number"):
        reward(*remote, "--reward.timeout", "inf")
    with pytest.raises(ValueError, match="reward.unfit_text is 'cut'; it must be "):
        reward(*clip, "--reward.unfit_text", "cut")


def test_scorers_options_of_a_yaml(tmp_path: Path) -> None:
    text = "reward: {name: clip, revision: 7e12345, scale: 2, checkpoint: 'null', pretrained: null}"
    options = load(yaml_file(tmp_path, text)).reward.options
    assert options == {"revision": "7e12345", "scale": 2.0, "checkpoint": "null", "pretrained": None}
    rest, _ = take_reward(["--reward", yaml_file(tmp_path, text)])
    assert rest.options == options
    composite = load(
        yaml_file(
            tmp_path,
            "reward: {name: composite, rewards: {clip: {revision: 2024, weight: 2}, b: {name: ocr, min_confidence: "
            "1}}}",
        )
    )
    assert composite.reward.options["rewards"] == {
        "clip": {"revision": "2024", "weight": 2},
        "b": {"name": "ocr", "min_confidence": 1.0},
    }
    assert load(yaml_file(tmp_path, dump(composite))) == composite
    with pytest.raises(ValueError, match=r"reward.rewards.clip.batch_size is 'x'; it must be a whole number"):
        load(yaml_file(tmp_path, "reward: {name: composite, rewards: {clip: {batch_size: x}}}"))


def test_options_of_a_scorer_of_ones_own_are_what_yaml_makes_of_them() -> None:
    assert scorer_options("mine:score", {"a": Scalar("12"), "b": Scalar("12", quoted=True), "c": 3}) == {
        "a": 12,
        "b": "12",
        "c": 3,
    }


def test_declared_types_are_read_from_every_scorer() -> None:
    import rewards

    for name in rewards.available():
        declared = parameters(rewards.registry.find(name))
        assert declared and all(kinds for kinds in declared.values())
    assert parameters(rewards.registry.find("clip"))["revision"] == (str, NULL)


# -- YAML files --------------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, f"more than {MAX_VALUES} values"),
        ("reward: {threshold: " + "1" * 5000 + "}", "a whole number of 5000 digits; at most 400 are read"),
        ("steps: -" + "1" * 500, "a whole number of 501 digits"),
        ("a: &a [*a]", "an alias stands inside of what it stands for"),
        ("steps: 3\nsteps: 4", "'steps' is there twice"),
        ("optim: {lr: 1, lr: 2}", "'lr' is there twice"),
        ("a: !!python/object/apply:os.system [ls]", "has no meaning here"),
        ("a: !!binary aGk=", "has no meaning here"),
        ("? [a, b]\n: 1", "a key must be a plain text"),
        ("a: " + "[" * 3000 + "]" * 3000, "more than 32 levels"),
        ("a: 'x", "not a YAML file"),
        ("x: " + "y" * 2**21, "is larger than"),
    ],
)
def test_every_reader_of_yaml_refuses_what_is_hostile(text: str, message: str, tmp_path: Path) -> None:
    """The one reader behind train, eval, score, compare and study."""
    file = yaml_file(tmp_path, text, "config.yaml")
    for reader in (read_arguments, run_folder.read, read_study, lambda path: take_reward(["--reward", str(path)])):
        with pytest.raises(ValueError, match=message) as caught:
            reader(tmp_path if reader is run_folder.read else file)
        assert "config.yaml" in str(caught.value)


def test_values_of_the_core_schema() -> None:
    text = "[1, -2, 0x1f, 1e-4, .5, 1., 1:30, 2024-01-01, off, yes, True, ~, null, '1', .inf, a b, 1_0]"
    values = yaml_files.plain(yaml_files.parse_scalars(text))
    assert values == [
        1,
        -2,
        31,
        1e-4,
        0.5,
        1.0,
        "1:30",
        "2024-01-01",
        "off",
        "yes",
        True,
        None,
        None,
        "1",
        float("inf"),
        "a b",
        "1_0",
    ]


def test_aliases_and_merges_that_stay_small_are_read(tmp_path: Path) -> None:
    tree = yaml_files.load(yaml_file(tmp_path, "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a"))
    assert tree == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    "text", ["{a: 1e-4, b: [x, 'null', null, off], c: {d: \"'\", e: '#', f: 'a: b'}}", "'12'", "[]", "{}", "off"]
)
def test_what_is_written_on_one_line_reads_back(text: str) -> None:
    tree = yaml_files.parse_scalars(text)
    again = yaml_files.parse_scalars(yaml_files.flow(tree))
    assert "\n" not in yaml_files.flow(tree) and yaml_files.plain(again) == yaml_files.plain(tree)


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_secret_options_are_never_written(tmp_path: Path) -> None:
    remote = ["--reward.name", "remote", "--reward.url", "http://a", "--reward.token", "s3cret"]
    config = parse(remote).settings
    assert config.reward.options["token"] == "s3cret", "the run itself has it"
    assert "s3cret" not in dump(config) and "token" not in to_mapping(config)["reward"]
    text = "reward: {name: composite, rewards: {a: {name: remote, url: x, token: s3cret}}}"
    config = load(yaml_file(tmp_path, text))
    assert "s3cret" not in dump(config) and config.reward.options["rewards"]["a"]["token"] == "s3cret"
    yaml_file(tmp_path, text, "config.yaml")
    assert "s3cret" not in str(run_folder.read(tmp_path).config), "reports, comparisons and exports read it from here"
    study = yaml_file(
        tmp_path, "seeds: [0]\noptions: {reward: {name: remote, url: x, token: s3cret}}\narms: {a: {steps: 2}}"
    )
    trials = read_study(study)
    assert "s3cret" not in str(trials.content) and "s3cret" not in str(trials.trials[0].options)
    assert trials.trials[0].settings.reward.options["token"] == "s3cret"


def test_what_counts_as_secret() -> None:
    assert (
        is_secret("reward.token")
        and is_secret("rewards.a.api-key")
        and not is_secret("max_tokens")
        and not is_secret("token_file")
    )
    for name in ("apikey", "private_key", "passwd", "Authorization", "hf-token", "client_secret", "db_credentials"):
        assert is_secret(f"reward.{name}"), name
    for name in ("tokens", "author", "key", "passes", "tokenizer", "secret_name"):
        assert not is_secret(f"reward.{name}"), name
    assert without_secrets({"a": [{"token": 1, "b": 2}], "password": 3}) == {"a": [{"b": 2}]}


def test_a_token_comes_from_a_file_and_the_file_stays_in_the_config(tmp_path: Path) -> None:
    file = tmp_path / "token.txt"
    file.write_text("s3cret\n")
    config = parse(["--reward.name", "remote", "--reward.url", "http://a", "--reward.token_file", str(file)]).settings
    assert to_mapping(config)["reward"]["token_file"] == str(file) and "s3cret" not in dump(config)
    assert load(yaml_file(tmp_path, dump(config))) == config, "what was written is enough to go on"
