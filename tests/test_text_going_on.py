"""Text runs that are stopped, killed or damaged, and go on; one process at a time in a folder."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.text_models import tiny_folder
from t2i_gcpo import cli
from t2i_gcpo.text import study
from t2i_gcpo.text.checkpoints import newest_checkpoint
from t2i_gcpo.utils.interrupt import HungUp, Terminated
from t2i_gcpo.utils.lock import locked

REWARD = """
import os, signal

def score(completions, **_):
    os.environ["CALLS"] += "x"
    if len(os.environ["CALLS"]) == 2:
        signal.raise_signal(int(os.environ["SIGNAL"]))
    return [float(len(text[0]["content"])) if isinstance(text, list) else float(len(text)) for text in completions]
"""


def arguments(tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "reward.py").write_text(REWARD)
    return [
        "text", "train", "--model", str(tiny_folder()), "--output-dir", str(tmp_path / "run"), "--max-steps", "4",
        "--per-device-train-batch-size", "8", "--num-generations", "4", "--max-completion-length", "6",
        "--data-limit", "20", "--heatmap-every", "0", "--disable-tqdm", "true", "--use-cpu", "true",
        "--save-strategy", "no", "--report-to", "none", "--logging-steps", "1",
        "--reward", f"{tmp_path / 'reward.py'}:score", *more,
    ]  # fmt: skip


def checkpoints(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_of_a_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    previous = signal.getsignal(number)
    monkeypatch.setenv("CALLS", "")
    monkeypatch.setenv("SIGNAL", str(int(number)))
    status = cli.main(arguments(tmp_path))
    assert signal.getsignal(number) == previous and checkpoints(tmp_path) == ["checkpoint-2"]
    if number == signal.SIGUSR1:
        assert status == 0 and (tmp_path / "run" / "model").is_dir()
        return
    assert status == 143 and not (tmp_path / "run" / "model").exists()
    assert "SIGTERM: stopped after step 2 of 4, whose checkpoint is saved; go on" in capsys.readouterr().out
    assert cli.main(arguments(tmp_path, "--resume")) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "reward" in row] == [1, 2, 3, 4]


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import threading

    (tmp_path / "run").mkdir()
    statuses: list[int] = []
    with locked(tmp_path / "run"):  # of this thread
        other = threading.Thread(target=lambda: statuses.append(cli.main(arguments(tmp_path))))
        other.start()
        other.join()
    assert statuses == [2] and "is in use by process" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.*")), "nothing was written"


def whole(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(3)}, folder / "model.safetensors")
    torch.save({}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text('{"global_step": 1, "log_history": [{"loss": NaN}]}')
    return folder


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("trainer_state.json", b'{"glob', "trainer_state.json is damaged: it is not valid JSON"),
        ("trainer_state.json", None, "is not whole: it has no trainer_state.json"),
        ("model.safetensors", b"\x00" * 9, "model.safetensors is damaged"),
        ("model.safetensors", None, "it has no weights"),
        ("optimizer.pt", b"PK", "optimizer.pt is damaged"),
    ],
)
def test_half_a_checkpoint_is_passed_over(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    older, newer = whole(tmp_path / "checkpoint-9"), whole(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-11").write_text("a file")
    (tmp_path / "checkpoint-²").mkdir()
    assert newest_checkpoint(tmp_path) == newer
    (newer / name).unlink()
    if content is not None:
        (newer / name).write_bytes(content)
    with pytest.warns(UserWarning, match=f"checkpoint-10 is passed over: .*{reason}"):
        assert newest_checkpoint(tmp_path) == older


def test_a_damaged_evaluation_is_made_again_and_a_signal_ends_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = tmp_path / "trial", {"model": str(tiny_folder())}
    trained: list[str | None] = []

    def train(*_: Any) -> tuple[Any, str | None]:
        (folder / "eval.json").write_text('{"overall": 0.5, "completions": []}')
        trained.append(next(ends))
        return None, trained[-1]

    monkeypatch.setattr(study.runs, "train", train)
    monkeypatch.setattr(study, "parse", lambda _: ())
    for content in ('{"overall": 0.5, "compl', "[]", '{"overall": null, "completions": []}'):
        ends = iter([None])
        folder.mkdir(exist_ok=True)
        (folder / "eval.json").write_text(content)
        study._train(folder, options)
    assert len(trained) == 3
    study._train(folder, options)
    assert len(trained) == 3, "a finished one is not trained again"
    for by, error in (("SIGTERM", Terminated), ("SIGHUP", HungUp), ("Ctrl-C", KeyboardInterrupt)):
        (folder / "eval.json").unlink()
        ends = iter([by])
        with pytest.raises(error):
            study._train(folder, options)
