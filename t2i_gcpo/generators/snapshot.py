"""Copies modules that are to be saved while the modules themselves are trained on."""

from __future__ import annotations

from torch import Tensor, nn


def of_modules(root: nn.Module, *, only_trained: bool = False) -> dict[nn.Module, nn.Module]:
    """Return module -> copy, of `root` and all in it, to be written and never run.

    Trained parameters are copied into the host's memory. The others do not change: they are moved there, which copies
    them from another device alone, or, with `only_trained`, stay where they are. All else is shared.
    """
    tensors: dict[int, Tensor] = {}  # one that two modules share is shared by their copies

    def held(tensor: Tensor) -> Tensor:
        if id(tensor) not in tensors:
            value = tensor.detach()
            if tensor.requires_grad:
                value = value.to("cpu", copy=True)
            elif not only_trained:
                value = value.cpu()
            # a parameter of its own in any case: whoever saves may change the precision in place
            parameter = isinstance(tensor, nn.Parameter)
            tensors[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if parameter else value
        return tensors[id(tensor)]

    copies: dict[nn.Module, nn.Module] = {}
    for module in root.modules():
        twin = module.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        twin.__dict__["_parameters"] = {k: None if p is None else held(p) for k, p in module._parameters.items()}
        twin.__dict__["_buffers"] = {k: None if b is None else held(b) for k, b in module._buffers.items()}
        copies[module] = twin
    for module, twin in copies.items():
        children = {name: None if child is None else copies[child] for name, child in module._modules.items()}
        twin.__dict__["_modules"] = children
    return copies
