"""The trajectory of a masked generator: which tokens each step fixes, and the states that can be rebuilt from it.

Sampling begins with T masks. Step k of N draws a candidate for every masked position, and fixes (commits) the most
confident of them, or a random choice; the others stay masked. `tokens` and `commit_step` [B, T] hold the whole
trajectory: before step k the model sees token t if and only if `commit_step[t] < k` (MaskGIT, 2202.04200; aMUSEd,
2401.01808).

B rows, T tokens, N steps. Pure functions, fp32, without a generator of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from t2i_gcpo.records import UnmaskingOrder

#: Share of the steps done -> share of the tokens still masked; 1 at 0, 0 at 1 (2202.04200, section 3.3). In fp32
#: tensors, whose rounding decides where the share times T is a whole number, as in AmusedScheduler.
SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda done: torch.cos(done * math.pi / 2),
    "linear": lambda done: 1 - done,
    "square": lambda done: 1 - done**2,
    "cubic": lambda done: 1 - done**3,
    "sqrt": lambda done: 1 - done.sqrt(),
}

#: How the positions that a step commits are chosen.
ORDERS: tuple[str, ...] = get_args(UnmaskingOrder)

#: Candidates less likely than this are all alike to the confidence, as in diffusers' AmusedScheduler.
LEAST_PROBABILITY = 1e-20


def still_masked(steps: int, length: int, schedule: str = "cosine") -> tuple[int, ...]:
    """Count the masked tokens after each of N steps, the last 0: `floor(T * schedule((k + 1) / N))`.

    The counts are changed where needed so that each step commits a token. ValueError: an unknown schedule, or fewer
    than 1 or more than T steps.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unmasking schedule {schedule!r} is unknown; allowed: {', '.join(SCHEDULES)}")
    if not 1 <= steps <= length:
        raise ValueError(
            f"{steps} sampling steps for {length} tokens; allowed are 1 to {length}, as each step fixes a token"
        )
    left, counts = length, []
    for step in range(steps):
        wanted = int((length * SCHEDULES[schedule](torch.tensor(step + 1) / steps)).floor())
        left = max(steps - 1 - step, min(left - 1, wanted))
        counts.append(left)
    return tuple(counts)


def annealed(step: int, steps: int, temperature: tuple[float, float]) -> float:
    """Return the confidence's temperature at a step: from the first value to the second in equal parts."""
    first, last = temperature
    return first if steps == 1 else first + (last - first) * step / (steps - 1)


def newly_committed(
    logprob: Tensor, masked: Tensor, count: int, uniform: Tensor, *, order: str = "confidence", temperature: float = 0.0
) -> Tensor:
    """Choose which of the masked positions [B, T] a step commits: `count` of each row, as bool [B, T].

    logprob: the candidates' log-probs [B, T] under the distribution they were drawn from, nats. uniform: noise [B, T]
    in [0, 1). "confidence" takes the largest `log p + temperature * Gumbel noise`; "random" any, so that the order does
    not depend on the policy and the product of the tokens' probabilities is the trajectory's, given the order.
    ValueError for another order.
    """
    if order not in ORDERS:
        raise ValueError(f"order {order!r} is unknown; allowed: {', '.join(ORDERS)}")
    if order == "random":
        confidence = uniform.float()
    else:
        confidence = logprob.float().clamp(min=math.log(LEAST_PROBABILITY)) + temperature * gumbel(uniform)
    chosen = confidence.masked_fill(~masked, -torch.inf).topk(count, dim=-1).indices
    return torch.zeros_like(masked).scatter(-1, chosen, True)


def gumbel(uniform: Tensor) -> Tensor:
    """Turn uniform noise in [0, 1) into standard Gumbel noise, bounded as in AmusedScheduler: [*] -> [*] fp32."""
    inner = -uniform.float().clamp(min=1e-20).log()
    return -inner.clamp(min=1e-20).log()


def state(tokens: Tensor, commit_step: Tensor, step: int | Tensor, mask_token: int) -> Tensor:
    """Return what the model sees before `step`: tokens committed earlier, and masks. [B, T], [B, T] -> [B, T] int64.

    `step` may be [B, 1], another step for each row.
    """
    return torch.where(commit_step < step, tokens, mask_token)
