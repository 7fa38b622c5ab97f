"""`t2i-gcpo train` of a tiny Janus with torchrun, in the few seconds that it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def start(count: int, options: list[str], *, torchrun: list[str] | None = None, **environment: str) -> Any:
    """Start the command on `count` processes and return the open process, its output in pipes."""
    how = [sys.executable]
    if count > 1:
        how += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *(torchrun or [])]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return subprocess.Popen(
        [*how, "-m", "t2i_gcpo.cli", "train", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: Any, timeout: float) -> tuple[int, str]:
    """Wait for the end and return the exit status and all output."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out + err


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "checkpoints").glob("step_*"))
