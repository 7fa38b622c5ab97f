"""metrics.jsonl, run folders, resumed runs, boards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from t2i_gcpo.training.options import LoggingConfig
from t2i_gcpo.training.tracker import Tracker, prepare_run, read_metrics


def test_a_row_is_on_disk_at_once_and_is_valid_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, steps=2) as tracker:
        tracker.log(
            1,
            {"reward": torch.tensor(0.5), "kl": float("nan"), "grad_norm": float("inf"), "skipped": True, "images": 64},
        )
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        assert json.loads(lines[0], parse_constant=refuse) == {
            "step": 1, "reward": 0.5, "kl": None, "grad_norm": None, "skipped": True, "images": 64,
        }  # fmt: skip
        with pytest.raises((AttributeError, TypeError, ValueError, RuntimeError)):
            tracker.log(2, {"weights": torch.ones(3)})
    assert read_metrics(tmp_path)[0]["images"] == 64


def test_resume_drops_the_rows_after_its_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    with Tracker(tmp_path, steps=5) as tracker:
        for step in range(1, 6):
            tracker.log(step, {"reward": step / 10})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    with Tracker(tmp_path, steps=5, start_step=3) as tracker:
        assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
        tracker.log(4, {"reward": 9.0})
    assert [row["reward"] for row in read_metrics(tmp_path)] == [0.1, 0.2, 0.3, 9.0]


def test_a_damaged_line_in_the_middle_is_no_torn_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path)
    assert read_metrics(tmp_path / "nothing") == []


@pytest.mark.parametrize("left", ["config.yaml", "metrics.jsonl", "checkpoints"])
def test_another_run_is_not_written_over(tmp_path: Path, left: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    assert prepare_run(run, "steps: 1\n") == run
    (run / "config.yaml").rename(run / left)
    with pytest.raises(ValueError, match=f"{left}.*--resume.*--output-dir"):
        prepare_run(run, "steps: 2\n")
    assert (run / left).read_text() == "steps: 1\n"
    prepare_run(run, "steps: 3\n", resume=True)
    assert (run / "config.yaml").read_text() == "steps: 3\n"


def test_tensorboard_gets_scalars_pictures_and_a_nested_config(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    image = Image.new("RGB", (4, 4), (255, 0, 0))
    config = {"optim": {"lr": 1e-4, "betas": [0.9, 0.99]}, "revision": None}
    with Tracker(tmp_path, steps=3, logging=LoggingConfig(progress=False), config=config) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"reward": step / 2})
        path = tracker.picture(3, "grid", image)
    with Tracker(tmp_path, steps=3, start_step=1, logging=LoggingConfig(progress=False), config=config) as tracker:
        tracker.log(2, {"reward": 7.0})
    assert path == tmp_path / "samples" / "step_000003_grid.png" and Image.open(path).getpixel((0, 0)) == (255, 0, 0)
    events = EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    ).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 0.5), (2, 7.0)]
    assert b"| optim.lr | 0.0001 |" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


class Board(ModuleType):
    """Stands in for wandb and trackio, which are optional and need an account or a server."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def init(self, **keywords: Any) -> None:
        self.calls.append(("init", keywords))

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.calls.append(("log", {**metrics, "step": step}))

    def finish(self) -> None:
        self.calls.append(("finish", {}))


def test_boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boards = {name: Board(name) for name in ("wandb", "trackio")}
    for name, board in boards.items():
        monkeypatch.setitem(sys.modules, name, board)
    for start in (0, 1):
        with Tracker(
            tmp_path / "first",
            steps=2,
            start_step=start,
            logging=LoggingConfig(False, True, True),
            config={"a": {"b": 1}},
        ) as tracker:
            tracker.log(start + 1, {"reward": 0.5})
    for board in boards.values():
        first, again = (keywords for call, keywords in board.calls if call == "init")
        assert (first["project"], first["name"], first["config"], first["resume"]) == (
            "t2i-gcpo",
            "first",
            {"a.b": 1},
            "never",
        )
        assert again["resume"] == "allow" and again.get("id") == first.get("id")
        assert [call for call, _ in board.calls] == ["init", "log", "finish"] * 2
        assert board.calls[1][1] == {"reward": 0.5, "step": 1}
    assert boards["wandb"].calls[0][1]["id"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_board_names_the_extra_and_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"--logging.{name} .*t2i-gcpo\[tracking\]"):
        Tracker(tmp_path / "run", steps=1, logging=LoggingConfig(tensorboard=False, **{name: True}))
    assert not (tmp_path / "run").exists()


def test_the_bar_shows_the_metrics_and_counts_on_from_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(tmp_path, steps=4, start_step=2, logging=LoggingConfig(tensorboard=False)) as tracker:
        tracker.log(3, {"reward/mean": 0.25, "kl": 0.001, "entropy": 2.0, "clip_fraction": 0.0, "other": 1.0})
        tracker.log(4, {"reward/mean": 0.5})
    shown = capsys.readouterr().err
    assert "4/4" in shown and "reward=0.5" in shown and "other" not in shown
