"""Measure the peak memory of a run's first steps, to hold it against the plan: a process of its own.

On a GPU it is what the caching allocator gave out at most. On the CPU it is the largest resident set of the process
above that before the model was loaded, when a small model of the same kind has been through a step already: so that
libraries, which are loaded at first use, don't count. `environment()` lets glibc give memory back as soon as it is
freed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.arguments import dump, load
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.records import Prompt
from t2i_gcpo.training.trainer import Trainer

#: Steps of a measured run: from the second on AdamW's moments are there.
STEPS = 2
#: Bytes from which a block is given back as soon as it is freed. Smaller ones that are free stay in the heap, between
#: those in use, and count as resident; 64 KiB is less than the activations of the embedded generators.
MAPPED = "65536"
#: The model of each kind that goes through a step first.
SMALL: dict[str, str] = {
    "janus": "random:janus-pro-1b:layers=1,width=32",
    "amused": "random:amused-256:layers=1,width=32",
}


def measure(config: TrainConfig, kind: str, prompts: list[Prompt]) -> dict[str, Any]:
    """Run the first steps of a training in a process of its own, and return {"peak": bytes, "steps", "device"}.

    RuntimeError where that process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, texts = Path(folder) / "config.yaml", Path(folder) / "prompts.json"
        file.write_text(dump(config), encoding="utf-8")
        texts.write_text(json.dumps([prompt.text for prompt in prompts]), encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(file), str(texts), kind]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the measured run failed:\n{done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def environment() -> dict[str, str]:
    """Return the environment of a measured process: one arena, and blocks of `MAPPED` bytes given back when freed."""
    return {
        **os.environ,
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": MAPPED,
        "MALLOC_TRIM_THRESHOLD_": MAPPED,
    }


def main(argv: list[str]) -> int:
    """Run the steps of the config in the first file with the prompts in the second, and print the peak as JSON."""
    file, texts, kind = argv
    config = load(file)
    prompts = [Prompt(text) for text in json.loads(Path(texts).read_text(encoding="utf-8"))]
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, output_dir=folder, steps=STEPS)
        small = replace(config.generator, checkpoint=SMALL[kind], layers=0, width=0)
        _run(replace(config, generator=small, micro_batch=1, prompts_per_step=1), prompts)
        start = _start()
        device = _run(config, prompts)
        print(json.dumps({"peak": _peak(device) - start, "steps": STEPS, "device": str(device)}))
    return 0


def _run(config: TrainConfig, prompts: list[Prompt]) -> torch.device:
    """Take the steps of a training whose scorer needs no memory; return the device."""

    def brightness(images: Tensor, texts: list[str], metadata: list[dict[str, object]]) -> Tensor:
        return images.float().mean(dim=(1, 2, 3)) / 255

    trainer = Trainer(
        build.generator(config.generator, seed=config.seed),
        brightness,
        prompts,
        config.output_dir,
        algorithm=replace(config.algorithm, normalize_parts=False, normalize_batch=False),
        loop=config,
        sampling=config.sampling,
        optim=config.optim,
        checkpoint=config.checkpoint,
    )
    for _ in range(STEPS):
        trainer.step()
    return trainer.generator.device


def _start() -> int:
    """Forget the peak so far, and return the bytes that are held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(AttributeError, OSError):  # glibc's; other C libraries have none
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, or the run would take it from what is held already
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM to the present size
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
