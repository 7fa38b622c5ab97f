"""`t2i-gcpo train` of a tiny Janus with torchrun, in the few seconds that it takes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import tiny

TESTS = Path(__file__).parents[1]
PROMPTS = [f"a {color} {shape}" for shape in ("circle", "square") for color in ("red", "green", "blue", "white")]


def arguments(folder: Path, *more: str) -> list[str]:
    """Options of a run of the tiny model that is written into `folder`, with no evaluation and no pictures."""
    prompts = folder / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("\n".join(PROMPTS) + "\n")
        tiny.checkpoint(folder / "model")
    sources = [part for name in ("train", "validation", "test") for part in (f"--prompts.{name}", str(prompts))]
    fixed = {
        "generator.checkpoint": folder / "model", "generator.compile": "off", "algorithm.group-size": 4, "steps": 4,
        "prompts-per-step": 2, "optim.lr": 1e-3, "pictures.every": 0, "evaluate.every": 0, "evaluate.before": False,
        "evaluate.after": False, "checkpoint.every": 1, "logging.tensorboard": False, "logging.progress": False,
        "reward.name": "helpers.ranks_rewards:score", "reward.failure": "mark", "ranks.timeout": 600,
        "output-dir": folder / "run",
    }  # fmt: skip
    return [*sources, *(part for name, value in fixed.items() for part in (f"--{name}", str(value))), *more]


def command(count: int, options: list[str], torchrun: Sequence[str] = ()) -> list[str]:
    """Return the command line that trains on `count` processes."""
    how = [sys.executable]
    if count > 1:
        how += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *torchrun]
    return [*how, "-m", "t2i_gcpo.cli", "train", *options]


def environment(**more: str) -> dict[str, str]:
    """Return the environment in which the command and the tests' rewards are importable."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **more}


def start(count: int, options: list[str], *, torchrun: Sequence[str] = (), **more: str) -> Any:
    """Start the command on `count` processes and return the open process, its output in pipes."""
    return subprocess.Popen(
        command(count, options, torchrun),
        env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Rank:
    """Holds how one of several processes is started."""

    options: list[str]
    cwd: Path | None = None
    code: Path | None = None
    """Folder of the packages; None: this repository."""
    environment: dict[str, str] = field(default_factory=dict)


def apart(ranks: list[Rank], *, port: int | None = None, count: int | None = None) -> list[tuple[int, str]]:
    """Run the command as each of `count` processes, with torchrun's environment and without its own messages.

    Returns each one's exit status and output. port: of the main process; None: a free one. count: None: as many as
    `ranks`, and of one alone two.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    count = count or max(len(ranks), 2)
    started = []
    for number, rank in enumerate(ranks):
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        paths = os.pathsep.join(map(str, (rank.code or TESTS.parent, TESTS)))
        fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "t2i_gcpo.cli", "train", *rank.options]
        started.append(subprocess.Popen(
            command, cwd=rank.cwd or rank.code or TESTS.parent,  # python -m looks there first
            env={**os.environ, **fixed, **{name: str(value) for name, value in names.items()}, **rank.environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ))  # fmt: skip
    try:
        return [(process.wait(), said) for process in started for said in [process.communicate(timeout=300)[0]]]
    finally:
        for process in started:
            process.kill()


def finished(process: Any, timeout: float) -> tuple[int, str]:
    """Wait for the end and return the exit status and all output."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out + err


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "checkpoints").glob("step_*"))
