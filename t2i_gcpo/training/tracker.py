"""Write what a run logs as it goes: config.yaml, metrics.jsonl, pictures, boards, and a progress bar.

metrics.jsonl has one JSON object a step, `{"step": N, name: number, ...}`; step N is the state after N updates, like
`step_N` of a checkpoint. A number that is not finite is written as null, since JSON has no name for it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image
from tqdm import tqdm

from t2i_gcpo.training.checkpoint import FOLDER as CHECKPOINTS
from t2i_gcpo.training.options import LoggingConfig
from t2i_gcpo.utils.files import disk_errors, write_atomically
from t2i_gcpo.utils.json_files import check_shape, finite_or_none, read_json_lines
from t2i_gcpo.utils.markup import cell
from t2i_gcpo.utils.nested import flatten
from t2i_gcpo.utils.pictures import write_png

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
#: The largest whole number that is taken for a step or a count.
MOST_WHOLE = 2**63
#: Metric -> its short name in the progress bar.
SHOWN = {"reward/mean": "reward", "kl": "KL", "entropy": "entropy", "clip_fraction": "clipped"}


def check_unused(run_dir: str | Path) -> None:
    """Raise ValueError where the folder holds a run."""
    found = [name for name in (CONFIG, METRICS, CHECKPOINTS) if (Path(run_dir) / name).exists()]
    if found:
        raise ValueError(
            f"{run_dir} holds a run already ({', '.join(found)}); go on with it "
            "(--resume), or name another folder (--output-dir)"
        )


def prepare_run(run_dir: str | Path, config_yaml: str, *, resume: bool = False) -> Path:
    """Make the run folder and write its config.yaml.

    ValueError where the folder holds another run and `resume` is off.
    """
    run_dir = Path(run_dir)
    if not resume:
        check_unused(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / CONFIG, config_yaml)
    return run_dir


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl; null stands for a number that was not finite.

    A last line that a crash cut off is left out.

    ValueError, naming the line, for a damaged one before the last, and for a row that holds anything but numbers.
    """
    path = Path(run_dir) / METRICS
    rows = read_json_lines(path, {"step": int}) if path.is_file() else []
    for row in rows:
        check_shape(row, {str: (float, bool, None)}, f"{path}, step {row['step']}")
        large = [name for name, value in row.items() if isinstance(value, int) and abs(value) > MOST_WHOLE]
        if large:
            raise ValueError(f"{path}: {large[0]} is a whole number of {len(str(row[large[0]]))} digits in one row")
    return rows


class Tracker:
    """Writes the metrics of one run.

    On a resumed run, `start_step` is the step of its checkpoint: rows of later steps are removed, since they are about
    to be made again. `config` (nested, as in config.yaml) goes to the boards. ImportError, naming the extra, where
    wandb or trackio is not installed.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        steps: int,
        start_step: int = 0,
        config: Mapping[str, Any] | None = None,
        logging: LoggingConfig = LoggingConfig(tensorboard=False, progress=False),  # noqa: B008 (frozen)
    ) -> None:
        self.run_dir = Path(run_dir)
        self._boards = [
            _import_board(name) for name, wanted in (("wandb", logging.wandb), ("trackio", logging.trackio)) if wanted
        ]
        self.run_dir.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(run_dir) if row["step"] <= start_step]
        write_atomically(self.run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = (self.run_dir / METRICS).open("a", encoding="utf-8")
        self._events: Any = None
        if logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(
                str(self.run_dir / "tensorboard"), purge_step=start_step + 1 if start_step else None
            )
            rows = "\n".join(f"| {cell(name)} | {cell(value)} |" for name, value in flatten(config or {}).items())
            self._events.add_text("config", f"| option | value |\n|---|---|\n{rows}", global_step=start_step)
        for board in self._boards:
            _start_board(board, self.run_dir, logging.project, dict(flatten(config or {})), resume=start_step > 0)
        self._bar = tqdm(total=steps, initial=start_step, unit="step", disable=not logging.progress, dynamic_ncols=True)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log one row: numbers, booleans and tensors of one element. The row is on disk when this returns."""
        numbers = {name: _number(value) for name, value in metrics.items()}
        row = {"step": step, **{name: finite_or_none(value) for name, value in numbers.items()}}
        with disk_errors(self.run_dir / METRICS, "free some space, and go on with --resume"):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()
        for board in self._boards:
            board.log(dict(numbers), step=step)
        shown = {label: f"{numbers[name]:.3g}" for name, label in SHOWN.items() if name in numbers}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def picture(self, step: int, name: str, image: Image.Image, *, folder: str = "samples") -> Path:
        """Write RUN/`folder`/step_N_`name`.png, and show it on the boards."""
        path = self.run_dir / folder / picture_name(step, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, image)
        if self._events is not None:
            import numpy as np

            self._events.add_image(f"{folder}/{name}", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        for board in self._boards:
            board.log({f"{folder}/{name}": board.Image(str(path))}, step=step)
        return path

    def say(self, text: str) -> None:
        """Write a line on the terminal, above the progress bar. One that nobody reads any more is no error."""
        with contextlib.suppress(OSError):
            tqdm.write(text)

    def close(self) -> None:
        """Close everything. What a full disk did not take is lost, and was an error when it was written."""
        self._bar.close()
        with contextlib.suppress(OSError):
            self._file.close()
        if self._events is not None:
            self._events.close()
        for board in self._boards:
            board.finish()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SilentTracker(Tracker):
    """Writes and shows nothing: the tracker of a process that is not the run's main one."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def picture(self, step: int, name: str, image: Image.Image, *, folder: str = "samples") -> Path:
        return self.run_dir / folder / picture_name(step, name)

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def picture_name(step: int, name: str) -> str:
    return f"step_{step:06d}_{name}.png"


def _number(value: Any) -> float | int | bool:
    return value if isinstance(value, (bool, int, float)) else value.item()


def check_boards(logging: LoggingConfig) -> None:
    """Check that the packages of the boards that are asked for are there. ImportError, naming the extra: one is not."""
    wanted = (("tensorboard", logging.tensorboard), ("wandb", logging.wandb), ("trackio", logging.trackio))
    for name in [name for name, chosen in wanted if chosen]:
        _import_board(name)


def _import_board(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"--logging.{name} needs the package {name}: pip install 't2i-gcpo[tracking]' (or leave the option out)"
        ) from error


def _start_board(board: ModuleType, run_dir: Path, project: str, config: dict[str, Any], *, resume: bool) -> None:
    """wandb and trackio share these names. trackio finds a run again by its name, wandb by an id.

    Which is kept in the run folder.
    """
    extra: dict[str, Any] = {}
    if board.__name__ == "wandb":
        file = run_dir / "wandb_id.txt"
        if not (resume and file.is_file()):
            write_atomically(file, uuid.uuid4().hex[:12])
        extra = {"id": file.read_text(encoding="utf-8"), "dir": str(run_dir)}
    name = run_dir.resolve().name
    board.init(project=project, name=name, config=config, resume="allow" if resume else "never", **extra)
