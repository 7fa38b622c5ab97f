"""What each phase of a step holds, as plain arithmetic over counts of parameters and traced passes.

Masters, moments and gradients are fp32. Gradients stay until the next update begins, so every phase after the first
step holds them.
"""

from __future__ import annotations

from dataclasses import dataclass

from t2i_gcpo.training.sharded_weights import BUCKET

FP32 = 4
#: AdamW's moments, in fp32 values a trained parameter.
MOMENTS = 2


@dataclass(frozen=True)
class State:
    """Holds the bytes that are there in every phase."""

    weights: int
    """Bytes of the policy, adapters included."""
    frozen: int
    """Bytes of the rest of the model."""
    reference: int
    """A copy of what is trained, for the KL term; 0 with LoRA, whose base is the reference."""
    masters: int
    """fp32 copies of what is trained in lower precision, or shards of them."""
    moments: int
    gradients: int

    @property
    def parts(self) -> dict[str, int]:
        return {
            "policy": self.weights,
            "rest of the model": self.frozen,
            "reference": self.reference,
            "masters": self.masters,
            "moments": self.moments,
            "gradients": self.gradients,
        }


def state(
    *,
    policy: int,
    frozen: int,
    trained: int,
    adapters: int,
    itemsize: int,
    fp32: int = 0,
    reference: bool = True,
    moving: bool = False,
    gpus: int = 1,
) -> State:
    """Count the bytes of the state on one of `gpus` cards.

    policy, frozen, trained, adapters: parameters; `trained` is the policy's own number or that of its adapters.
    itemsize: bytes of a weight; fp32: those among the frozen ones that have 4 in any case. reference: whether a copy of
    what was trained lies beside it; moving: an fp32 one of what is trained, which follows it. Masters, moments and
    gradients are shared out evenly over the cards (ZeRO stage 2, 1910.02054); weights are on each.
    """
    return State(
        weights=(policy + adapters) * itemsize,
        frozen=frozen * itemsize + fp32 * (FP32 - itemsize),
        reference=trained * FP32 if moving else policy * itemsize if reference and not adapters else 0,
        masters=0 if itemsize == FP32 and gpus == 1 else _share(trained * FP32, gpus),
        moments=_share(trained * MOMENTS * FP32, gpus),
        gradients=_share(trained * FP32, gpus),
    )


@dataclass(frozen=True)
class Phase:
    """Holds the bytes of a phase at its peak, by part."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def phases(
    always: State,
    *,
    cache: int,
    cache_stays: bool,
    sampling: int,
    decoding: int,
    scoring: int,
    kept: int,
    peak: int,
    several: bool,
    own_gradients: int,
    optimizer: int,
    visiting: int = 0,
    twice: int = 0,
    sums: int = 0,
    buckets: int = 0,
) -> list[Phase]:
    """Return the peaks of sampling, decoding, scoring under the reference, the update's passes and its optimiser step.

    With several cards the peak of the exchange of gradients is among them.

    cache: buffers of keys and values; cache_stays: they are held between the rollouts. twice: bytes of weights that
    exist a second time while tokens are sampled, adapters added.
    kept, peak: of a micro-batch's forward and backward pass. several: gradients of an earlier micro-batch are there
    when its backward pass begins; of a single one they grow while activations go, and the larger of the two counts.
    own_gradients: bytes of the gradients that a backward pass makes in the weights' own precision, where they are then
    added to fp32 ones. optimizer: bytes that the optimiser's step makes for a while. visiting: bytes of a reference
    that comes to the card while it scores. sums: bytes of the whole gradients that each of several cards adds up before
    it keeps its share of their sum. buckets: bytes that their exchange makes for a while.
    """
    held, stays = always.parts, {"keys and values": cache if cache_stays else 0}
    update = update_phase(
        always,
        stays=stays["keys and values"],
        kept=kept,
        peak=peak,
        several=several,
        own_gradients=own_gradients,
        sums=sums,
    )
    exchange = [Phase("exchange", {**held, **stays, "gradient sums": sums, "buckets": buckets})] if buckets else []
    return [
        Phase("sample", {**held, "keys and values": cache, "merged weights": twice, "logits and prefill": sampling}),
        Phase("decode", {**held, **stays, "decoder activations": decoding}),
        Phase("score", {**held, **stays, "reference": held["reference"] + visiting, "forward pass": scoring}),
        update,
        *exchange,
        Phase("optimizer", {**held, **stays, "optimizer scratch": optimizer}),
    ]


def update_phase(
    always: State, *, stays: int, kept: int, peak: int, several: bool, own_gradients: int, sums: int
) -> Phase:
    """Return the peak of the update's passes alone; the arguments are those of `phases`.

    stays: bytes of buffers that are held between the rollouts.
    """
    held, buffers = always.parts, {"keys and values": stays}
    # A single micro-batch begins without gradients, and a backward pass in bf16 has them only at its end.
    without = {**held, "gradients": 0}
    growing = own_gradients or always.gradients
    if several:
        passes = {**held, **buffers, "activations": peak}
        if own_gradients:
            passes["activations"] = max(peak, own_gradients + peak - kept)
    else:
        passes = {**without, **buffers, "activations": max(peak, growing + peak - kept)}
        if own_gradients:  # turned to fp32 one after the other
            passes["activations"] = max(passes["activations"], own_gradients + always.gradients)
    return Phase("update", {**passes, "gradient sums": sums})


def checkpoint_bytes(*, policy: int, frozen: int, trained: int, adapters: int, itemsize: int) -> int:
    """Count the bytes of checkpoints/step_N: the model, or its adapters alone, and fp32 masters and moments."""
    return (adapters or policy + frozen) * itemsize + trained * (1 + MOMENTS) * FP32


def bucket_bytes(*, trained: int, largest: int, gpus: int) -> int:
    """Count the bytes that an exchange of gradients makes beside the gradients: a bucket, and this card's share of it.

    The gradients of a bucket are freed as they are copied into it; a second copy, which NCCL sends, takes their place.
    largest: parameters of the largest tensor, which is in one bucket whatever its size.
    """
    if gpus == 1:
        return 0
    elements = min(trained, max(BUCKET, largest))
    return (elements + _share(elements, gpus)) * FP32


def sent_bytes(*, trained: int, itemsize: int, gpus: int) -> int:
    """Count the bytes that each card sends at least for an update: fp32 gradients, and the weights that they changed.

    Of N cards each sends (N - 1) / N of either in a ring (reduce-scatter and all-gather; NCCL's documentation of
    performance, "bus bandwidth").
    """
    return _share((gpus - 1) * trained * (FP32 + itemsize), gpus)


def _share(bytes_: int, gpus: int) -> int:
    return -(-bytes_ // gpus)
