"""Find the heatmaps that several runs can be compared by, and draw them side by side on one scale."""

from __future__ import annotations

import io
from collections.abc import Mapping

from t2i_gcpo.heatmap import Heatmap, together
from t2i_gcpo.reports import run_files
from t2i_gcpo.reports.run import Run


def heatmaps(runs: Mapping[str, Run]) -> list[tuple[str, bytes]]:
    """Draw the fixed prompts of all runs, at the first and the last step that all have drawn: (words, PNG) each.

    Runs that share no step or prompt, or whose files are damaged, have none.
    """
    if len(runs) < 2:
        return []
    drawn = [set(_steps(run)) for run in runs.values()]
    common = sorted(set.intersection(*drawn))
    found = []
    for step in dict.fromkeys(common[:1] + common[-1:]):
        try:
            loaded = {name: Heatmap.load(run.path / _name(step)) for name, run in runs.items()}
            picture = together(loaded)
        except ValueError:  # nothing that could be compared: the tables and curves remain
            continue
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        found.append((f"Step {step}: credit of the tokens, one scale for all runs", buffer.getvalue()))
    return found


def _name(step: int) -> str:
    return f"heatmaps/step_{step:06d}.npz"


def _steps(run: Run) -> list[int]:
    """Return the steps whose heatmaps of fixed prompts are the run's own."""
    paths = run_files.steps(run.path, "heatmaps", ".npz")
    steps = [run_files.step_of(path) for path in paths if not path.stem.endswith("_trained")]
    return [step for step in steps if step is not None]
