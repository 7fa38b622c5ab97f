"""Ask whether the values of tensors are finite, at the price of reading them once."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(*values: Tensor) -> bool:
    """Return whether every element of every tensor is finite.

    The smallest and the largest element tell, and a NaN is both: one pass over the values, and no copy of them.
    """
    return all(bool(torch.stack(torch.aminmax(value)).isfinite().all()) for value in values if value.numel())
