"""Find run folders and their pictures by step; a run that is still being written is a run, too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from t2i_gcpo.reports import side_by_side
from t2i_gcpo.reports.run import Run, read
from t2i_gcpo.training.tracker import CONFIG, METRICS

#: How deep below the folder of runs is looked, and how many are offered at most.
DEPTH, MOST = 4, 200
#: What can be stepped through -> (folder of the run, end of the file's name).
HEATMAPS = "heatmaps"
PICTURES: dict[str, tuple[str, str]] = {
    "samples": ("samples", "_samples"),
    "heatmap, fixed prompts": (HEATMAPS, ""),
    "heatmap, group that was trained on": (HEATMAPS, side_by_side.TRAINED),
}


def find(root: Path) -> list[str]:
    """Return the run folders below `root`, the newest first."""
    runs: list[tuple[float, str]] = []
    level = [root] if root.is_dir() else []
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            marks = [folder / name for name in (METRICS, CONFIG) if (folder / name).is_file()]
            if marks:
                runs.append((marks[0].stat().st_mtime, str(folder)))
            else:
                below += [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        level = below
    return [path for _, path in sorted(runs, reverse=True)][:MOST]


def open_runs(paths: Iterable[str], *, below: Path | None = None) -> dict[str, Run]:
    """Open run folders, each under a label: the end of the path that tells them apart.

    below: the folder that they must be in, links followed (None: anywhere). ValueError: a folder that is no run, or
    elsewhere.
    """
    runs = [read(_allowed(path, below)) for path in dict.fromkeys(paths)]
    parts = [run.path.absolute().parts for run in runs]
    for length in range(1, max(map(len, parts), default=1) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            break
    return dict(zip(labels, runs, strict=True)) if runs else {}


def _allowed(text: str, below: Path | None) -> Path:
    """Return a path that may be opened.

    ValueError where it is not below `below`, the same for folders that exist and for those that do not.
    """
    try:
        path = Path(text).expanduser()
        inside = below is None or path.resolve().is_relative_to(below.resolve())
    except (RuntimeError, ValueError, OSError) as error:  # no such user, a NUL, a loop of links
        raise ValueError(f"{text!r} cannot be opened: {error}") from error
    if not inside:
        raise ValueError(f"{text!r} is not below the demo's folder of runs; only runs in there are opened.")
    return path


def begun(paths: Mapping[str, Path]) -> dict[str, Run]:
    """Open those of some run folders that are there already."""
    return {label: read(path) for label, path in paths.items() if (path / CONFIG).is_file()}


def steps(runs: Iterable[Run], kind: str) -> list[int]:
    """Return the steps at which any of the runs has a picture of this kind."""
    return sorted({step for run in runs for step in _files(run, kind)})


def picture(run: Run, kind: str, step: int) -> tuple[int, Image.Image] | None:
    """Return the run's newest whole picture at or before `step`, and its step; None where there is none.

    One that is being written is passed over.
    """
    files = _files(run, kind)
    for there in sorted((other for other in files if other <= step), reverse=True):
        try:
            with Image.open(files[there]) as image:
                return there, image.convert("RGB")
        except (OSError, SyntaxError):
            continue
    return None


def on_one_scale(runs: Mapping[str, Run], kind: str, step: int) -> tuple[int, Image.Image] | None:
    """Return the newest heatmap at or before `step` that several runs share, drawn on one scale, and its step.

    None for samples, for one run, and where the runs share no prompt.
    """
    folder, end = PICTURES[kind]
    common = [other for other in side_by_side.common_steps(runs, end) if other <= step] if folder == HEATMAPS else []
    picture = side_by_side.at(runs, common[-1], end) if common else None
    return None if picture is None else (common[-1], picture)


def _files(run: Run, kind: str) -> dict[int, Path]:
    folder, end = PICTURES[kind]
    pattern = re.compile(rf"step_(\d+){end}")
    names = ((pattern.fullmatch(path.stem), path) for path in run.pictures(folder))
    return {int(match[1]): path for match, path in names if match}
