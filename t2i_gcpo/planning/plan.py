"""A plan: the peaks of each phase, the work of a step, and how long it takes at least on a card."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from t2i_gcpo.generators import advice
from t2i_gcpo.generators.janus.adapter import DECODE_ROWS_CPU
from t2i_gcpo.planning import memory
from t2i_gcpo.planning.amused import PlannedAmused
from t2i_gcpo.planning.cards import Card
from t2i_gcpo.planning.janus import PlannedJanus
from t2i_gcpo.planning.memory import FP32, MOMENTS, Phase
from t2i_gcpo.planning.models import PlannedModel
from t2i_gcpo.planning.sources import Source
from t2i_gcpo.planning.trace import Trace
from t2i_gcpo.planning.workload import Workload

MODELS: dict[str, type[PlannedJanus] | type[PlannedAmused]] = {"janus": PlannedJanus, "amused": PlannedAmused}


@dataclass(frozen=True)
class Work:
    """Holds what a phase of a step computes and moves."""

    flops: float
    moved: float
    """Bytes read and written in the card's memory, as far as they bound the phase."""


@dataclass(frozen=True)
class Plan:
    """Holds what a run needs on one card."""

    parameters: dict[str, int]
    """Part -> number; "trained" among them counts policy or adapters."""
    phases: list[Phase]
    work: dict[str, Work]
    """Phase of a step -> its work."""
    validation: Work
    """The work of all validations."""
    checkpoint: int
    """Bytes of a checkpoint."""
    steps: int
    sent: int
    """Bytes that each card sends to the others in a step; 0 for one."""
    logits: int = 0
    """The most bytes of logits, and of what is made of them, that the update's passes hold at a time."""

    @property
    def peak(self) -> Phase:
        """Return the phase that holds most."""
        return max(self.phases, key=lambda phase: phase.total)

    def step_seconds(self, card: Card) -> dict[str, float]:
        """Return the least seconds of each phase of a step on a card."""
        return {name: card.seconds(work.flops, work.moved) for name, work in self.work.items()}

    def hours(self, card: Card) -> float:
        """Return the least hours of the run: its steps and validations, without the scorers."""
        step = sum(self.step_seconds(card).values())
        return (self.steps * step + card.seconds(self.validation.flops, self.validation.moved)) / 3600

    def fits(self, card: Card) -> bool:
        return self.peak.total <= card.usable


def load(source: Source, dtype: torch.dtype) -> PlannedModel:
    """Make the planned model of a source. ValueError for a kind of model that there is no plan for."""
    if source.kind not in MODELS:
        known = ", ".join(MODELS)
        raise ValueError(
            f"there is no plan for models of type {source.kind!r}; there is for {known}{advice(source.kind)}"
        )
    return MODELS[source.kind](source, dtype)


def plan(model: PlannedModel, load: Workload) -> Plan:
    """Plan a run."""
    options, itemsize = load.options, load.options.dtype.itemsize
    adapters, trained = _trained(model, load)
    micro = load.micro_batches
    update = model.update(micro[0], options)
    score = model.score(load.scored_at_once, options)
    decoded, (cache, sampling) = _decoded(load), sampling_bytes(model, load)
    decode = model.decode(decoded, options)
    phases = memory.phases(
        _state(model, load),
        cache=cache,
        cache_stays=_cache_stays(load),
        sampling=sampling,
        decoding=decode.peak,
        scoring=score.peak,
        update=_passes(model, load, update),
        exchange=_exchange(model, load) if load.gpus > 1 else None,
        optimizer=_optimizer(model, load),
        twice=_twice(model, load, trained),
        visiting=_visiting(model, load, trained),
    )
    parameters = {"policy": model.policy, **model.frozen, "trained": trained}
    work = _work(model, load, trained, update.flops / micro[0], score.flops, decode.flops / decoded)
    validation = _validation(load, work["sample"], work["decode"])
    frozen = sum(model.frozen.values())
    checkpoint = memory.checkpoint_bytes(
        frozen=frozen, policy=model.policy, trained=trained, adapters=adapters, itemsize=itemsize
    )
    exchanges = len(micro) if load.each_pass else 1
    sent = load.updates * memory.sent_bytes(trained=trained, itemsize=itemsize, gpus=load.gpus, exchanges=exchanges)
    return Plan(parameters, phases, work, validation, checkpoint, load.steps, sent, update.logits)


