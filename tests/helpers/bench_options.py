"""Give the benchmarks that need a model their options: a tiny checkpoint, and prompts that it can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PROMPTS = "a red circle\ntwo blue star left of a green square\n"


def small(folder: Path, checkpoint: Callable[[Path], object], *, group_size: int) -> list[str]:
    """Two prompts of `group_size` images, two pairs; `checkpoint` writes the model."""
    checkpoint(folder / "tiny")
    (folder / "prompts.txt").write_text(PROMPTS, encoding="utf-8")
    chosen = ["--checkpoint", str(folder / "tiny"), "--prompts", str(folder / "prompts.txt")]
    return [*chosen, "--num-prompts", "2", "--group-size", str(group_size), "--pairs", "2"]
