"""What each phase of a step holds, as plain arithmetic over counts of parameters and traced passes.

Masters, moments and gradients are fp32. The gradients that the optimiser's step read stay until the next update begins,
so every phase between two updates holds them: all of them on one card, on each of several its share of their sum. While
they are added up they are whole on every card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from t2i_gcpo.training.sharded_weights import buckets

FP32, FP64 = 4, 8
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
    """The last update's, whole or this card's share."""
    average: int = 0
    """An fp32 average of what is trained."""

    @property
    def parts(self) -> dict[str, int]:
        return {
            "policy": self.weights,
            "rest of the model": self.frozen,
            "reference": self.reference,
            "masters": self.masters,
            "moments": self.moments,
            "average": self.average,
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
    averaged: bool = False,
    gpus: int = 1,
) -> State:
    """Count the bytes of the state on one of `gpus` cards.

    policy, frozen, trained, adapters: parameters; `trained` is the policy's own number or that of its adapters.
    itemsize: bytes of a weight; fp32: those among the frozen ones that have 4 in any case. reference: whether a copy of
    what was trained lies beside it; moving: an fp32 one of what is trained, which follows it; averaged: whether an
    average of what is trained is kept. Masters, moments and gradients are shared out evenly over the cards (ZeRO stage
    2, 1910.02054); the rest is on each.
    """
    return State(
        weights=(policy + adapters) * itemsize,
        frozen=frozen * itemsize + fp32 * (FP32 - itemsize),
        reference=trained * FP32 if moving else policy * itemsize if reference and not adapters else 0,
        masters=0 if itemsize == FP32 and gpus == 1 else _share(trained * FP32, gpus),
        moments=_share(trained * MOMENTS * FP32, gpus),
        gradients=_share(trained * FP32, gpus),
        average=trained * FP32 if averaged else 0,
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
    update: dict[str, int],
    exchange: dict[str, int] | None = None,
    optimizer: int,
    visiting: int = 0,
    twice: int = 0,
) -> list[Phase]:
    """Return the peaks of sampling, decoding, scoring under the reference, the update's passes and its optimiser step.

    With several cards the peak of the exchange of gradients is among them.

    cache: buffers of keys and values; cache_stays: they are held between the rollouts. twice: bytes of weights that
    exist a second time while tokens are sampled. update, exchange: parts of their own, with the gradients of that time.
    optimizer: bytes that the optimiser's step makes for a while. visiting: bytes of a reference that comes to the card
    while it scores.
    """
    held, stays = always.parts, {"keys and values": cache if cache_stays else 0}
    return [
        sample_phase(always, cache=cache, twice=twice, sampling=sampling),
        decode_phase(always, stays=stays["keys and values"], decoding=decoding),
        score_phase(always, stays=stays["keys and values"], visiting=visiting, scoring=scoring),
        update_phase(always, stays=stays["keys and values"], update=update),
        *([] if exchange is None else [Phase("exchange", {**held, **stays, **exchange})]),
        Phase("optimizer", {**held, **stays, "optimizer scratch": optimizer}),
    ]


def sample_phase(always: State, *, cache: int, twice: int, sampling: int) -> Phase:
    """Return the peak of sampling alone; the arguments are those of `phases`."""
    own = {"keys and values": cache, "second weights": twice, "logits and prefill": sampling}
    return Phase("sample", {**always.parts, **own})


def decode_phase(always: State, *, stays: int, decoding: int) -> Phase:
    """Return the peak of decoding alone; the arguments are those of `phases` and `update_phase`."""
    return Phase("decode", {**always.parts, "keys and values": stays, "decoder activations": decoding})


def score_phase(always: State, *, stays: int, visiting: int, scoring: int) -> Phase:
    """Return the peak of scoring under the reference alone; the arguments are those of `phases` and `update_phase`."""
    held = always.parts
    reference = held["reference"] + visiting
    return Phase("score", {**held, "keys and values": stays, "reference": reference, "forward pass": scoring})


def update_phase(always: State, *, stays: int, update: dict[str, int]) -> Phase:
    """Return the peak of the update's passes alone. stays: bytes of buffers that are held between the rollouts."""
    return Phase("update", {**always.parts, "keys and values": stays, **update})


