"""fp32 master weights for a policy that is held in a lower precision.

An update of 1e-6 of a weight is lost in bf16's eight bits. The optimiser therefore works on fp32 copies; fp32 parameters are their
own masters, and cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MasterWeights(nn.Module):
    """`parameters()` are what the optimiser updates: the parameters themselves where they are fp32, else fp32 copies."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._trained = list(parameters)  # a plain list: these belong to the generator's modules
        self.masters = nn.ParameterList(
            p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self._trained
        )

    def _copies(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(p, master) for p, master in zip(self._trained, self.masters, strict=True) if p is not master]

    def clear_gradients(self) -> None:
        for parameter in (*self._trained, *self.masters):
            parameter.grad = None

    def collect(self) -> list[nn.Parameter]:
        """Move the gradients of the trained parameters to the masters; returns the masters."""
        for parameter, master in self._copies():
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        return list(self.masters)

    @torch.no_grad()
    def publish(self) -> None:
        """Write the updated masters back into the trained parameters."""
        for parameter, master in self._copies():
            parameter.copy_(master)

    def weights(self) -> list[Tensor]:
        """The masters' values, in the order of the parameters."""
        return [master.detach() for master in self.masters]

    @torch.no_grad()
    def load_weights(self, values: Sequence[Tensor]) -> None:
        """ValueError where the shapes are not those of the parameters."""
        shapes, given = [tuple(m.shape) for m in self.masters], [tuple(v.shape) for v in values]
        if shapes != given:
            raise ValueError(f"the checkpoint holds {len(given)} weights of other shapes than the {len(shapes)} trained ones")
        for master, value in zip(self.masters, values, strict=True):
            master.copy_(value)
        self.publish()

