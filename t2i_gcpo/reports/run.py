"""A run folder, read back: options, metrics, evaluations before and after, pictures. Partial runs are runs, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_gcpo.evaluation.evaluate import EvalResult, paired_difference
from t2i_gcpo.evaluation.intervals import Estimates
from t2i_gcpo.reports import run_files
from t2i_gcpo.training.tracker import CONFIG, METRICS, read_metrics
from t2i_gcpo.utils import yaml_files
from t2i_gcpo.utils.nested import flatten
from t2i_gcpo.utils.secret_options import without_secrets

BEFORE, AFTER = "eval_before.json", "eval_after.json"

#: Options that do not tell two experiments apart.
INCIDENTAL = (
    "output_dir",
    "seed",
    "logging",
    "pictures",
    "checkpoint",
    "micro_batch",
    "evaluate.seed",
    "generator.device",
    "generator.compile",
    "generator.max_batch",
    "generator.gradient_checkpointing",
    "generator.head_chunk",
)


@dataclass(frozen=True)
class Run:
    path: Path
    config: dict[str, Any]
    """Dotted option -> value; empty where the run has no config.yaml."""
    metrics: list[dict[str, Any]]
    before: EvalResult | None
    after: EvalResult | None

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def algorithm(self) -> str:
        return str(self.config.get("algorithm.name", "unknown"))

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was logged and finite."""
        found = [(int(row["step"]), float(row[name])) for row in self.metrics if row.get(name) is not None]
        return [step for step, _ in found], [value for _, value in found]

    def last(self, name: str) -> float | None:
        values = self.series(name)[1]
        return values[-1] if values else None

    def best(self, name: str) -> tuple[int, float] | None:
        """Step and value of the highest; a tie goes to the earlier."""
        steps, values = self.series(name)
        return (steps[values.index(max(values))], max(values)) if values else None

    def seconds(self) -> float | None:
        """Time of all logged steps."""
        values = self.series("time/step")[1]
        return sum(values) if values else None

    def difference(self) -> tuple[Estimates | None, str]:
        """After less before, image by image; or None and why there is none."""
        if self.before is None or self.after is None:
            missing = [name for name, found in ((BEFORE, self.before), (AFTER, self.after)) if found is None]
            return None, f"there is no {' and no '.join(missing)}"
        try:
            return paired_difference(self.before, self.after), ""
        except ValueError as error:  # the test prompts of a resumed run may have been changed
            return None, str(error)

    def pictures(self, folder: str) -> list[Path]:
        """Return the PNGs of samples/ or heatmaps/ that are the run's own, in the order of their steps."""
        return run_files.steps(self.path, folder, ".png")


def read(path: str | Path) -> Run:
    """ValueError for a folder that is no run, or whose files are damaged."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; name the output folder of a t2i-gcpo train run")
    if not (path / CONFIG).is_file() and not (path / METRICS).is_file():
        raise ValueError(
            f"{path} is no run folder: it has neither {CONFIG} nor {METRICS}; name the "
            "output folder of a t2i-gcpo train run"
        )
    run_files.check_own(path, CONFIG, METRICS, BEFORE, AFTER)
    config: Any = {}
    if (path / CONFIG).is_file():
        config = without_secrets(yaml_files.load(path / CONFIG))
        if not isinstance(config, dict):
            raise ValueError(f"{path / CONFIG} holds no options")
    before, after = (EvalResult.load(path / name) if (path / name).is_file() else None for name in (BEFORE, AFTER))
    return Run(path, flatten(config), read_metrics(path), before, after)


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Label -> the runs that differ in nothing but the seed.

    The label is the algorithm, and where that is not enough, what differs.

    ValueError: the same folder twice.
    """
    folders = [run.path.resolve() for run in runs]
    twice = sorted({str(path) for path in folders if folders.count(path) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is named more than once; name each run once")
    experiments = [{k: v for k, v in run.config.items() if not _incidental(k)} for run in runs]
    result: dict[str, list[Run]] = {}
    for run, own in zip(runs, experiments, strict=True):
        alike = [other for other in experiments if other.get("algorithm.name") == own.get("algorithm.name")]
        names = sorted(
            {name for other in alike for name in own.keys() | other.keys() if own.get(name) != other.get(name)}
        )
        label = ", ".join([run.algorithm, *(f"{name} {own.get(name)}" for name in names)])
        result.setdefault(label, []).append(run)
    return result


def _incidental(name: str) -> bool:
    return any(f"{name}.".startswith(f"{other}.") for other in INCIDENTAL)
