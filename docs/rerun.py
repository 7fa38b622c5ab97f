"""Run trials of the committed studies again, picked at random, with the code as it is now: `python docs/rerun.py`.

They are picked among all trials of the studies whose scores docs/evidence.md gives, and each has the options, the seed
and the noise that it had. docs/results/reruns.json says what came of it: its scores beside the committed ones, and of
how many test images the score is the same. The runs stay below runs/reruns; finished ones are not run once more, and
those of other code are refused.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evidence_worlds import World, worlds

from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.study.comparable import check_code, record_code
from t2i_gcpo.study.rows import Outcome, trial_row
from t2i_gcpo.study.spec import Study, Trial, read
from t2i_gcpo.study.state import state
from t2i_gcpo.utils.sources import code_hash

DOCS = Path(__file__).parent
OUT = Path("runs", "reruns")


def pick(found: Sequence[World], count: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Pick trials without replacement: the folder of the study, and what it says of the trial. ValueError: too many."""
    done = {key: trial for world in found for key, trial in trials_done(world).items()}
    if not 1 <= count <= len(done):
        raise ValueError(f"--count is {count}; it must be from 1 to {len(done)}, the trials that are done")
    order = sorted(done)
    random.Random(seed).shuffle(order)  # a larger count adds to a smaller one
    return [(key[0], done[key]) for key in order[:count]]


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
    resume = state(trial) != "new"
    trial.out.mkdir(parents=True, exist_ok=True)
    record_code(trial.out, trial, resume=resume)
    more = ["--resume"] if resume else []
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    with trial.log.open("ab") as log:
        subprocess.run(
            [sys.executable, "-m", "t2i_gcpo.cli", "train", *trial.arguments, *more],
            check=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
        )


def beside(before: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """Return the gain and the score of a trial as committed and as they came out again, and whether these are inside.

    That is whether the new one lies in the interval of the committed one.
    """
    kept = ("overall", "ci95", "n")
    scores = {
        when: {name: {key: row[name][key] for key in kept} for name in ("difference", "after")}
        for when, row in (("committed", before), ("again", again))
    }
    inside = {}
    for name, was in scores["committed"].items():
        low, high = was["ci95"]
        inside[name] = low <= scores["again"][name]["overall"] <= high
    return {"seed": before["seed"], "options": before["options"], **scores, "inside": inside}


def same_images(folder: str, trial: Trial, again: run_folder.Run) -> dict[str, int]:
    """Count the test images whose score is the committed one, before and after training."""
    counts = {}
    with tarfile.open(DOCS / "results" / folder / "trials.tgz") as kept:
        for name, result in (("before", again.before), ("after", again.after)):
            [member] = [one for one in kept.getnames() if one.endswith(f"trials/{trial.name}/eval_{name}.json")]
            file = kept.extractfile(member)
            assert file is not None and result is not None  # a file, and a trial that is finished
            committed = [image["score"] for image in json.load(file)["images"]]
            counts[name] = sum(was == now.score for was, now in zip(committed, result.rows, strict=True))
    return counts


def planned(folder: str, row: dict[str, Any]) -> tuple[Study, Trial]:
    """Return the study and its trial that a row of its results is of. ValueError: the study's file is another now."""
    if not (DOCS / "results" / folder / "trials.tgz").is_file():
        raise ValueError(f"{DOCS / 'results' / folder} keeps no trials.tgz to compare {row['name']} with")
    study = read(Path("configs", "studies", f"{folder}.yaml"), OUT / folder)
    trial = next((one for one in study.trials if one.name == row["name"]), None)
    if trial is None or trial.options != row["options"]:
        raise ValueError(f"{study.file} has no trial {row['name']} with the options {row['options']} any more")
    if None in (row["difference"], row["after"]):
        raise ValueError(f"{folder}/{row['name']} was not evaluated before and after")
    return study, trial


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
        study, trial = planned(folder, row)
        check_code(study, [trial.name] if state(trial) != "new" else [], mixed=False)
        trials.append(trial)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        [*pool.map(lambda trial: run(trial, threads), trials)]
    rows = []
    for (folder, row), trial in zip(picked, trials, strict=True):
        again = run_folder.read(trial.folder)
        about = {"study": folder, "trial": row["name"], "images_alike": same_images(folder, trial, again)}
        rows.append(about | beside(row, trial_row(trial, Outcome("done", again))))
    target = DOCS / "results" / "reruns.json"
    finished = sum(len(trials_done(world)) for world in found)
    content = {"seed": args.seed, "of": finished, "code": code_hash(), "trials": rows}
    target.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in rows:
        was, now = (row[when]["difference"] for when in ("committed", "again"))
        sys.stdout.write(f"{row['study']}/{row['trial']}: {was['overall']:+.4f} {was['ci95']}, {now['overall']:+.4f}\n")
    sys.stdout.write(f"wrote {target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
