"""Gives each clause of a prompt its own advantage, and spreads it over the tokens that the clause drives.

"a red circle left of a star" asks for two things, and an image may have the one and lack the other. One advantage an
image blames both; here the star's tokens are judged by whether the star is there. (Not in the paper: its contrast, with
the prompt without one clause in the place of the negative prompt.)

K clauses of a prompt at most, B rows, T tokens. NaN marks a clause that a row's prompt does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from t2i_gcpo.advantages import Scale, group_advantages

PART = "clause/{}"
"""The reward's part [B] of clause k: 1 where it holds."""


def clause_weights(weigh: Callable[[Tensor], Tensor], logprob_without: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token weights of each clause, [K, B, T], and which clauses there are, [K, B] bool.

    weigh: log-probs under another prompt [B, T] -> weights [B, T] (GCPO's). logprob_without [K, B, T], nats: log-probs
    under the prompt without each clause. The weights of a clause that is not there are 0.
    """
    present = ~logprob_without.isnan().any(dim=-1)
    weights = torch.stack([weigh(negative.nan_to_num()) for negative in logprob_without])
    return weights * present.unsqueeze(-1), present


def clause_advantages(
    parts: Mapping[str, Tensor], present: Tensor, valid: Tensor, group_size: int, *, scale: Scale, eps: float
) -> Tensor:
    """Return the group-relative advantage of each clause, [K, B]; 0 for one that is not there.

    parts: the reward's, name -> [B]. present [K, B]; valid [B]: rows that have a score. ValueError: the reward has no
    part for a clause.
    """
    names = [PART.format(k) for k in range(len(present))]
    missing = [name for name in names if name not in parts]
    if missing:
        raise ValueError(
            f"credit by clause needs the reward's parts {', '.join(names)}, and it has none named {missing[0]}; use "
            "the reward geneval, alone"
        )
    scores = torch.stack([parts[name].to(present.device).float() for name in names])
    scores = scores.masked_fill(~(present & valid), torch.nan)
    return torch.stack([group_advantages(score, group_size, scale=scale, eps=eps) for score in scores])


def mean_over_clauses(values: Tensor, present: Tensor) -> Tensor:
    """Return the mean of values [K, B] or [K, B, T] over the clauses that a row has: [B] or [B, T]."""
    count = present.sum(dim=0).clamp(min=1)
    return values.sum(dim=0) / (count if values.ndim == 2 else count.unsqueeze(-1))