@functools.lru_cache(maxsize=16)  # the cards of a plan ask for the same passes
def sample_phase(model: PlannedModel, load: Workload) -> Phase:
    """Return the peak of sampling, as `plan` has it among the others."""
    cache, sampling = sampling_bytes(model, load)
    twice = _twice(model, load, _trained(model, load)[1])
    return memory.sample_phase(_state(model, load), cache=cache, twice=twice, sampling=sampling)


@functools.lru_cache(maxsize=16)
def decode_phase(model: PlannedModel, load: Workload) -> Phase:
    """Return the peak of decoding, as `plan` has it among the others."""
    decoding = model.decode(_decoded(load), load.options).peak
    return memory.decode_phase(_state(model, load), stays=_staying_cache(model, load), decoding=decoding)


@functools.lru_cache(maxsize=16)
def update_phase(model: PlannedModel, load: Workload) -> Phase:
    """Return the peak of the update's passes, as `plan` has it among the others."""
    passes = _passes(model, load, model.update(load.micro_batches[0], load.options))
    return memory.update_phase(_state(model, load), stays=_staying_cache(model, load), update=passes)


@functools.lru_cache(maxsize=16)
def score_phase(model: PlannedModel, load: Workload) -> Phase:
    """Return the peak of scoring under the reference, as `plan` has it among the others."""
    score = model.score(load.scored_at_once, load.options)
    stays, visiting = _staying_cache(model, load), _visiting(model, load, _trained(model, load)[1])
    return memory.score_phase(_state(model, load), stays=stays, visiting=visiting, scoring=score.peak)


def _passes(model: PlannedModel, load: Workload, update: Trace) -> dict[str, int]:
    """Return the gradients and activations of an update's passes."""
    return memory.passes(
        model.trained(load.options.lora_rank),
        itemsize=load.options.dtype.itemsize,
        kept=update.kept,
        peak=update.peak,
        several=len(load.micro_batches) > 1,
        gpus=load.gpus,
        each_pass=load.each_pass,
    )


def _exchange(model: PlannedModel, load: Workload) -> dict[str, int]:
    """Return the gradients and buckets of their exchange between several cards."""
    sizes = model.trained(load.options.lora_rank)
    if not load.each_pass:
        return memory.exchanged(sizes, gpus=load.gpus)
    itemsize, several = load.options.dtype.itemsize, len(load.micro_batches) > 1
    return memory.exchanged(sizes, gpus=load.gpus, itemsize=itemsize, earlier=several)


def _trained(model: PlannedModel, load: Workload) -> tuple[int, int]:
    """Return the parameters of the adapters, and all that are trained."""
    trainable = sum(model.trained(load.options.lora_rank))
    return trainable if load.options.lora_rank else 0, trainable if load.trains else 0


def _state(model: PlannedModel, load: Workload) -> memory.State:
    """Count what is there in every phase."""
    adapters, trained = _trained(model, load)
    held = sum(number for part, number in model.frozen.items() if load.on_cpu or part not in model.idle)
    return memory.state(
        policy=model.policy,
        frozen=held,
        trained=trained,
        adapters=adapters,
        itemsize=load.options.dtype.itemsize,
        fp32=model.fp32,
        reference=load.reference_share > 0 and not _parked(load),
        moving=load.moving_reference,
        averaged=load.averaged,
        gpus=load.gpus,
    )


def held_bytes(model: PlannedModel, load: Workload) -> int:
    """Count the bytes that are there in every phase."""
    return sum(_state(model, load).parts.values())


