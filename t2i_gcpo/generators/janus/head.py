"""The head that makes logits of hidden states, in fp32 whatever the language model's dtype is.

Logits in bf16 have eight bits: of a log-prob of some nats they leave a few hundredths, and guidance multiplies that.
The head is small beside the language model and is not trained, so its fp32 weights cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


class Fp32Head:
    """Compute fp32 logits with a model's generation head: for sampling and for scoring alike."""

    def __init__(self, model: Any) -> None:
        """Put the generation head of a `JanusForConditionalGeneration` into fp32."""
        self.module = model.model.generation_head.float()

    @property
    def codebook(self) -> int:
        """Return V."""
        return int(self.module.vision_head.out_features)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Compute [*, D] -> [*, V] fp32."""
        return self.module(hidden.to(self.module.proj_out.weight.dtype)).float()

    @staticmethod
    @contextmanager
    def in_dtype_of(model: Any) -> Iterator[None]:
        """Give the head of `model` the dtype of its other weights inside, to be saved with them.

        Its values have no more bits.
        """
        head = model.model.generation_head.to(model.model.language_model.dtype)
        try:
            yield
        finally:
            head.float()
