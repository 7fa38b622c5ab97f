"""The average of what the batches so far had, which a batch's weights are divided by (`normalize_over: running`)."""

from __future__ import annotations

from dataclasses import dataclass

DECAY = 0.9
"""Share of the average that each new batch leaves: half of it is forgotten in seven batches. (Chosen here.)"""


@dataclass
class RunningMean:
    """Holds the average; a run saves it with its state.

    >>> running = RunningMean()
    >>> running.divide_by(2.0), running.divide_by(4.0), round(running.divide_by(4.0), 2)
    (2.0, 2.0, 2.2)
    """

    value: float | None = None
    """None before the first batch."""

    def divide_by(self, mean: float) -> float:
        """Return what the present batch, whose own mean is `mean`, is divided by, and take it into the average.

        That is the average without it, so that no weight depends on what else was drawn in its batch; of the first
        batch it is its own mean.
        """
        before = mean if self.value is None else self.value
        self.value = DECAY * before + (1 - DECAY) * mean
        return before
