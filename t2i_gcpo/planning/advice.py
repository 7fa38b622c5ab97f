"""Which changes of a run's options let it fit on a card, and what they cost in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import torch

from t2i_gcpo.planning.cards import Card
from t2i_gcpo.planning.models import PlannedModel
from t2i_gcpo.planning.plan import load, plan
from t2i_gcpo.planning.sources import Source
from t2i_gcpo.planning.workload import Workload

#: Rank of the adapters that are proposed; that of the configs in this repository.
RANK = 32
#: Rows that are proposed for a micro-batch and for sampling.
FEW_ROWS, FEW_SAMPLED = 1, 8
#: Changes that are shown.
SHOWN = 2


@dataclass(frozen=True)
class Change:
    """One or more options set otherwise, and what becomes of the run."""

    options: dict[str, str]
    """Option of train -> value."""
    peak: int
    """Bytes."""
    hours: float


def advise(source: Source, work: Workload, card: Card, models: dict[torch.dtype, PlannedModel]) -> list[Change]:
    """Return the changes that make a run fit: the fewest options, and of these the fastest first; [] where none helps.

    Where so few options fit in one way alone, other ways with one option more follow. models: those that are made
    already, by the precision of their weights; others are added.
    """
    single = [name for name, change in CHANGES.items() if change(work) != work]
    fitting: dict[frozenset[str], Change] = {}
    for number in range(1, len(single) + 1):
        ways = [frozenset(names) for names in combinations(single, number)]
        # What holds a way that fits does so, too, and costs more.
        ways = [way for way in ways if not any(fewer < way for fewer in fitting)]
        made = {way: _changed(source, work, card, models, way) for way in ways}
        last = bool(fitting)
        fitting |= {way: change for way, change in made.items() if change is not None}
        if last or len(fitting) >= SHOWN:
            break
    return sorted(fitting.values(), key=lambda change: (len(change.options), change.hours))[:SHOWN]


def _changed(
    source: Source, work: Workload, card: Card, models: dict[torch.dtype, PlannedModel], way: frozenset[str]
) -> Change | None:
    """Plan a run with these changes; None where it does not fit on the card."""
    changed = work
    for name, change in CHANGES.items():
        changed = change(changed) if name in way else changed
    dtype = changed.options.dtype
    if dtype not in models:
        models[dtype] = load(source, dtype)
    made = plan(models[dtype], changed)
    return Change(_options(work, changed), made.peak.total, made.hours(card)) if made.fits(card) else None


def _few_rows(work: Workload) -> Workload:
    return replace(work, micro_batch=min(FEW_ROWS, work.micro_batch))


def _few_sampled(work: Workload) -> Workload:
    return replace(work, max_batch=min(FEW_SAMPLED, work.max_batch))


def _checkpointed(work: Workload) -> Workload:
    return replace(work, options=replace(work.options, gradient_checkpointing=True, fold_passes=False))


def _bfloat16(work: Workload) -> Workload:
    return replace(work, options=replace(work.options, dtype=torch.bfloat16))


def _shared_gradients(work: Workload) -> Workload:
    return replace(work, each_pass=work.gpus > 1)


def _adapters(work: Workload) -> Workload:
    return replace(work, options=replace(work.options, lora_rank=work.options.lora_rank or RANK))


#: What may be changed: how rows are batched, what is computed or sent twice, the precision, and adapters instead of all
#: weights. The images of a step, their group and the trained distribution stay.
CHANGES: dict[str, Callable[[Workload], Workload]] = {
    "micro_batch": _few_rows,
    "max_batch": _few_sampled,
    "gradient_checkpointing": _checkpointed,
    "reduce_gradients": _shared_gradients,
    "dtype": _bfloat16,
    "lora_rank": _adapters,
}


def _options(before: Workload, after: Workload) -> dict[str, str]:
    """Return the options that differ as train takes them."""
    sides = [
        {
            "--micro-batch": str(work.micro_batch),
            "--generator.max-batch": str(work.max_batch),
            "--reduce-gradients": "micro_batch" if work.each_pass else "update",
            "--generator.gradient-checkpointing": str(work.options.gradient_checkpointing).lower(),
            "--generator.fold-passes": str(work.options.fold_passes).lower(),
            "--generator.dtype": str(work.options.dtype).removeprefix("torch."),
            "--generator.lora-rank": str(work.options.lora_rank),
        }
        for work in (before, after)
    ]
    return {name: value for name, value in sides[1].items() if value != sides[0][name]}
