"""Train several arms with several seeds, each until it has sampled its budget of completions.

Each arm gets a learning rate by the same number of trials, then one run a seed.

A trial is what `t2i-gcpo text train` does with the options in the trial's run.yaml, evaluation included. Trials run in
this process one after the other, as starting TRL anew costs as much as several steps. Finished trials are not done
again, and one that was cut off begins again, so the same command goes on where it was stopped. All arms are tuned
first; then every arm runs with the first seed, then with the next, so that a study that is not finished yet has equally
many seeds of each arm.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from t2i_gcpo.text import run as runs
from t2i_gcpo.text.options import parse
from t2i_gcpo.utils import yaml_files
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.interrupt import ERRORS
from t2i_gcpo.utils.json_files import read_json
from t2i_gcpo.utils.lock import locked

RATE, OPTIONS = "learning_rate", "run.yaml"


@dataclass(frozen=True)
class Spec:
    """Holds the plan of a study. ValueError for what is missing or not allowed."""

    base: Mapping[str, Any]
    """Options that all runs share."""
    arms: Mapping[str, Mapping[str, Any]]
    """Arm -> its own options."""
    learning_rates: tuple[float, ...]
    """Tried for each arm, with `tune_seed`; the best on `tune_data` is taken."""
    seeds: tuple[int, ...]
    tune_seed: int
    against: str
    """The arm that the others are compared with, seed by seed."""
    tune: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the tuning trials, on top of `base`: fewer steps, say."""
    tune_data: str = "arithmetic:val"
    test_data: str = "arithmetic:test"

    def __post_init__(self) -> None:
        if not self.arms or not self.learning_rates or not self.seeds:
            raise ValueError("a text study needs arms, learning_rates and seeds, at least one of each")
        if self.against not in self.arms:
            raise ValueError(f"against is {self.against!r}; it must be one of the arms: {', '.join(self.arms)}")
        if not self.base.get("max_completions"):
            raise ValueError("the base has no max_completions; arms are compared at the same number of completions")
        if self.tune_seed in self.seeds:
            raise ValueError(
                f"tune_seed {self.tune_seed} is among the seeds {list(self.seeds)}; "
                "learning rates are tuned with another seed"
            )

    @staticmethod
    def read(path: Path) -> Spec:
        """Read a study's YAML."""
        options = yaml_files.load(path)
        if not isinstance(options, dict):
            raise ValueError(f"{path} is no mapping of options to values")
        known = {f.name for f in dataclasses.fields(Spec)}
        unknown = sorted(set(options) - known)
        missing = sorted({"base", "arms", "learning_rates", "seeds", "tune_seed", "against"} - set(options))
        if unknown or missing:
            raise ValueError(
                f"{path}: unknown {unknown or 'nothing'}, missing {missing or 'nothing'}; allowed: "
                f"{', '.join(sorted(known))}"
            )
        lists = {name: tuple(options[name]) for name in ("learning_rates", "seeds")}
        return Spec(**{**options, **lists})

    def to_json(self) -> dict[str, Any]:
        """Return the study as plain values."""
        return {**dataclasses.asdict(self), "learning_rates": list(self.learning_rates), "seeds": list(self.seeds)}


def run(spec: Spec, out: Path) -> dict[str, float]:
    """Run every trial that is not finished, and return the learning rate that each arm was tuned to.

    ValueError where a trial's folder holds a run with other options, or another process runs this study.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, remedy="wait for the end of that study or stop it, or name another --out"):
        for arm in spec.arms:
            for rate in spec.learning_rates:
                _train(tuning_folder(out, arm, rate), tuning_options(spec, arm, rate))
        chosen = {arm: tuned_rate(spec, out, arm) for arm in spec.arms}
        for seed in spec.seeds:
            _evaluate_start(spec, seed, out)
            for arm, rate in chosen.items():
                _train(seed_folder(out, arm, seed), trial_options(spec, arm, rate, seed))
    return chosen


def tuning_folder(out: Path, arm: str, rate: float) -> Path:
    return out / "tune" / f"{arm}_{rate:g}"


def seed_folder(out: Path, arm: str, seed: int) -> Path:
    return out / arm / f"seed_{seed}"


def start_file(out: Path, seed: int) -> Path:
    """Return the file of the evaluation before any training, with the noise of this seed's trials."""
    return out / "start" / f"seed_{seed}.json"


def tuned_rate(spec: Spec, out: Path, arm: str) -> float:
    """Return the learning rate whose trial solved most of the tuning questions; of equal ones the lowest."""
    return max(sorted(spec.learning_rates), key=lambda rate: accuracy(tuning_folder(out, arm, rate)))


def accuracy(folder: Path) -> float:
    """Read the accuracy of a finished trial."""
    return float(read_json(folder / runs.AFTER)["overall"])


def tuning_options(spec: Spec, arm: str, rate: float) -> dict[str, Any]:
    """Return the options of a tuning trial."""
    return {**trial_options(spec, arm, rate, spec.tune_seed), **spec.tune, "eval_data": spec.tune_data}


def trial_options(spec: Spec, arm: str, rate: float, seed: int) -> dict[str, Any]:
    """Return the options of a trial; its evaluation draws with the seed of its training."""
    own = {RATE: rate, "seed": seed, "eval_seed": seed, "eval_data": spec.test_data, "eval_before": False}
    return {**spec.base, **spec.arms[arm], **own}


def _train(folder: Path, options: Mapping[str, Any]) -> None:
    """Train and evaluate, unless the folder holds the finished trial. ValueError: it holds one with other options."""
    file = folder / OPTIONS
    if _is_whole(folder / runs.AFTER):
        theirs = yaml_files.load(file)
        changed = sorted(name for name in {*theirs, *options} if theirs.get(name) != options.get(name))
        if changed:
            raise ValueError(
                f"{folder} holds a trial with other options ({', '.join(changed)}); name another --out, or remove it"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.jsonl"):
        stale.unlink()
    write_atomically(file, yaml_files.dump(dict(options)))
    tqdm.write(f"training {folder}")
    interrupted_by = runs.train(*parse(["--config", str(file), "--output-dir", str(folder)]))[1]
    gc.collect()  # a trainer refers to itself, and its optimiser's memory would stay
    if interrupted_by is not None:  # it is the study that was asked to end
        raise ERRORS[interrupted_by]


def _is_whole(evaluation: Path) -> bool:
    """Tell whether a run has been evaluated; a damaged evaluation is made again."""
    try:
        read_json(evaluation, {"overall": float, "completions": list})
    except (ValueError, OSError):
        return False
    return True


def _evaluate_start(spec: Spec, seed: int, out: Path) -> None:
    """Evaluate the model that all arms start from, with the noise of the trials of this seed."""
    path = start_file(out, seed)
    if _is_whole(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {**spec.base, "seed": seed, "eval_seed": seed, "eval_data": spec.test_data, "output_dir": str(out)}
    file = path.with_suffix(".yaml")
    write_atomically(file, yaml_files.dump(options))
    run, config, _ = parse(["--config", str(file)])
    runs.evaluate_start(run, config).save(path)
