"""The options of where prompts come from and in which order they are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_gcpo.data.formats import AUTO, Format
from t2i_gcpo.utils.checks import declared


@dataclass(frozen=True)
class PromptsConfig:
    """Says where the prompts come from: a file or a split of ShapeScenes.

    A file is jsonl, json, csv, tsv or txt, or a benchmark's own.
    """

    train: str = "shapes:train"
    """Prompts of the rollouts."""
    validation: str = "shapes:val"
    """Prompts that the best checkpoint is chosen on."""
    test: str = "shapes:test"
    """Prompts of the evaluation before and after training."""
    format: Format = AUTO
    """auto tells the files' format by their names; else that of a benchmark's own file, or lines: one prompt a line
    whatever the name. Splits of ShapeScenes have none."""
    column: str | None = None
    """The column of a .csv or .tsv, or the key of a .jsonl, that holds the prompts; null takes prompt (DrawBench:
    Prompts)."""
    balanced: bool = True
    """Draw the tasks in equal parts; else each prompt is drawn equally often."""

    def __post_init__(self) -> None:
        declared(self, "prompts.")
