"""`t2i-gcpo study FILE.yaml`: the same training for several arms and seeds, and a table that is pooled over the seeds.

FILE.yaml:

    out: runs/studies/quickstart      # --out goes first; without either: runs/studies/<name of the file>
    config: configs/quickstart.yaml   # of every arm; sought from here, then from FILE's folder; optional
    seeds: [0, 1, 2]                  # of the training, and of its evaluations' noise
    options: {evaluate.test_limit: 600}   # options of every trial, dotted or nested; optional
    arms:                             # name -> options; `config:` in an arm replaces the one above
      grpo: {algorithm.name: grpo}
      gcpo: {algorithm.name: gcpo}
    grid:                             # option -> values, all combinations in each arm; optional
      optim.lr: [5.0e-5, 1.0e-4]
      distribution: [guided, conditional]
    against: grpo                     # arm, or list of arms, that the others are compared with, seed by seed; optional

A trial is an arm at a point of the grid with a seed: a `t2i-gcpo train` of its own, in OUT/trials/ARM-KEY=VALUE/seed_S,
its output in OUT/logs/. The same command again goes on where the study stopped: finished trials are skipped, unfinished
ones resumed, failed ones tried again. Arms that stand against one another must start from one checkpoint, with the same
prompts and the same number of images, and all trials must be run by the same code.

A trial ends with the study, whatever way that ends. SIGTERM and SIGHUP are taken as Ctrl-C, and SIGUSR1 lets the
running trials save and go on.

OUT/results.json and OUT/table.md are written anew after every trial, OUT/compare/ (curves, a report) at the end. The
exit status is 1 where a trial failed, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.reports import comparison as compare
from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.reports.tables import number, with_interval
from t2i_gcpo.study.comparable import FILE, check_arms, check_code, check_unchanged, record_code
from t2i_gcpo.study.results import Results
from t2i_gcpo.study.rows import Outcome
from t2i_gcpo.study.spec import Study, Trial, read
from t2i_gcpo.study.state import damage, state
from t2i_gcpo.training.tracker import METRICS
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.device import pick_device
from t2i_gcpo.utils.interrupt import on_interrupt, on_save_request
from t2i_gcpo.utils.lock import holder, locked
from t2i_gcpo.utils.secret_options import masked
from t2i_gcpo.utils.sources import code_hash

POLL_SECONDS = 0.1
PROGRESS_SECONDS = 2.0
KILL_SECONDS = 10.0


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; it must be at least 1")
    study = read(args.file, args.out)
    check_arms(study)
    damaged = {trial.name: reason for trial in study.trials if (reason := damage(trial))}
    states = {trial.name: state(trial) for trial in study.trials if trial.name not in damaged}
    if args.dry_run:
        for trial in study.trials:
            line = shown_command(trial, resume=states.get(trial.name) == "unfinished")
            tqdm.write(f"{trial.name} ({states.get(trial.name, 'damaged')}): {shlex.join(line)}")
        return 0
    check_folder(study.out, "results.json", "table.md", FILE)
    check_code(study, [name for name, found in states.items() if found != "new"], mixed=args.mixed_code)
    study.out.mkdir(parents=True, exist_ok=True)
    with locked(study.out, remedy="wait for the end of that study or stop it, or name another --out"):
        return _run_and_report(study, damaged, args)


def _run_and_report(study: Study, damaged: Mapping[str, str], args: argparse.Namespace) -> int:
    """Run what is not finished, and write and show the results. Returns the exit status."""
    threads = max(1, _cores() // args.jobs)
    results = Results(study, _about(study, args.jobs, threads))
    todo = []
    for trial in study.trials:
        if trial.name in damaged:
            results.record(trial, Outcome("failed", last_line=damaged[trial.name]))
        elif state(trial) == "finished":
            results.record(trial, Outcome("done", run_folder.read(trial.folder)))
        else:
            todo.append(trial)
    results.write()
    interrupted = _run(study, todo, results, args.jobs, threads, mixed=args.mixed_code)
    results.show()
    written = [study.out / "results.json", study.out / "table.md"]
    if interrupted:
        again = ["t2i-gcpo", "study", str(args.file), "--out", str(study.out), "--jobs", str(args.jobs)]
        tqdm.write(f"interrupted; go on with: {shlex.join(again)}")
    elif results.finished():
        written.append(_compare(results, study.out / "compare"))
    for path in written:
        tqdm.write(f"wrote {path}")
    return 130 if interrupted else int(bool(results.failed()))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="t2i-gcpo study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=home_path, help="the study, a YAML as above")
    parser.add_argument("--out", type=home_path, help="folder to write to, instead of the file's `out`")
    parser.add_argument(
        "--jobs", type=int, default=1, help="trials at once, which share the cores (default: %(default)s)"
    )
    parser.add_argument(
        "--mixed-code", action="store_true", help="go on although trials that are done ran with other code"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the trials and their commands, and run nothing")
    return parser


def command(trial: Trial, *, resume: bool) -> list[str]:
    """Return the training of a trial, as a process that ends with the study."""
    return [sys.executable, "-m", "t2i_gcpo.study.trial", "train", *trial.arguments, *_more(resume)]


def shown_command(trial: Trial, *, resume: bool) -> list[str]:
    """Return the training of a trial as a user may run it, and as a log may have it: secret options are hidden."""
    return [sys.executable, "-m", "t2i_gcpo.cli", "train", *map(masked, trial.arguments), *_more(resume)]


def _more(resume: bool) -> list[str]:
    return ["--resume"] if resume else []


@dataclass
class _Job:
    trial: Trial
    process: subprocess.Popen[bytes]
    started: float


def _run(study: Study, todo: list[Trial], results: Results, jobs: int, threads: int, *, mixed: bool) -> bool:
    """Run the trials `todo`, `jobs` at once, and record each outcome. Returns whether a signal ended it."""
    running: list[_Job] = []
    awaited: set[str] = set()  # trials that run already, left over of a study that was killed
    stopping, told, shown = False, False, 0.0

    def stop(_: str) -> None:
        nonlocal stopping
        stopping = True

    def save() -> None:
        for job in running:
            job.process.send_signal(signal.SIGUSR1)

    total, code = len(study.trials), code_hash()
    with (
        tqdm(total=total, initial=total - len(todo), unit="trial", dynamic_ncols=True, disable=None) as bar,
        _until(stop),
        on_save_request(save),
    ):
        try:
            while running or (todo and not stopping):
                while len(running) < jobs and not stopping and (trial := _next(todo, awaited)) is not None:
                    resume = state(trial) != "new"
                    check_unchanged(code, mixed=mixed)
                    record_code(study.out, trial, resume=resume)
                    running.append(_start(trial, threads, resume=resume))
                if stopping and not told:
                    told = True
                    tqdm.write("stopping: the running trials finish their step and save; Ctrl-C again kills them")
                    for job in running:
                        job.process.send_signal(signal.SIGINT)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    outcome = _outcome(job, stopping=stopping)
                    results.record(job.trial, outcome)
                    results.write()
                    tqdm.write(_line(job, outcome))
                    bar.update()
                if time.monotonic() - shown > PROGRESS_SECONDS:
                    shown = time.monotonic()
                    bar.set_postfix_str(", ".join(f"{job.trial.name} {_progress(job.trial)}" for job in running))
                time.sleep(POLL_SECONDS)
        finally:
            _end(running)
    return stopping


def _next(todo: list[Trial], awaited: set[str]) -> Trial | None:
    """Take the first trial that no other process trains, out of `todo`.

    Tell once for each of the others that it is waited for.
    """
    for index, trial in enumerate(todo):
        who = holder(trial.folder)
        if who is None:
            return todo.pop(index)
        if trial.name not in awaited:
            awaited.add(trial.name)
            tqdm.write(f"{trial.name} is being trained by {who}; waiting for its end")
    return None


def _start(trial: Trial, threads: int, *, resume: bool) -> _Job:
    """Start a training in a session of its own.

    The terminal's Ctrl-C would else reach it beside ours, and two of them end it at once.
    """
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    line = command(trial, resume=resume)
    # Unbuffered, so that an error is the log's last line, below what was printed before it.
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUNBUFFERED": "1"}
    with trial.log.open("ab") as log:
        log.write(f"$ {shlex.join(shown_command(trial, resume=resume))}\n".encode())
        log.flush()
        process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return _Job(trial, process, time.monotonic())


def _outcome(job: _Job, *, stopping: bool) -> Outcome:
    status = job.process.returncode
    if status == 0 and state(job.trial) == "finished":
        return Outcome("done", run_folder.read(job.trial.folder), status)
    if stopping:
        return Outcome("interrupted", exit_status=status)
    return Outcome("failed", exit_status=status, last_line=_last_line(job.trial.log))


def _last_line(log: Path) -> str:
    """Return the last line with anything in it; of a progress bar that is its last state."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _line(job: _Job, outcome: Outcome) -> str:
    minutes = f"{(time.monotonic() - job.started) / 60:.1f} min"
    if outcome.run is None:
        about = f" (status {outcome.exit_status}): {outcome.last_line}" if outcome.status == "failed" else ""
        return f"{job.trial.name}: {outcome.status} after {minutes}{about}"
    difference, reason = outcome.run.difference()
    if difference is None or outcome.run.before is None or outcome.run.after is None:
        return f"{job.trial.name}: done in {minutes}; {reason}"
    scores = f"{number(outcome.run.before.overall)} -> {number(outcome.run.after.overall)}"
    return (
        f"{job.trial.name}: {scores}, {with_interval(difference.overall, difference.ci95, signed=True)}, in {minutes}"
    )


