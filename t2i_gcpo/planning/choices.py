"""Choose by the plan what changes memory and time alone: whether the update's activations are checkpointed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from t2i_gcpo.planning.cards import RESERVED
from t2i_gcpo.planning.models import PlannedModel
from t2i_gcpo.planning.plan import update_phase
from t2i_gcpo.planning.workload import Workload

#: The share by which a run may hold more than its plan says: a plan is held to 15 % of the measured peak.
MARGIN = 0.15


@dataclass(frozen=True)
class Choice:
    """Says what was chosen, and why."""

    work: Workload
    """The run with it."""
    whole: int
    """Bytes that the update holds at most when it keeps all activations."""
    free: int
    """Bytes that there are."""

    @property
    def checkpointing(self) -> bool:
        return self.work.options.gradient_checkpointing


def choose(model: PlannedModel, work: Workload, free: int) -> Choice:
    """Keep all activations where the update then fits into `free` bytes, with a margin; else checkpoint them.

    A masked model that scores all passes in one batch keeps them in any case.
    """
    kept = with_checkpointing(work, on=False)
    whole = update_phase(model, kept).total
    fits = work.options.fold_passes or enough(whole, free)
    return Choice(kept if fits else with_checkpointing(work, on=True), whole, free)


def enough(needed: int, free: int) -> bool:
    """Say whether planned bytes surely fit into those that a card has free."""
    return (1 + MARGIN) * needed + RESERVED <= free


def with_checkpointing(work: Workload, *, on: bool) -> Workload:
    return replace(work, options=replace(work.options, gradient_checkpointing=on))
