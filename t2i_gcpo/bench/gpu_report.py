"""The rows that `bench gpu` measures, as JSON and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.table import Table

from t2i_gcpo.bench.measure import machine, versions

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """Holds one number of the report."""

    part: str
    what: str
    images: int
    value: float | None
    """None where it could not be measured; `note` says why."""
    unit: str
    peak_gib: float | None = None
    """Most memory of the GPU during it; None on a CPU."""
    planned_gib: float | None = None
    """What `t2i-gcpo plan` counts for it; None where it plans no such thing."""
    ratio: float | None = None
    """The plan's number over the measured one."""
    note: str = ""


@dataclass
class GpuReport:
    """Holds all rows, with what `bench.main` asks of a report."""

    device: torch.device
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        about = {"settings": self.settings, "machine": machine(self.device), "versions": versions()}
        return {"name": "gpu", "rows": [asdict(row) for row in self.rows], "seconds": self.seconds, **about}

    def cells(self) -> list[tuple[str, ...]]:
        """Return the cells of the table, a row of texts each."""
        return [
            (
                row.part,
                row.what,
                str(row.images),
                "-" if row.value is None else f"{row.value:.4g} {row.unit}",
                "-" if row.peak_gib is None else f"{row.peak_gib:.1f} GiB",
                "-" if row.planned_gib is None else f"{row.planned_gib:.4g} GiB",
                "-" if row.ratio is None else f"{row.ratio:.2f}",
                row.note,
            )
            for row in self.rows
        ]

    def table(self) -> Table:
        table = Table(title=f"gpu: {self.settings['checkpoint']} on {self.name}", title_justify="left")
        for column in HEADER:
            table.add_column(column)
        for row in self.cells():
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table as docs/speed.md shows it."""
        cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in self.cells()]
        lines = [HEADER, tuple("---" for _ in HEADER), *cells]
        return f"{self.name}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    @property
    def name(self) -> str:
        """Return the name of what it ran on."""
        about = machine(self.device)
        return str(about.get("gpu", about["cpu"]))


HEADER = ("part", "what", "images", "value", "peak", "plan", "plan / measured", "note")
