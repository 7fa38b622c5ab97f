"""An exponential moving average of the trained weights: scored and saved beside them, and never trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from t2i_gcpo.generators.base import ImageGenerator

#: Folder of the averaged generator in a checkpoint's.
FOLDER = "average"

ModelWriter = Callable[[Path], None]
"""Writes a generator into a checkpoint's folder, and its average, where there is one, into one beside it."""


class PolicyAverage:
    """Holds the average of a generator's trained parameters in fp32: `average = decay average + (1 - decay) weight`."""

    def __init__(self, generator: ImageGenerator, decay: float) -> None:
        """Begin with the weights as they are."""
        self.generator, self.decay = generator, decay
        self.values = [parameter.detach().float().clone() for parameter in generator.trainable_parameters()]

    @torch.no_grad()
    def add(self) -> None:
        """Add the weights as they are after an update."""
        for value, parameter in zip(self.values, self.generator.trainable_parameters(), strict=True):
            value.lerp_(parameter.detach().float(), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the generator has the averaged weights; afterwards its own, bit for bit."""
        parameters = self.generator.trainable_parameters()
        trained = [parameter.data for parameter in parameters]
        try:
            for parameter, value in zip(parameters, self.values, strict=True):
                parameter.data = value.to(parameter.dtype, copy=True)
            yield
        finally:
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.data = value

    def save(self, checkpoint: Path) -> None:
        """Write the averaged generator into the folder `average` of a checkpoint; `generators.load` takes it."""
        with self.in_place():
            self.generator.save(checkpoint / FOLDER)

    def snapshot_writer(self) -> ModelWriter:
        """Return what `save` is, for the average as it is now, from another thread."""
        with self.in_place():
            twin = self.generator.snapshot()
        return lambda checkpoint: twin.save(checkpoint / FOLDER)

    def load(self, values: Sequence[Tensor]) -> None:
        """Go on from the values of a checkpoint. ValueError where they are those of another model."""
        if [value.shape for value in values] != [value.shape for value in self.values]:
            raise ValueError("the checkpoint's averaged weights are those of another model; start a new run")
        for own, value in zip(self.values, values, strict=True):
            own.copy_(value)


def model_writer(generator: ImageGenerator, average: PolicyAverage | None, *, copied: bool) -> ModelWriter:
    """Return what writes both.

    copied: as they are now, from another thread, while they are trained on.
    """
    own = (generator.snapshot() if copied else generator).save
    if average is None:
        return own
    averaged = average.snapshot_writer() if copied else average.save

    def write(folder: Path) -> None:
        own(folder)
        averaged(folder)

    return write
