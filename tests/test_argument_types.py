"""Arguments of the commands: each number and path has a type that refuses what it cannot mean."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from t2i_gcpo import cli
from t2i_gcpo.cli import COMMANDS
from t2i_gcpo.commands.options.number_types import finite
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.commands.options.reference import parsers
from t2i_gcpo.utils.device import pick_device

#: Command and option that check their number by themselves, because their message says more.
OWN_CHECK = {"demo --port", "demo --threads", "study --jobs"}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_no_argument_has_a_type_that_takes_everything(command: str) -> None:
    """int takes -1, float takes nan, Path leaves ~ as it is."""
    for name, parser in parsers(command).items():
        for action in parser._actions:
            label = f"{name} {', '.join(action.option_strings) or action.dest}"
            assert action.type not in (int, float, Path) or label in OWN_CHECK, label


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["eval", "--checkpoint", "janus-mini", "--prompts", "shapes:val", "--out", "x", "--guidance", "nan"],
            "not a finite number",
        ),
        (
            ["sample", "--checkpoint", "janus-mini", "--prompt", "a", "--out", "x", "--temperature", "inf"],
            "not a finite number",
        ),
        (
            ["heatmap", "--checkpoint", "janus-mini", "--prompt", "a", "--out", "x", "--top-p", "nan"],
            "not a finite number",
        ),
        (["heatmap", "--checkpoint", "janus-mini", "--prompt", "a", "--out", "x", "--num", "-1"], "at least 1"),
        (["pretrain", "janus", "--threads", "-1"], "at least 0"),
        (["pretrain", "amused", "--batch", "0"], "at least 1"),
        (["pretrain", "clip", "--bound", "nan"], "not a finite number"),
        (["pretrain", "amused", "--out", "x", "--device", "meta"], "device is 'meta'"),
        (["demo", "--threads", "-1"], "--threads is -1; it must be at least 1"),
        (["demo", "--keep", "0"], "at least 1"),
        (["serve-rewards", "--reward", "clip", "--max-images", "-1"], "at least 1"),
        (["serve-rewards", "--reward", "clip", "--port", "70000"], "0 to 65535"),
        (["bench", "step", "--guidance", "inf"], "not a finite number"),
        (["prompts", "shapes:val", "--out", ""], "'' is no path"),
    ],
)
def test_a_value_out_of_range_is_a_sentence_and_status_2(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and not list(tmp_path.rglob("*.*"))


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_path("~/x") == tmp_path / "x" and home_path("x~") == Path("x~")
    out = tmp_path / "out" / "words.txt"
    assert cli.main(["prompts", "shapes:vocabulary", "--out=~/out/words.txt"]) == 0 and out.is_file()


def test_types_by_hand() -> None:
    assert finite("1e-4") == 1e-4
    for text in ("nan", "inf", "-inf", "1e999", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="not a finite number"):
            finite(text)
    with pytest.raises(
        ValueError, match=r"device is 'meta', which cannot be used here \(tensors on it have no values\)"
    ):
        pick_device("meta")
