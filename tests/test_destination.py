"""Where a result should go is tried before any work, and nothing of the try is left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from t2i_gcpo import cli
from t2i_gcpo.utils.destination import check_file, check_folder


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b" / "c", "eval.json")
    check_file(tmp_path / "x" / "scores.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "eval.json").write_text("old")
    check_folder(tmp_path, "eval.json")
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]
    assert (tmp_path / "eval.json").read_text() == "old"
    check_file(Path(os.devnull))


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deep" / "deeper"):
        with pytest.raises(ValueError, match=r"--out: nothing can be written .*/file is a file, not a folder"):
            check_folder(folder)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        check_file(tmp_path / "file" / "scores.json")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "eval.json").mkdir()
    with pytest.raises(ValueError, match=r"--to: .*eval\.json is a folder, and a file of this name is to be written"):
        check_folder(tmp_path, "other.json", "eval.json", option="--to")
    with pytest.raises(ValueError, match=r"--out .*eval\.json is a folder; name a file"):
        check_file(tmp_path / "eval.json")


def test_what_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="File name too long"):
        check_folder(tmp_path / "new" / ("x" * 300))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept.json").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match=r"kept\.json is there already and may not be written to"):
        check_folder(tmp_path, "kept.json")


#: Commands that work for long, with an input that would be found missing next, and their option for the output.
COMMANDS: dict[str, str] = {
    "sample --checkpoint nowhere --prompt x": "--out",
    "eval --checkpoint nowhere --prompts nowhere.txt": "--out",
    "eval --benchmark geneval --checkpoint nowhere --prompts nowhere.txt": "--out",
    "score --reward nothing --images nowhere": "--out",
    "heatmap --checkpoint nowhere --prompt x": "--out",
    "compare --runs nowhere": "--out",
    "export --checkpoint nowhere --against nowhere": "--out",
    "verdicts": "--out",
    "bench credit": "--out",
    "pretrain janus": "--out",
    "pretrain amused": "--out",
    "pretrain clip": "--out",
    "pretrain text": "--out",
    "text eval --model nowhere": "--out",
    "text heatmap --model nowhere --prompt x": "--out",
    "text credit --model nowhere": "--out",
    "text study --config nowhere.yaml": "--out",
    "text train --model nowhere --use-cpu": "--output-dir",
    "train --generator.checkpoint nowhere": "--output-dir",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tries_its_output_before_its_input(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command.startswith("text train"):
        pytest.importorskip("trl", reason="TRL is not installed (pip install 't2i-gcpo[text]')")
    (tmp_path / "file").write_text("")
    assert cli.main([*command.split(), COMMANDS[command], str(tmp_path / "file" / "result.json")]) == 2
    shown = capsys.readouterr().err
    assert f"{COMMANDS[command]}: nothing can be written to the folder" in shown
    assert "is a file, not a folder" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_process_may_make_or_remove_a_folder_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of a study check their folders at once, in a parent that is not there yet."""
    real, calls = Path.mkdir, []

    def disturbed(path: Path, *args: Any, **options: Any) -> None:
        calls.append(path.name)
        if len(calls) == 1:  # the other was quicker
            real(path)
        if len(calls) == 2:  # the other has checked, and removes what it made
            path.parent.rmdir()
        real(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", disturbed)
    check_folder(tmp_path / "trials" / "seed_0")
    assert calls == ["trials", "seed_0", "trials", "seed_0"]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(FileExistsError(17, "File exists")))
    with pytest.raises(ValueError, match="File exists"):
        check_folder(tmp_path / "never" / "seed_0")
