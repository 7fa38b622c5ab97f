"""Several arms with several seeds at an equal budget.

A learning rate for each arm by the same number of trials, then one run a seed.

A run is `t2i-gcpo text train` in a process of its own, with evaluation; runs that are finished are not done again, so
the same command goes on where it was stopped. Final accuracy is on test questions; the area under the curve is the mean
reward of all completions that were sampled on the way, each question of which is new to the run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t2i_gcpo.evaluation.intervals import pooled
from t2i_gcpo.text.run import AFTER, METRICS
from t2i_gcpo.utils import yaml_files
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import read_json, read_json_lines

RESULTS = "results.json"
RATE = "learning_rate"


@dataclass(frozen=True)
class Spec:
    """A study. ValueError for what is missing or not allowed."""

    base: Mapping[str, Any]
    """Options that all runs share."""
    arms: Mapping[str, Mapping[str, Any]]
    """Arm -> its own options."""
    learning_rates: tuple[float, ...]
    """Tried for each arm, with `tune_seed`; the best on `tune_data` is taken."""
    seeds: tuple[int, ...]
    tune_seed: int
    tune_data: str = "arithmetic:val"
    test_data: str = "arithmetic:test"

    def __post_init__(self) -> None:
        if not self.arms or not self.learning_rates or not self.seeds:
            raise ValueError("a text study needs arms, learning_rates and seeds, at least one of each")
        if self.tune_seed in self.seeds:
            raise ValueError(
                f"tune_seed {self.tune_seed} is among the seeds {list(self.seeds)}; learning rates are tuned with "
                "another seed"
            )

    @staticmethod
    def read(path: Path) -> Spec:
        """Read a study's YAML."""
        options = yaml_files.load(path)
        if not isinstance(options, dict):
            raise ValueError(f"{path} is no mapping of options to values")
        known = {f.name for f in dataclasses.fields(Spec)}
        unknown = sorted(set(options) - known)
        missing = sorted({"base", "arms", "learning_rates", "seeds", "tune_seed"} - set(options))
        if unknown or missing:
            raise ValueError(
                f"{path}: unknown {unknown or 'nothing'}, missing {missing or 'nothing'}; allowed: "
                f"{', '.join(sorted(known))}"
            )
        lists = {name: tuple(options[name]) for name in ("learning_rates", "seeds")}
        return Spec(**{**options, **lists})


def run(spec: Spec, out: Path) -> dict[str, Any]:
    """Tune, train and pool; the content of results.json, which is written as well."""
    chosen, rows = {}, []
    for arm in spec.arms:
        trials = {
            rate: _run(spec, out / "tune" / f"{arm}_{rate:g}", arm, rate, spec.tune_seed, spec.tune_data)
            for rate in spec.learning_rates
        }
        chosen[arm] = max(trials, key=lambda rate: _accuracy(trials[rate]))
        folders = [
            _run(spec, out / arm / f"seed_{seed}", arm, chosen[arm], seed, spec.test_data) for seed in spec.seeds
        ]
        rows.append(_pool(arm, chosen[arm], trials, folders))
        results = {"arms": rows, "seeds": list(spec.seeds), "tune_seed": spec.tune_seed, "base": dict(spec.base)}
        write_atomically(out / RESULTS, json.dumps(results, indent=1) + "\n")
    return results


def _run(spec: Spec, folder: Path, arm: str, rate: float, seed: int, data: str) -> Path:
    """The folder of a finished run."""
    if not (folder / AFTER).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.jsonl"):
            stale.unlink()
        options = {
            **spec.base,
            **spec.arms[arm],
            RATE: rate,
            "seed": seed,
            "eval_data": data,
            "output_dir": str(folder),
        }
        (folder / "run.yaml").write_text(yaml_files.dump(options), encoding="utf-8")
        command = [sys.executable, "-m", "t2i_gcpo.cli", "text", "train", "--config", str(folder / "run.yaml")]
        subprocess.run(command, check=True, env=dict(os.environ))
    return folder


def _accuracy(folder: Path) -> float:
    return float(read_json(folder / AFTER)["overall"])


def _pool(arm: str, rate: float, trials: Mapping[float, Path], folders: list[Path]) -> dict[str, Any]:
    """One row of the results: means over seeds, with intervals over seeds and questions."""
    finals = [read_json(folder / AFTER)["completions"] for folder in folders]
    scores = [[row["score"] for row in rows] for rows in finals]
    e = pooled(scores, [row["index"] for row in finals[0]], [row["task"] for row in finals[0]])
    areas = [float(np.mean(_rewards(folder))) for folder in folders]
    return {
        "arm": arm, "learning_rate": rate, "trials": {f"{r:g}": _accuracy(folder) for r, folder in trials.items()},
        "accuracy": e.overall, "ci95": list(e.ci95), "by_task": e.by_task,
        "accuracies": [_accuracy(folder) for folder in folders], "area": float(np.mean(areas)), "areas": areas,
    }  # fmt: skip


def _rewards(folder: Path) -> list[float]:
    """The mean reward of each logged step."""
    return [row["reward"] for row in read_json_lines(folder / METRICS) if row.get("reward") is not None]
