"""The parts that all pre-training shares: a stage that can be stopped and resumed, options of the work folder."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rewards.models.device import short
from t2i_gcpo.commands.options import number_types
from t2i_gcpo.commands.options.number_types import count, positive
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.files import disk_errors, write_atomically
from t2i_gcpo.utils.json_files import read_json_lines


def save_state(state: Any, path: Path) -> None:
    """Write a stage's state whole or not at all."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_state(trainer: Any, path: Path) -> None:
    """Put the state in `path` into `trainer`. Only tensors and plain values are read: nothing in the file can run.

    ValueError for a file that is damaged, holds anything else, or is of another trainer.
    """
    read_state(path, trainer.load_state_dict)


def read_state(path: Path, use: Callable[[Any], Any] = lambda state: state) -> Any:
    """Return what `use` makes of the state in `path`; ValueError for a file that is damaged or that `use` refuses."""
    try:
        return use(torch.load(path, weights_only=True))
    except FileNotFoundError:
        raise
    except Exception as error:  # torch's, pickle's and zipfile's own, and what a wrong shape of the state leads to
        raise ValueError(
            f"{path} is no state that this pre-training wrote ({short(error)}); "
            "name another --out, or remove the file to train this stage from the start"
        ) from error


class Stage:
    """The folder of a stage: its log, its resumable state, its progress bar."""

    def __init__(self, folder: Path, title: str, total: int, settings: Any, every_seconds: float = 60.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.every_seconds, self.total = folder, every_seconds, total
        self.log_path, self.state_path = folder / "log.jsonl", folder / "state.pt"
        write_atomically(folder / "settings.json", json.dumps(asdict(settings), indent=2) + "\n")
        self.bar = tqdm(total=total, desc=title, mininterval=5.0)
        self.saved = self.started = time.monotonic()

    def resume(self, trainer: Any) -> None:
        """Load the state if there is one, and cut the log back to it."""
        if not self.state_path.exists():
            self.log_path.unlink(missing_ok=True)
            return
        load_state(trainer, self.state_path)
        rows = read_json_lines(self.log_path, {"step": int}) if self.log_path.is_file() else []
        kept = [row for row in rows if row["step"] <= trainer.step_number]
        write_atomically(self.log_path, "".join(f"{json.dumps(row)}\n" for row in kept))
        self.bar.update(trainer.step_number)

    def run(self, trainer: Any, *, every: int, validate_every: int = 0) -> Any:
        """Go on from the state if there is one, take the steps that are left, and return the finished model.

        every: see `on_step`. validate_every: steps between two validation losses; the last step has one, too. 0: none.
        """
        self.resume(trainer)
        report = self.on_step(trainer, every)
        while trainer.step_number < self.total:
            metrics = trainer.step()
            if validate_every and (trainer.step_number % validate_every == 0 or trainer.step_number == self.total):
                metrics["validation_loss"] = trainer.validation_loss()
            report(trainer.step_number, metrics)
        return trainer.finished()

    def on_step(self, trainer: Any, every: int) -> Callable[[int, Mapping[str, float | Tensor]], None]:
        """Log every `every` steps, save about once a minute and at the end.

        Metrics of other steps are not read, so a GPU is not waited for.
        """

        def report(step: int, metrics: Mapping[str, float | Tensor]) -> None:
            self.bar.update(1)
            if step % every == 0 or step == self.total:
                found = {name: float(value) for name, value in metrics.items()}
                row = {"step": step, "seconds": round(time.monotonic() - self.started, 1), **found}
                with disk_errors(self.log_path), self.log_path.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                self.bar.set_postfix({name: f"{value:.4g}" for name, value in found.items()})
            if step == self.total or time.monotonic() - self.saved > self.every_seconds:
                save_state(trainer.state_dict(), self.state_path)
                self.saved = time.monotonic()

        return report


def prepare(options: argparse.Namespace) -> None:
    """Check the work folder and set the threads, as `add_work_options` has them, before anything else is done."""
    check_folder(options.out)
    if options.threads:
        torch.set_num_threads(options.threads)


def add_work_options(parser: argparse.ArgumentParser, out: str, *, seed: str = "", steps: int | None = None) -> None:
    """Add the options of every pre-training. `steps`: their default, where they can be chosen."""
    parser.add_argument("--out", type=home_path, default=Path(out), help="work folder (default: %(default)s)")
    parser.add_argument("--seed", type=number_types.seed, default=0, help=f"{seed}(default: %(default)s)")
    if steps is not None:
        parser.add_argument("--steps", type=positive, default=steps, help="(default: %(default)s)")
    parser.add_argument("--threads", type=count, default=0, help="CPU threads; 0 leaves PyTorch's choice")
