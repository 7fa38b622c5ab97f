"""Choose by the plan what changes memory and time alone.

Whether the update's activations are checkpointed, how many tokens have logits at once, and how many images are sampled
at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from t2i_gcpo.generators.tokens.logprobs import DEFAULT_CHUNK
from t2i_gcpo.planning.cards import RESERVED
from t2i_gcpo.planning.models import PlannedModel
from t2i_gcpo.planning.plan import decode_phase, sample_phase, score_phase, update_phase
from t2i_gcpo.planning.workload import Workload

#: The share by which a run may hold more than its plan says: a plan is held to 15 % of the measured peak.
MARGIN = 0.15
#: Tokens whose logits may exist at once, largest first. The product of 1,024 rows and Janus' head is 69 GFLOP, far more
#: than its launch costs, so that a larger chunk would hold more and gain nothing; no GPU was measured.
CHUNKS = (1024, 512, 256, DEFAULT_CHUNK)
#: Images that may be sampled and decoded at once, most first. A token's step reads all weights once for all of them; of
#: 64 images of Janus-Pro-1B the weights are a fifth of what it reads, so that more at once would gain little.
BATCHES = (64, 32, 16, 8)


@dataclass(frozen=True)
class Choice:
    """Says what was chosen, and why."""

    work: Workload
    """The run with it."""
    whole: int
    """Bytes that the update holds at most when it keeps all activations."""
    free: int
    """Bytes that there are."""
    chunked: bool
    """Whether the model scores tokens in chunks."""

    @property
    def checkpointing(self) -> bool:
        return self.work.options.gradient_checkpointing

    @property
    def head_chunk(self) -> int:
        return self.work.options.head_chunk

    @property
    def max_batch(self) -> int:
        return self.work.max_batch


def choose(
    model: PlannedModel,
    work: Workload,
    free: int,
    *,
    gradient_checkpointing: bool = True,
    head_chunk: bool = True,
    max_batch: bool = True,
) -> Choice:
    """Keep all activations where the update then fits into `free` bytes, with a margin; else checkpoint them.

    Then take the largest chunk of logits that fits as well, and sample as many images at once as fit.
    gradient_checkpointing, head_chunk, max_batch: what of the three is chosen; the others stay. A masked model that
    scores all passes in one batch keeps their activations in any case.
    """
    whole = update_phase(model, with_options(work, gradient_checkpointing=False)).total
    chosen = work
    if gradient_checkpointing:
        fits = work.options.fold_passes or enough(whole, free)
        chosen = with_options(chosen, gradient_checkpointing=not fits)
    if head_chunk and model.chunked_head:
        chosen = _with_chunk(model, chosen, free)
    if max_batch:
        chosen = replace(chosen, max_batch=images_at_once(model, chosen, free))
    return Choice(chosen, whole, free, model.chunked_head)


def images_at_once(model: PlannedModel, work: Workload, free: int, *, scored: bool = False) -> int:
    """Return how many images, the most of `BATCHES`, can be sampled and decoded at once in `free` bytes.

    scored: they are also scored so many at once, as nothing is trained.
    """
    phases = (sample_phase, decode_phase, *([score_phase] if scored else []))
    for batch in BATCHES[:-1]:
        larger = replace(work, max_batch=batch)
        if all(enough(phase(model, larger).total, free) for phase in phases):
            return batch
    return BATCHES[-1]


def enough(needed: int, free: int) -> bool:
    """Say whether planned bytes surely fit into those that a card has free."""
    return (1 + MARGIN) * needed + RESERVED <= free


def with_options(work: Workload, **options: Any) -> Workload:
    """Change options of the run's passes."""
    return replace(work, options=replace(work.options, **options))


def _with_chunk(model: PlannedModel, work: Workload, free: int) -> Workload:
    for chunk in CHUNKS[:-1]:
        larger = with_options(work, head_chunk=chunk)
        if enough(max(phase(model, larger).total for phase in (update_phase, score_phase)), free):
            return larger
    return with_options(work, head_chunk=CHUNKS[-1])
