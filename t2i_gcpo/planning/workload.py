"""What a run asks of its model in a step: how many rows, in which batches, of what they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from t2i_gcpo.generators.compilation import CompileChoice, compilation_pays
from t2i_gcpo.generators.tokens.branches import Branches
from t2i_gcpo.planning.models import PassOptions
from t2i_gcpo.records import Sampling


@dataclass(frozen=True)
class Workload:
    """Holds the numbers of a run. B rows are the images of a step on one card."""

    steps: int
    prompts: int
    group: int
    micro_batch: int
    max_batch: int
    updates: int
    """Optimiser steps a rollout: epochs times mini-batches."""
    epochs: int
    branches: int
    """Branches folded in sampling: the prompt, and where they run the null and the negative prompt."""
    negative_text: bool
    """A negative prompt that is scored in a forward pass of its own."""
    kl_always: bool
    """Whether each step scores its images under the reference."""
    kl_every: int
    """Steps between such scores where not each step needs them; 0: none."""
    compile: CompileChoice
    on_cpu: bool
    merged: bool
    """Whether adapters are added to the weights while tokens are sampled."""
    options: PassOptions
    moving_reference: bool = False
    """Whether the reference follows the policy."""
    averaged: bool = False
    """Whether an average of the trained weights is kept, and scored."""
    validation_every: int = 0
    validation_images: int = 0
    evaluated: int = 0
    """Images of the largest evaluation, one a prompt, that are sampled max_batch at a time; 0: there is none."""
    trains: bool = True
    """Whether anything is trained; else the weights alone are held, and as many images scored at once as sampled."""
    gpus: int = 1
    each_pass: bool = False
    """Whether several cards sum their gradients after each micro-batch, not once an update."""

    @property
    def rows(self) -> int:
        """Return the images of a step on one card, B."""
        return math.ceil(self.prompts * self.group / self.gpus)

    @property
    def reference_share(self) -> float:
        """Return the share of the steps that score their images under the reference."""
        return 1.0 if self.kl_always else 1 / self.kl_every if self.kl_every else 0.0

    @property
    def sampled_at_once(self) -> int:
        """Return the images of each equal part that a step's are cut into, as `batches` does."""
        return math.ceil(self.rows / math.ceil(self.rows / self.max_batch))

    @property
    def scored_at_once(self) -> int:
        """Return the rows of a batch that is scored without gradients."""
        return min(self.micro_batch, self.rows) if self.trains else self.sampled_at_once

    @property
    def evaluated_at_once(self) -> int:
        return min(self.max_batch, math.ceil(self.evaluated / self.gpus))

    @property
    def compiled(self) -> bool:
        """Say whether the sampling step is compiled, as `Compilation` decides where it knows a step's images."""
        return compilation_pays(self.compile, self.steps)

    @property
    def micro_batches(self) -> list[int]:
        """Return the rows of each micro-batch of one optimiser step."""
        per_update = math.ceil(self.rows * self.epochs / self.updates)
        whole, rest = divmod(per_update, self.micro_batch)
        return [self.micro_batch] * whole + ([rest] if rest else [])

    @property
    def parts(self) -> list[int]:
        """Return the rows of each batch of a step that is scored without gradients."""
        whole, rest = divmod(self.rows, self.micro_batch)
        return [self.micro_batch] * whole + ([rest] if rest else [])


def branches(sampling: Sampling, negative_prompt: str | None) -> tuple[int, bool]:
    """Return how many branches sampling folds, and whether negative texts are scored apart."""
    chosen = Branches.of(sampling, negative=negative_prompt is not None)
    return chosen.count, sampling.contrast and chosen.contrast is None and negative_prompt is not None
