"""Count what the processes of a run send one another for an update, against the least that they could.

Start it with torchrun. Every process gets random gradients; they are summed, the shards updated, and the new weights
sent to all, as in a run. n trained parameters, N processes, b bytes of a weight: a process sends at least
(N - 1) / N * 4 n bytes of fp32 gradients (reduce-scatter) and (N - 1) / N * b n of weights (all-gather), in two calls.
More is padding, of parameters to N equal chunks, and one pair of calls for each bucket of parameters. The memory of
whole gradients and of their exchange is measured, too, against what `t2i-gcpo plan` counts for it.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from rich.console import Console

from t2i_gcpo import generators
from t2i_gcpo.bench import positive
from t2i_gcpo.bench.measure import Report, cost, peak_bytes, seconds
from t2i_gcpo.commands.options.number_types import count
from t2i_gcpo.planning.memory import exchanged, sent_bytes
from t2i_gcpo.training.optim import adamw
from t2i_gcpo.training.options import OptimConfig
from t2i_gcpo.training.ranks import torchrun
from t2i_gcpo.training.sharded_weights import ShardedWeights, masters_of
from t2i_gcpo.utils.processes import Processes

BASELINE = "the least, and the plan's memory"
#: A reduce-scatter of all gradients, and an all-gather of all weights.
LEAST_CALLS = 2
MB = 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="janus-mini", help="embedded name, folder or hub repository")
    parser.add_argument("--pairs", type=positive, default=5, help="updates that are measured")
    parser.add_argument("--lora-rank", type=count, default=0, help="rank of adapters; 0 trains all weights")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32 or bfloat16")


class Update:
    """Holds a generator's shards and their optimiser; calling it updates them from random gradients."""

    def __init__(self, options: argparse.Namespace, processes: Processes) -> None:
        self.device = processes.device(options.device)
        generator = generators.load(options.checkpoint, device=self.device, dtype=options.dtype)
        if options.lora_rank:
            generator.add_lora(rank=options.lora_rank, alpha=2.0 * options.lora_rank, seed=options.seed)
        weights = masters_of(generator, processes)
        if not isinstance(weights, ShardedWeights):
            raise TypeError("several processes hold their weights in shards")
        self.weights, self.trained = weights, generator.trainable_parameters()
        self.optimizer = adamw(weights, OptimConfig())
        self._rng = torch.Generator(device=self.device).manual_seed(options.seed + processes.rank)

    def draw_gradients(self) -> None:
        for parameter in self.trained:
            noise = torch.randn(parameter.shape, generator=self._rng, device=parameter.device)
            parameter.grad = noise.to(parameter.dtype)

    def exchange_gradients(self) -> None:
        self.draw_gradients()
        self.weights.reduce()

    def __call__(self) -> None:
        self.weights.reduce()
        self.weights.clip_gradients(1.0)
        self.optimizer.step()
        self.weights.write_back()


def run(options: argparse.Namespace, console: Console) -> Report:
    """Count and time the exchange. ValueError without several processes."""
    with torchrun(quiet=True) as processes:
        if processes.count == 1:
            raise ValueError(
                "one process exchanges nothing; start several: torchrun --standalone --nproc-per-node 2 --no-python "
                "t2i-gcpo bench ranks"
            )
        update = Update(options, processes)
        traffic, device = update.weights.traffic, update.device
        rounds: list[tuple[float, int, int]] = []  # seconds, bytes, calls
        for _ in range(options.pairs + 1):
            update.draw_gradients()
            before = (traffic.bytes, traffic.calls)
            processes.wait()
            rounds.append((seconds(update, device), traffic.bytes - before[0], traffic.calls - before[1]))
        update.weights.clear_gradients()
        made = float(peak_bytes(update.exchange_gradients, device))
        (warmup, *_), *measured = rounds
        times, sent, calls = ([float(value) for value in values] for values in zip(*measured, strict=True))
        console.print(f"an update's exchange and optimiser: {statistics.median(times):.3f} s", highlight=False)
        return _report(options, update, processes.count, times, sent, calls, made, warmup)


def _report(
    options: argparse.Namespace,
    update: Update,
    count: int,
    times: list[float],
    sent: list[float],
    calls: list[float],
    made: float,
    warmup: float,
) -> Report:
    sizes = [parameter.numel() for parameter in update.trained]
    least = sent_bytes(trained=sum(sizes), itemsize=update.trained[0].element_size(), gpus=count)
    planned = sum(exchanged(sizes, gpus=count).values())
    lines = (
        cost("sent", sent, [least] * len(sent), unit="MB", scale=1 / MB, seed=options.seed),
        cost("calls", calls, [LEAST_CALLS] * len(calls), unit="calls", seed=options.seed),
        cost("exchange_memory", [made], [planned], unit="MB", scale=1 / MB, seed=options.seed),
    )
    settings = {
        "checkpoint": options.checkpoint,
        "processes": count,
        "trained_parameters": sum(sizes),
        "dtype": str(update.trained[0].dtype),
        "seconds_an_update": statistics.median(times),
        "seed": options.seed,
    }
    return Report("ranks", lines, BASELINE, {"update": warmup}, update.device, settings)
