"""A reference for the KL term that follows the policy: copied from it now and then, or its moving average.

Both are TR-DPO's (2404.09656): a hard update every N steps, and a soft one that mixes. The penalty then bounds how fast
the policy moves, and not how far it gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.training.average import PolicyAverage


class MovingReference:
    """Holds the reference's trained parameters in fp32: every N updates `decay reference + (1 - decay) policy`."""

    def __init__(self, generator: ImageGenerator, *, every: int, decay: float) -> None:
        """Begin with the weights as they are. decay: 0 copies the policy."""
        self.every = every
        self._average = PolicyAverage(generator, decay)

    @property
    def values(self) -> list[Tensor]:
        return self._average.values

    def after(self, updates: int) -> None:
        """Move where so many updates ask for it."""
        if updates % self.every == 0:
            self._average.add()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the generator is the reference, and has no gradients; afterwards it is itself, bit for bit."""
        with torch.no_grad(), self._average.in_place():
            yield

    def load(self, values: Sequence[Tensor]) -> None:
        """Go on from the values of a checkpoint. ValueError where they are those of another model."""
        self._average.load(values)
