"""Watch for reward hacking, and warn when what is not trained on gets worse while the trained reward rises.

Watched are scorers that are never trained on, and how varied the images are.

A callback of `Trainer`. It looks at the very images that were trained on, draws none of its own, and changes nothing
about the training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any

import torch

from rewards.base import Reward, check
from t2i_gcpo.evaluation.image_diversity import color_entropy, near_duplicates
from t2i_gcpo.records import ScoredRollout
from t2i_gcpo.training.options import WatchConfig
from t2i_gcpo.training.tracker import read_metrics
from t2i_gcpo.utils import pictures
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import read_json_lines
from t2i_gcpo.utils.processes import Processes, mean

if TYPE_CHECKING:
    from t2i_gcpo.training.trainer import StepRecord, Trainer

WARNINGS = "warnings.jsonl"
#: What a line of it must hold.
WARNING = {"step": int, "metric": str, "text": str, "picture": (str, None)}
#: Folder of the pictures, in the run folder.
FOLDER = "watch"
TRAINED = "reward/mean"
HELD_OUT = "held_out/"
COLOR_ENTROPY, NEAR_DUPLICATES = "variety/color_entropy", "variety/near_duplicates"
#: What is watched besides the held-out scorers -> which way is bad. `entropy` and `diversity` are logged by the
#: trainer.
VARIETY: dict[str, int] = {"entropy": -1, "diversity": -1, COLOR_ENTROPY: -1, NEAR_DUPLICATES: +1}

#: The first so many logged values of a metric are compared with its last so many.
WINDOW = 10
#: A change counts from so many standard errors of the difference of the two windows' means.
SIGNIFICANT = 3.0
#: Variety shrinks a little in any training that works: only a change by this share of the first window's mean counts.
NOTEWORTHY = 0.2
#: Prompts, and images of each, in the pictures.
SHOWN = 4


@dataclass(frozen=True)
class Change:
    """Holds the means of a metric's first and last window."""

    before: float
    after: float
    z: float
    """Difference of the means by its standard error."""


def change(values: Sequence[float], window: int = WINDOW) -> Change | None:
    """Compare the first window with the last; None where there are fewer than two whole windows.

    A difference without any spread counts as infinitely significant.
    """
    if len(values) < 2 * window:
        return None
    first, last = values[:window], values[-window:]
    before, after = fmean(first), fmean(last)
    error = math.sqrt((variance(first) + variance(last)) / window)
    difference = after - before
    return Change(
        before, after, difference / error if error else math.copysign(math.inf, difference) if difference else 0.0
    )


def alarms(series: Mapping[str, Sequence[float]], window: int = WINDOW) -> dict[str, str]:
    """Map each watched metric that got worse while the trained reward rose.

    `series`: a metric's logged values in the order of their steps; `reward/mean` among them.
    """
    trained = change(series.get(TRAINED, ()), window)
    if trained is None or trained.z < SIGNIFICANT:
        return {}
    found = {}
    for name, values in series.items():
        bad = -1 if name.startswith(HELD_OUT) else VARIETY.get(name)
        seen = change(values, window)
        if bad is None or seen is None or bad * seen.z < SIGNIFICANT:
            continue
        if not name.startswith(HELD_OUT) and abs(seen.after - seen.before) < NOTEWORTHY * abs(seen.before):
            continue
        verb = "fell" if seen.after < seen.before else "rose"
        found[name] = (
            f"{TRAINED} rose from {trained.before:.3g} to {trained.after:.3g} while {name} {verb} from "
            f"{seen.before:.3g} to {seen.after:.3g}"
        )
    return found


