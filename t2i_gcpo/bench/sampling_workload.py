"""The parts that the sampling benchmarks share: batch, tokens to decode, check of the distribution, settings.

P prompts, G images a prompt, B = P * G rows, T tokens.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor

from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.records import Rollout

SCORE_ROWS = 16
"""Rows that are scored at once by the checks."""
STANDARD_ERRORS = 5.0
"""Allowed distance of the mean log-probs of two samples of one distribution; chance exceeds it once in a million
runs."""


def batch_size(options: argparse.Namespace, prompts: int) -> int:
    """Return the number of images B. ValueError: one image."""
    batch: int = prompts * options.group_size
    if batch < 2:
        raise ValueError(
            "a batch of one image has no spread to compare samples by; raise --num-prompts or --group-size"
        )
    return batch


def any_tokens(generator: Amused | Janus, batch: int, seed: int, device: torch.device) -> Tensor:
    """Draw tokens [B, T] to be decoded, which costs the same for all sides."""
    shape = (batch, math.prod(generator.grid))
    return torch.randint(generator.codebook_size, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def settings(
    options: argparse.Namespace, generator: Amused | Janus, prompts: int, *, compiled: bool, **more: Any
) -> dict[str, Any]:
    """Collect what the report says of the run; `more` is one kind of generator's own."""
    return {
        "checkpoint": options.checkpoint,
        "prompts": options.prompts,
        "num_prompts": prompts,
        "group_size": options.group_size,
        "images": prompts * options.group_size,
        "tokens": math.prod(generator.grid),
        **more,
        "guidance": options.guidance,
        "dtype": str(generator.dtype),
        "compiled": compiled,
        "seed": options.seed,
    }


@torch.no_grad()
def scored(generator: Amused | Janus, rollout: Rollout) -> Tensor:
    """Compute the log-probs [B, T] of a rollout's tokens under its sampling options."""
    parts = torch.arange(rollout.batch).split(SCORE_ROWS)
    return torch.cat([generator.token_logprobs(rollout.rows(part), distribution="guided") for part in parts])


def check_distribution(whose: str, mine: Tensor, theirs: Tensor) -> None:
    """Raise a RuntimeError unless the images' mean log-probs [B] of both sides fit one distribution.

    `whose`: the two sides, in words.
    """
    difference = float(mine.mean() - theirs.mean())
    error = math.sqrt(float(mine.var()) / len(mine) + float(theirs.var()) / len(theirs))
    if not abs(difference) <= STANDARD_ERRORS * error:
        raise RuntimeError(
            f"{whose} are not samples of one distribution: their mean log-probs are "
            f"{float(mine.mean()):.3f} and {float(theirs.mean()):.3f} nats, "
            f"{abs(difference) / max(error, 1e-12):.1f} standard errors apart"
        )
