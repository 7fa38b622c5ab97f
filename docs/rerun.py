"""Run trials of the committed studies again, picked at random, with the code as it is now: `python docs/rerun.py`.

They are picked among all trials of the studies whose scores docs/evidence.md gives, and each has the options, the seed
and the noise that it had. docs/results/reruns.json says what came of it; the runs stay below runs/reruns, and those
that are finished are not run once more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evidence_worlds import World, worlds

from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.study.rows import Outcome, trial_row
from t2i_gcpo.study.spec import Trial, read
from t2i_gcpo.study.state import state

DOCS = Path(__file__).parent
OUT = Path("runs", "reruns")


def pick(found: Sequence[World], count: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Pick trials without replacement: the folder of the study, and what it says of the trial. ValueError: too many."""
    done = {key: trial for world in found for key, trial in trials_done(world).items()}
    if not 1 <= count <= len(done):
        raise ValueError(f"--count is {count}; it must be from 1 to {len(done)}, the trials that are done")
    return [(key[0], done[key]) for key in random.Random(seed).sample(sorted(done), count)]


def trials_done(world: World) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what the studies of a world say of each trial that is done, by the study's folder and the trial's name."""
    return {
        (folder, trial["name"]): trial
        for folder, study in world.studies.items()
        for trial in study["trials"]
        if trial["status"] == "done"
    }


def run(trial: Trial, threads: int) -> None:
    """Train a trial, or go on where it stopped; its output goes to its log. CalledProcessError where it fails."""
    if state(trial) == "finished":
        return
    more = [] if state(trial) == "new" else ["--resume"]
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    with trial.log.open("ab") as log:
        subprocess.run(
            [sys.executable, "-m", "t2i_gcpo.cli", "train", *trial.arguments, *more],
            check=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
        )


def beside(before: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """Return the gain and the score of a trial as committed and as they came out again, and whether it is inside."""
    again = trial_row(trial, Outcome("done", run_folder.read(trial.folder)))
    kept = ("overall", "ci95", "n")
    scores = {
        when: {name: {key: row[name][key] for key in kept} for name in ("difference", "after")}
        for when, row in (("committed", before), ("again", again))
    }
    inside = {
        name: scores["committed"][name]["ci95"][0] <= scores["again"][name]["overall"]
        <= scores["committed"][name]["ci95"][1]
        for name in ("difference", "after")
    }  # fmt: skip
    return {"seed": before["seed"], "options": before["options"], **scores, "inside": inside}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="rerun.py", description=__doc__)
    parser.add_argument("--count", type=int, default=3, help="trials (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trials at once (default: %(default)s)")
    args = parser.parse_args(argv)
    found = worlds(DOCS / "results")
    picked = pick(found, args.count, args.seed)
    trials = []
    for folder, row in picked:
        study = read(Path("configs", "studies", f"{folder}.yaml"), OUT / folder)
        trials.append(next(trial for trial in study.trials if trial.name == row["name"]))
        if trials[-1].options != row["options"]:
            raise ValueError(f"{folder}/{row['name']} has other options in {study.file} than in its results")
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        [*pool.map(lambda trial: run(trial, threads), trials)]
    rows = [
        {"study": folder, "trial": row["name"], **beside(row, trial)}
        for (folder, row), trial in zip(picked, trials, strict=True)
    ]
    target = DOCS / "results" / "reruns.json"
    content = {"seed": args.seed, "of": sum(len(trials_done(one)) for one in found), "trials": rows}
    target.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in rows:
        was, now = (row[when]["difference"] for when in ("committed", "again"))
        sys.stdout.write(f"{row['study']}/{row['trial']}: {was['overall']:+.4f} {was['ci95']}, {now['overall']:+.4f}\n")
    sys.stdout.write(f"wrote {target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
