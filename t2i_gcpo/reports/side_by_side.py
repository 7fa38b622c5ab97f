"""Find the heatmaps that several runs can be compared by, and draw them side by side on one scale."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from PIL import Image

from t2i_gcpo.heatmap import Heatmap, together
from t2i_gcpo.reports import run_files
from t2i_gcpo.reports.run import Run

#: End of the names of heatmaps of groups that were trained on; those of the fixed prompts have none.
TRAINED = "_trained"


def heatmaps(runs: Mapping[str, Run]) -> list[tuple[str, bytes]]:
    """Draw the fixed prompts of all runs, at the first and the last step that all have drawn: (words, PNG) each.

    Runs that share no step or prompt, or whose files are damaged, have none.
    """
    common = common_steps(runs)
    found = []
    for step in dict.fromkeys(common[:1] + common[-1:]):
        picture = at(runs, step)
        if picture is not None:
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            found.append((f"Step {step}: credit of the tokens, one scale for all runs", buffer.getvalue()))
    return found


def common_steps(runs: Mapping[str, Run], end: str = "") -> list[int]:
    """Return the steps at which all of several runs have drawn a heatmap; none of fewer than two runs."""
    if len(runs) < 2:
        return []
    return sorted(set.intersection(*(_steps(run, end) for run in runs.values())))


def at(runs: Mapping[str, Run], step: int, end: str = "") -> Image.Image | None:
    """Draw the images that all runs have at a step, on one scale; None where they share none or a file is damaged."""
    files = [(label, run.path / "heatmaps" / f"step_{step:06d}{end}.npz") for label, run in runs.items()]
    try:
        return _drawn(tuple((label, path, path.stat().st_mtime_ns) for label, path in files))
    except (OSError, ValueError):  # nothing that could be compared: the tables and curves remain
        return None


@lru_cache(maxsize=16)
def _drawn(files: tuple[tuple[str, Path, int], ...]) -> Image.Image:
    """Draw saved heatmaps together: label, path and time of the last change of each."""
    return together({label: Heatmap.load(path) for label, path, _ in files})


def _steps(run: Run, end: str) -> set[int]:
    """Return the steps whose heatmaps with this end of the name are the run's own."""
    paths = run_files.steps(run.path, "heatmaps", ".npz")
    known = {path.name: run_files.step_of(path) for path in paths}
    return {step for name, step in known.items() if step is not None and name == f"step_{step:06d}{end}.npz"}
