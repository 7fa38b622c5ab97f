"""Every tensor of an update on one of several processes, counted by phase; and a process that stands for all of them.

As a program, for torchrun: argv is the generator's folder, its precision, the micro-batch and the file to write.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from t2i_gcpo import generators
from t2i_gcpo.algorithms import resolve, token_advantages
from t2i_gcpo.planning.trace import _Ledger
from t2i_gcpo.records import Prompt, Rows, Sampling
from t2i_gcpo.training.options import LoopOptions, OptimConfig
from t2i_gcpo.training.ranks import Ranks, torchrun
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils.clock import Clock
from t2i_gcpo.utils.processes import Processes

#: Rows of one process: two prompts, which are equally long, of four images.
PROMPTS, GROUP = [Prompt("a red circle left of a blue square"), Prompt("a white star right of a green circle")], 4


class Alike(Ranks):
    """Stands for one of `count` processes that all hold the same; its collectives are `copying`'s."""

    def __init__(self, count: int) -> None:
        self.rank, self.count = 0, count

    def gather(self, item: Any) -> list[Any]:
        return [item] * self.count

    def mesh(self, device: torch.device) -> Any:
        return Mesh(self.count)


class Mesh:
    """Stands for the mesh of one machine; of it `mesh["shard"].size()` and the like are asked."""

    def __init__(self, count: int) -> None:
        self._sizes = {"replicate": 1, "shard": count}

    def __getitem__(self, name: str) -> Any:
        return SimpleNamespace(size=lambda: self._sizes[name], get_local_rank=lambda: 0)

    def get_group(self, name: str) -> None:
        """Return no group: nothing is sent."""


class Copying:
    """Collectives that make the one flat copy that NCCL makes, and give this process's own values."""

    @staticmethod
    def reduce_scatter(output: Tensor, inputs: Sequence[Tensor], group: Any) -> None:
        flat = torch.stack(list(inputs))
        output.copy_(flat[0])

    @staticmethod
    def all_gather(outputs: Sequence[Tensor], given: Tensor, group: Any) -> None:
        flat = torch.stack([given] * len(outputs))
        for output, row in zip(outputs, flat, strict=True):
            output.copy_(row)


class Peaks(_Ledger):
    """Counts as a ledger does, and notes the most bytes that were held since `peak` was set."""

    peak = 0

    def _change(self, number: int, size: int) -> None:
        super()._change(number, size)
        self.peak = max(self.peak, self.held)


def measure(folder: str, dtype: str, micro_batch: int, processes: Processes, reduce: Any = "update") -> dict[str, int]:
    """Return the most bytes of each phase of a second update that are held beside the generator's own weights."""
    generator = generators.load(folder, dtype=dtype, compile=False)
    drawn = generator.sample(PROMPTS, Sampling(guidance=2.0, group_size=GROUP, seed=1))
    algorithm = resolve("gcpo", group_size=GROUP, kl_coef=0.0)
    targets = token_advantages(algorithm, drawn, torch.arange(8.0), generator=torch.Generator())
    rows = Rows(torch.arange(8) + 8 * processes.rank, 8 * processes.count)
    peaks: dict[str, int] = {}
    with Peaks() as ledger:
        loop = LoopOptions(micro_batch=micro_batch, kl_every=0, reduce_gradients=reduce)
        updater = Updater(generator, algorithm, loop, OptimConfig(), processes)
        exchange = updater.weights._exchange  # type: ignore[union-attr]

        def close(phase: str) -> None:
            peaks[phase] = max(peaks.get(phase, 0), ledger.peak)
            ledger.peak = ledger.held

        def counted() -> None:
            close("update")
            exchange()
            close("exchange")

        updater.weights._exchange = counted  # type: ignore[union-attr]
        for _ in range(2):  # from the second on there are moments, and gradients of the one before
            peaks.clear()
            ledger.peak = ledger.held
            updater.update(drawn, targets, Clock(torch.device("cpu")), torch.Generator(), rows=rows)
            close("optimizer")
    return peaks


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, dtype, micro_batch, file = sys.argv[1:]
    with torchrun(timeout=60) as ranks:
        peaks = measure(folder, dtype, int(micro_batch), ranks)
        if ranks.is_main:
            Path(file).write_text(json.dumps(peaks))
