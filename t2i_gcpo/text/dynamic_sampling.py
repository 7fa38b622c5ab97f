"""Put DAPO's dynamic sampling (2503.14476) around TRL's rollout.

Groups whose completions all have the same reward are drawn again from other prompts.

A rollout is TRL's dict of a generation batch on one process: B rows in groups of G completions, tensors [B, ...] padded
to the rollout's own widths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Rollout = dict[str, Any]

#: Tensors that are padded on the left; the others are padded on the right.
LEFT = ("prompt_ids", "prompt_mask", "negative_prompt_ids", "negative_prompt_mask")


def fill(
    rollout: Rollout,
    informative: Tensor,
    draw: Callable[[int], tuple[Rollout, Tensor]],
    *,
    group_size: int,
    limit: int,
    pad: int,
    finished: Callable[[bool], bool],
) -> tuple[Rollout, Tensor, int]:
    """Replace groups whose rewards are all equal by groups from further rollouts whose rewards differ.

    Returns the rollout, which of its groups are informative now, and how many rollouts were drawn.

    informative [B / G] bool: this process's groups whose rewards differ. `draw(attempt)`: a further rollout of other
    prompts and its informative groups. `limit`: rollouts at most, the first included. `finished(mine)`: whether all
    processes need no more, so that all draw equally often.
    """
    informative, drawn = informative.clone(), 1
    while drawn < limit and not finished(bool(informative.all())):
        more, useful = draw(drawn)
        drawn += 1
        slots = (~informative).nonzero()[:, 0].tolist()
        sources = useful.nonzero()[:, 0].tolist()[: len(slots)]
        chosen = list(range(len(informative)))
        for slot, source in zip(slots, sources, strict=False):
            chosen[slot], informative[slot] = len(informative) + source, True
        rollout = take_groups(rollout, more, chosen, group_size, pad)
    return rollout, informative, drawn


def take_groups(first: Rollout, second: Rollout, groups: list[int], group_size: int, pad: int) -> Rollout:
    """Take some groups, numbered through both rollouts; tensors without rows stay those of the first."""
    index = torch.tensor(groups)[:, None] * group_size + torch.arange(group_size)
    return {
        name: _stacked(name, value, second[name], pad)[index.flatten().to(value.device)] if value.ndim else value
        for name, value in first.items()
    }


def _stacked(name: str, first: Tensor, second: Tensor, pad: int) -> Tensor:
    if first.ndim == 1:
        return torch.cat([first, second])
    width = max(first.shape[1], second.shape[1])
    value = pad if name.endswith("_ids") else 0

    def widened(tensor: Tensor) -> Tensor:
        missing = width - tensor.shape[1]
        return F.pad(tensor, (missing, 0) if name in LEFT else (0, missing), value=value)

    return torch.cat([widened(first), widened(second)])