class Watch:
    """Add `held_out/<name>`, `variety/color_entropy` and `variety/near_duplicates` to each step's metrics, and warn.

    There is one warning a metric.

    A warning is a line on the terminal and in RUN/warnings.jsonl (step, metric, text, picture); it names the picture of
    that step's images, beside which that of the first step lies.
    """

    def __init__(self, held_out: Mapping[str, Reward] | None = None, *, every: int = WatchConfig.every) -> None:
        """`held_out`: name -> scorer that is not trained on; `every`: steps between their scores."""
        WatchConfig(every=every)
        self.held_out, self.every = dict(held_out or {}), every
        self._series: dict[str, list[float]] = {}
        self._recalled = False
        self._warned: set[str] = set()

    def __call__(self, trainer: Trainer, record: StepRecord) -> None:
        folder = trainer.output_dir
        if record.scored is not None:
            record.metrics.update(self._measure(record.scored, record.step, trainer.processes))
        if not trainer.processes.is_main:
            return
        if not self._recalled:
            self._recall(folder, record.step)
        for name in (TRAINED, *VARIETY, *(HELD_OUT + label for label in self.held_out)):
            value = record.metrics.get(name)
            if value is not None and math.isfinite(value):
                self._series.setdefault(name, []).append(float(value))
        found = {name: text for name, text in alarms(self._series).items() if name not in self._warned}
        picture = None
        if record.scored is not None and trainer.tracker is not None and (found or record.step == 1):
            picture = trainer.tracker.picture(record.step, "trained", _grid(record.scored), folder=FOLDER)
        for name, text in found.items():
            self._warned.add(name)
            shown = picture.relative_to(folder).as_posix() if picture is not None else None
            row = {"step": record.step, "metric": name, "text": text, "picture": shown}
            with (folder / WARNINGS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if trainer.tracker is not None:
                trainer.tracker.say(f"warning, step {record.step}: {text}; look at {picture or folder}")

    def _measure(self, scored: ScoredRollout, step: int, processes: Processes) -> dict[str, float]:
        """Return the means over the images of all processes."""
        group, batch = scored.rollout.sampling.group_size, scored.rollout.batch
        own: dict[str, float] = {}
        if batch:
            own[COLOR_ENTROPY] = float(color_entropy(scored.images).mean())
            own[NEAR_DUPLICATES] = near_duplicates(scored.images, group)
        metrics = mean(processes, own, batch)
        if step % self.every and step != 1:
            return metrics
        owners = scored.rollout.row_prompts
        texts, rows = [prompt.text for prompt in owners], [prompt.metadata for prompt in owners]
        for label, reward in self.held_out.items():
            finite = torch.zeros(0)
            if batch:
                output = check(reward(scored.images, texts, rows), len(texts), label, texts, failure="mark")
                finite = output.scores[output.scores.isfinite()]
            mine = {HELD_OUT + label: float(finite.mean())}  # NaN of no images
            metrics |= mean(processes, mine, len(finite)) or mine
        return metrics

    def _recall(self, folder: Path, step: int) -> None:
        """Read what was logged and said before `step`: a resumed run goes on from there."""
        self._recalled = True
        for row in read_metrics(folder):
            if row["step"] < step:
                for name, value in row.items():
                    if (name in VARIETY or name == TRAINED or name.startswith(HELD_OUT)) and value is not None:
                        self._series.setdefault(name, []).append(float(value))
        kept = [row for row in read_warnings(folder) if row["step"] < step]
        self._warned = {str(row["metric"]) for row in kept}
        if (folder / WARNINGS).is_file():
            write_atomically(folder / WARNINGS, "".join(json.dumps(row) + "\n" for row in kept))


def read_warnings(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's warnings.jsonl; none where there is no such file. A torn last line is left out."""
    path = folder / WARNINGS
    return read_json_lines(path, WARNING) if path.is_file() else []


def _grid(scored: ScoredRollout) -> pictures.Image.Image:
    """Draw the first images of the first prompts."""
    group = scored.rollout.sampling.group_size
    rows = [p * group + g for p in range(min(SHOWN, len(scored.rollout.prompts))) for g in range(min(SHOWN, group))]
    return pictures.sample_grid(
        scored.images[rows],
        [scored.rollout.row_prompts[row].text for row in rows],
        columns=min(SHOWN, group),
        scores=scored.scores[rows].tolist(),
    )