def _parked(load: Workload) -> bool:
    """Say whether the reference, which is needed now and then, lies in the host's memory in between."""
    return not (load.kl_always or load.on_cpu)


def sampling_bytes(model: PlannedModel, load: Workload) -> tuple[int, int]:
    """Count the bytes of the buffers of keys and values, and what sampling holds beside them.

    The images are those of a step or of an evaluation, which has one a prompt: those that need more.
    """
    sizes = {(load.sampled_at_once, min(load.prompts, load.sampled_at_once))}
    if load.evaluated:
        sizes.add((load.evaluated_at_once, load.evaluated_at_once))
    held = []
    for rows, prompts in sizes:
        folded = load.branches * rows
        cache = model.cache(folded, load.options, compiled=load.compiled, on_cpu=load.on_cpu)
        held.append((cache, model.sample(folded, load.branches * prompts, load.options)))
    return max(held, key=sum)


def _cache_stays(load: Workload) -> bool:
    """Say whether the buffers of keys and values are held between the rollouts."""
    return load.compiled and load.on_cpu


def _staying_cache(model: PlannedModel, load: Workload) -> int:
    return sampling_bytes(model, load)[0] if _cache_stays(load) else 0


def _decoded(load: Workload) -> int:
    """Return the images that are decoded at once."""
    if load.on_cpu:
        return min(DECODE_ROWS_CPU, max(load.rows, load.evaluated))
    return max(load.sampled_at_once, load.evaluated_at_once)


def _validation(load: Workload, sampling: Work, decoding: Work) -> Work:
    """Count the work of all validations, by their number of images beside a step's."""
    times = load.steps // load.validation_every if load.validation_every else 0
    share = times * load.validation_images / load.rows
    return Work(share * (sampling.flops + decoding.flops), share * (sampling.moved + decoding.moved))


def _visiting(model: PlannedModel, load: Workload, trained: int) -> int:
    """Count the bytes of the reference's weights that are made, or come to the card, while it scores."""
    if load.moving_reference:
        return trained * load.options.dtype.itemsize if load.reference_share else 0
    visits = load.reference_share > 0 and _parked(load) and not load.options.lora_rank
    return model.policy * load.options.dtype.itemsize if visits else 0


def _optimizer(model: PlannedModel, load: Workload) -> int:
    """Count what the optimiser's step makes for a while."""
    return memory.optimizer_bytes(
        model.trained(load.options.lora_rank),
        itemsize=load.options.dtype.itemsize,
        gpus=load.gpus,
        on_cpu=load.on_cpu,
        copied=load.averaged or load.moving_reference,
    )


def _twice(model: PlannedModel, load: Workload, trained: int) -> int:
    """Count the bytes of weights that exist a second time while tokens are sampled.

    Those that adapters are added to, and what is trained while its average is in its place, at a validation.
    """
    merged = sum(inputs * outputs for inputs, outputs in model.adapted) if load.options.lora_rank and load.merged else 0
    averaged = trained if load.averaged and load.validation_every else 0
    return (merged + averaged) * load.options.dtype.itemsize


def _work(
    model: PlannedModel, load: Workload, trained: int, update: float, score: float, decode: float
) -> dict[str, Work]:
    """update, decode: FLOPs a row; score: of a micro-batch."""
    options, rows = load.options, load.rows
    batches = -(-rows // load.sampled_at_once)
    flops, moved = model.sampling_work(load.branches * load.sampled_at_once, options)
    scored = score / min(load.micro_batch, rows)
    forwards = rows * (load.reference_share + int(load.negative_text) + int(load.updates > 1))
    # Masters and both moments are read and written, gradients read.
    optimizer = load.updates * trained * FP32 * (2 + 2 * MOMENTS + 1) / load.gpus
    return {
        "sample": Work(batches * flops, batches * moved),
        "decode": Work(rows * decode, 0.0),
        "score": Work(forwards * scored, 0.0),
        "update": Work(load.epochs * rows * update, 0.0),
        "optimizer": Work(0.0, optimizer),
    }
