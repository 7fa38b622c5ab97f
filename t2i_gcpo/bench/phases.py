"""Read where the steps of a run spent their time, from what each step logged; nothing is measured anew."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from t2i_gcpo.bench import positive
from t2i_gcpo.bench.measure import machine, versions
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.reports import step_times
from t2i_gcpo.reports.run import read


@dataclass(frozen=True)
class PhaseReport:
    """The phases of a run, with what `bench.main` asks of a report."""

    run: Path
    phases: list[step_times.Phase]
    steps: int
    first_step: int

    def to_json(self) -> dict[str, Any]:
        settings = {"run": str(self.run), "first_step": self.first_step}
        about = {"settings": settings, "machine": machine(torch.device("cpu")), "versions": versions()}
        return {"name": "phases", **step_times.to_json(self.phases, self.steps), **about}

    def table(self) -> Table:
        table = Table(
            title=f"{self.run}: {self.steps} steps from step {self.first_step} on",
            caption=step_times.NOTE,
            title_justify="left",
            caption_justify="left",
        )
        for k, name in enumerate(step_times.HEADER):
            table.add_column(name, justify="right" if k else "left")
        for row in step_times.table_rows(self.phases):
            table.add_row(*row)
        return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=home_path, default=Path("runs/quickstart"), help="run folder to read")
    parser.add_argument(
        "--first-step", type=positive, default=11, help="leave out the steps before: compilation falls in them"
    )


def run(options: argparse.Namespace, console: Console) -> PhaseReport:
    """Read the run's phases. ValueError: no run, or none of its steps is late enough."""
    del console
    timed, steps = step_times.phases(read(options.run), first_step=options.first_step, seed=options.seed)
    if not steps:
        raise ValueError(
            f"{options.run} has no step from {options.first_step} on; train further, or lower --first-step"
        )
    return PhaseReport(options.run, timed, steps, options.first_step)