def _progress(trial: Trial) -> str:
    """Return how far a trial is, as 12/60: a line of metrics is a step."""
    file = trial.folder / METRICS
    steps = file.read_bytes().count(b"\n") if file.is_file() else 0
    return f"{steps}/{trial.settings.steps}"


@contextmanager
def _until(stop: Callable[[str], None]) -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and SIGHUP call `stop`; a second Ctrl-C interrupts."""
    previous = signal.getsignal(signal.SIGINT)
    if previous == signal.SIG_IGN:  # in the background: a handler that does nothing is not inherited,
        signal.signal(signal.SIGINT, lambda *_: None)  # while trials that ignore SIGINT could not be told to save
    try:
        with on_interrupt(stop):
            if previous == signal.SIG_IGN:
                signal.signal(signal.SIGINT, lambda *_: None)
            yield
    finally:
        if previous == signal.SIG_IGN:
            signal.signal(signal.SIGINT, previous)


def _end(running: list[_Job]) -> None:
    """Let no trial outlive the study.

    One that was told to stop ends at once at the second SIGINT, any other saves first.
    """
    for job in running:
        job.process.send_signal(signal.SIGINT)
        job.process.terminate()
    for job in running:
        try:
            job.process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()


def _compare(results: Results, out: Path) -> Path:
    """Compare the finished runs as `t2i-gcpo compare` does, but without its table on the terminal.

    Ours stands there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with redirect_stdout(io.StringIO()):
        compare.write(results.finished(), out)
    return out / "report.html"


def _about(study: Study, jobs: int, threads: int) -> dict[str, object]:
    from t2i_gcpo.bench.measure import machine, versions

    device = pick_device(study.trials[0].settings.generator.device)
    about = {"versions": versions(), "machine": machine(device), "jobs": jobs}
    return {**about, "threads_per_trial": os.environ.get("OMP_NUM_THREADS", str(threads))}


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