def passes(
    sizes: Sequence[int],
    *,
    itemsize: int,
    kept: int,
    peak: int,
    several: bool,
    gpus: int = 1,
    each_pass: bool = False,
) -> dict[str, int]:
    """Return the gradients and activations of an update's passes, where they hold most.

    sizes: parameters of each trained tensor. kept, peak: bytes of a micro-batch's forward and backward pass. several:
    gradients of an earlier micro-batch are there when its backward pass begins; of a single one they grow while
    activations go, and the larger of the two counts. In lower precision each pass makes gradients of its own, which are
    then added to fp32 ones, tensor after tensor. each_pass: several cards sum their gradients after each pass, and hold
    a share of the sum.
    """
    whole, own = sum(sizes) * FP32, sum(sizes) * itemsize
    if each_pass and gpus > 1:
        return {"gradients": _share(whole, gpus) if several else 0, **_ending(peak, kept, own)}
    if itemsize == FP32:
        return {"gradients": whole, "activations": peak} if several else {"gradients": 0, **_ending(peak, kept, whole)}
    result = {"gradients": whole if several else 0, **_ending(peak, kept, own)}
    turned = 0 if several else _turned(sizes, itemsize)
    return result if sum(result.values()) >= turned else {"gradients": turned, "activations": 0}


def _ending(peak: int, kept: int, made: int) -> dict[str, int]:
    """Return what a backward pass holds: all activations at its start, or at its end the gradients that it made."""
    if made <= kept:
        return {"activations": peak}
    return {"gradients of a pass": made, "activations": peak - kept}


def _turned(sizes: Sequence[int], itemsize: int) -> int:
    """Count the gradients while they are turned to fp32: those that are, and the others with the one in work."""
    done, left, most = 0, sum(sizes) * itemsize, 0
    for size in sizes:
        done += size * FP32
        most = max(most, done + left)
        left -= size * itemsize
    return most


def exchanged(sizes: Sequence[int], *, gpus: int, itemsize: int = FP32, earlier: bool = False) -> dict[str, int]:
    """Return the gradients and the buckets of their exchange, where they hold most.

    The gradients of a bucket are freed as they are copied into it; a second copy, which NCCL sends, takes their place.
    Each card then has its share of the bucket's sum. itemsize: bytes of a whole gradient's value. earlier: the shares
    of an earlier exchange are there, and the new ones are added to them.
    """
    left, parts = sum(sizes) * itemsize, []
    shares = _share(sum(sizes) * FP32, gpus) if earlier else 0
    for bucket in _buckets(sizes):
        chunks = sum(_share(sizes[index], gpus) for index in bucket) * FP32
        left -= sum(sizes[index] for index in bucket) * itemsize
        parts.append({"gradients": left + shares, "buckets": 2 * gpus * chunks + chunks})
        shares += 0 if earlier else chunks
    return max(parts, key=lambda part: sum(part.values()))


def optimizer_bytes(sizes: Sequence[int], *, itemsize: int, gpus: int, on_cpu: bool, copied: bool) -> int:
    """Count what an optimiser's step makes for a while.

    AdamW: nothing in the one kernel of a GPU, on the CPU two values a weight of one tensor after the other. Several
    cards take the norm of their shares in fp64, two values a weight, and receive the new weights in a bucket, with a
    second copy that NCCL makes. copied: whether the new weights are added to a copy in fp32, tensor after tensor.
    """
    largest = max(sizes)
    adam = 2 * FP32 * _share(largest, gpus) if on_cpu else 0
    to_fp32 = FP32 * largest if copied and itemsize != FP32 else 0
    if gpus == 1:
        return max(adam, to_fp32)
    chunks = max(sum(_share(sizes[index], gpus) for index in bucket) for bucket in _buckets(sizes))
    return max(adam, to_fp32, 2 * FP64 * _share(largest, gpus), (2 * gpus + 1) * chunks * itemsize)


def _buckets(sizes: Sequence[int]) -> list[list[int]]:
    return list(buckets([(size, torch.float32) for size in sizes]))


def checkpoint_bytes(*, policy: int, frozen: int, trained: int, adapters: int, itemsize: int) -> int:
    """Count the bytes of checkpoints/step_N: the model, or its adapters alone, and fp32 masters and moments."""
    return (adapters or policy + frozen) * itemsize + trained * (1 + MOMENTS) * FP32


def sent_bytes(*, trained: int, itemsize: int, gpus: int, exchanges: int = 1) -> int:
    """Count the bytes that each card sends at least for an update: fp32 gradients, and the weights that they changed.

    exchanges: times that the gradients are summed.

    Of N cards each sends (N - 1) / N of either in a ring (reduce-scatter and all-gather; NCCL's documentation of
    performance, "bus bandwidth").
    """
    return _share((gpus - 1) * trained * (exchanges * FP32 + itemsize), gpus)


def _share(bytes_: int, gpus: int) -> int:
    return -(-bytes_ // gpus)
