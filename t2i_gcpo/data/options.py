"""The options of where prompts come from and in which order they are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_gcpo.utils.checks import declared


@dataclass(frozen=True)
class PromptsConfig:
    """Where the prompts come from: a file or a split of ShapeScenes.

    A file is GenEval's jsonl, plain txt, DrawBench's csv, or T2I-R1's json lines.
    """

    train: str = "shapes:train"
    """Prompts of the rollouts."""
    validation: str = "shapes:val"
    """Prompts that the best checkpoint is chosen on."""
    test: str = "shapes:test"
    """Prompts of the evaluation before and after training."""
    balanced: bool = True
    """Draw the tasks in equal parts; else each prompt is drawn equally often."""

    def __post_init__(self) -> None:
        declared(self, "prompts.")
