"""fp32 master weights for a policy that is held in a lower precision.

An update of 1e-6 of a weight is lost in bf16's eight bits, and so is a micro-batch's share of a sum of gradients. The
optimiser therefore works on fp32 copies; fp32 parameters are their own masters, and cost nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2i_gcpo.training.optim import clip_gradients
from t2i_gcpo.utils.finite import all_finite

#: What to do where an update left weights of no use.
AFTER_DIVERGENCE = (
    "start a new run with a lower learning rate (--optim.lr) or a longer warm-up (--optim.warmup-steps), or train in "
    "float32 (--generator.dtype)"
)


class Masters(nn.Module):
    """What an optimiser updates for the trained parameters: all of it, or one process's shards."""

    masters: nn.ParameterList
    """fp32, in the order of the trained parameters."""

    @abstractmethod
    def clear_gradients(self) -> None: ...

    @abstractmethod
    def add_gradients(self) -> None:
        """Add the gradients of a backward pass to those of the masters, in fp32. Call it after each backward pass."""

    def passes(self, own: int) -> int:
        """Return how often `add_gradients` is called for an optimiser step, by a process of `own` backward passes."""
        return own

    @abstractmethod
    def reduce(self) -> None:
        """Finish the sum of the gradients over the processes. Call it once before the optimiser's step."""

    @abstractmethod
    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale the gradients down to a global L2 norm of `max_norm`, and return the norm before ([] fp32)."""

    @abstractmethod
    def write_back(self) -> None:
        """Write the updated masters back into the trained parameters."""

    @abstractmethod
    def finite(self) -> bool:
        """Return whether every value is finite, of the masters and of what was published of them."""

    def check_finite(self) -> None:
        """Raise FloatingPointError, with what to do, where a value is not finite: such weights are of no use."""
        if not self.finite():
            raise FloatingPointError(f"the weights are not finite after an update; {AFTER_DIVERGENCE}")

    def values(self) -> list[Tensor]:
        """The masters' values, in the order of the parameters."""
        return [master.detach() for master in self.masters]


class MasterWeights(Masters):
    """`masters` are what the optimiser updates: the parameters themselves where they are fp32, else fp32 copies."""

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

    def add_gradients(self) -> None:
        for parameter, master in self._copies():
            if parameter.grad is not None:
                if master.grad is None:
                    master.grad = parameter.grad.float()
                else:
                    master.grad.add_(parameter.grad)
                parameter.grad = None

    def reduce(self) -> None:
        """Do nothing: one process has the whole sum."""

    def clip_gradients(self, max_norm: float) -> Tensor:
        return clip_gradients(self.masters, max_norm)

    @torch.no_grad()
    def write_back(self) -> None:
        for parameter, master in self._copies():
            parameter.copy_(master)

    def finite(self) -> bool:
        return all_finite(*self.values(), *(parameter.detach() for parameter, _ in self._copies()))

    @torch.no_grad()
    def load_values(self, values: Sequence[Tensor]) -> None:
        """ValueError where the shapes are not those of the parameters."""
        shapes, given = [tuple(m.shape) for m in self.masters], [tuple(v.shape) for v in values]
        if shapes != given:
            raise ValueError(
                f"the checkpoint holds {len(given)} weights, the generator trains {len(shapes)}, and their shapes "
                "differ; give it the generator and the LoRA rank that the run began with"
            )
        for master, value in zip(self.masters, values, strict=True):
            master.copy_(value)
        self.write_back()
