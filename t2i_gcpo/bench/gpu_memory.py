"""Hold the peak memory of each phase of a GCPO step against the plan of the same step.

A phase's number is what it holds beyond the state (weights, masters, moments, gradients, reference), which is there in
all of them: so large weights hide no error. On a GPU it is the caching allocator's record. On a CPU it is the running
sum of the allocations that torch's profiler saw; the state is not told apart there from the rest of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from t2i_gcpo.algorithms import Algorithm
from t2i_gcpo.bench.measure import peak_bytes
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.planning import memory
from t2i_gcpo.planning.memory import Phase
from t2i_gcpo.planning.models import PassOptions, PlannedModel
from t2i_gcpo.planning.plan import load, plan, sampling_bytes
from t2i_gcpo.planning.sources import find
from t2i_gcpo.planning.workload import Workload, branches
from t2i_gcpo.records import Rollout, Sampling
from t2i_gcpo.training.options import LoopOptions
from t2i_gcpo.training.updater import Updater


@dataclass(frozen=True)
class Measured:
    """Holds a phase's bytes beyond the state, or those of the state."""

    phase: str
    measured: int | None
    """None where they cannot be measured."""
    planned: int


def workload(
    generator: Janus,
    algorithm: Algorithm,
    how: Sampling,
    loop: LoopOptions,
    *,
    images: int,
    columns: int,
    compile: bool,
) -> Workload:
    """Return what the benchmark's step asks of its model. columns: of its longest prompt."""
    folded, negative_text = branches(replace(how, contrast=algorithm.needs_contrast), None)
    options = PassOptions(
        dtype=generator.dtype,
        distribution=loop.distribution,
        guidance=how.guidance,
        head_chunk=generator.scorer.head_chunk,
        prompt_columns=columns,
    )
    return Workload(
        steps=loop.steps,
        prompts=images // how.group_size,
        group=how.group_size,
        micro_batch=loop.micro_batch,
        max_batch=images,
        updates=1,
        epochs=1,
        branches=folded,
        negative_text=negative_text,
        kl_always=True,  # the benchmark's reference stays on the device
        kl_every=loop.kl_every,
        compile=compile,
        on_cpu=generator.device.type == "cpu",
        merged=False,
        options=options,
    )


def planned_model(checkpoint: str, *, layers: int, width: int, dtype: torch.dtype) -> PlannedModel:
    return load(find(checkpoint, layers=layers, width=width, hub=True), dtype)


def rollout_bytes(model: PlannedModel, work: Workload) -> int:
    """Return the bytes that a rollout holds at most, weights included, before anything is trained."""
    return weights_bytes(model, work) + sum(sampling_bytes(model, work))


def passes_bytes(model: PlannedModel, work: Workload) -> int:
    """Return the bytes of a micro-batch's passes, weights included, whose gradients are thrown away."""
    traced = model.update(work.micro_batch, work.options)
    made = sum(model.trained(0)) * work.options.dtype.itemsize
    return weights_bytes(model, work) + max(traced.peak, made + traced.peak - traced.kept)


def weights_bytes(model: PlannedModel, work: Workload) -> int:
    """Return the bytes of what is on the device of the model."""
    held = sum(number for part, number in model.frozen.items() if work.on_cpu or part not in model.idle)
    itemsize = work.options.dtype.itemsize
    return (model.policy + held) * itemsize + model.fp32 * (memory.FP32 - itemsize)


def phases(
    updater: Updater,
    model: PlannedModel,
    work: Workload,
    sample: Callable[[], Rollout],
    update: Callable[[Rollout], Any],
) -> list[Measured]:
    """Measure the phases of a step, one after the other, of an updater that has taken a step before.

    The update includes the scoring under the reference and the optimiser's step; of the three the plan's largest number
    counts.
    """
    generator: Any = updater.generator
    device = generator.device
    state, planned = beyond_state(plan(model, work).phases)
    allocated = torch.cuda.memory_allocated(device) if device.type == "cuda" else None
    rollout = sample()

    @torch.no_grad()
    def score() -> None:
        with generator.reference():
            for part in torch.arange(rollout.batch).split(work.micro_batch):
                generator.training_scores(rollout.rows(part), distribution=work.options.distribution)

    sides = {"sample": sample, "decode": lambda: generator.decode(rollout.tokens), "score": score}
    rows = [Measured("state", allocated, state)]
    rows += [Measured(name, peak_bytes(side, device), planned[name]) for name, side in sides.items()]
    updater.weights.clear_gradients()  # those of the step before, which an update begins by throwing away
    peak = peak_bytes(lambda: update(rollout), device)
    return [*rows, Measured("update", peak, max(planned[name] for name in ("score", "update", "optimizer")))]


def beyond_state(planned: list[Phase]) -> tuple[int, dict[str, int]]:
    """Return the bytes of the state, and what each phase holds beyond it.

    The passes of the update and the optimiser's step hold gradients of their own, so these are counted to them.
    """
    by_name = {phase.name: phase for phase in planned}
    last = by_name["optimizer"]
    gradients = last.parts["gradients"]
    state = last.total - last.parts["optimizer scratch"] - last.parts["keys and values"]
    own = {"update": gradients, "optimizer": gradients}
    return state, {name: phase.total - state + own.get(name, 0) for name, phase in by_name.items()}
