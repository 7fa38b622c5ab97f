"""Time GCPO's token weights of a whole batch against plain code that takes one image after the other.

B images, T tokens.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
from rich.console import Console
from torch import Tensor

from t2i_gcpo import credit
from t2i_gcpo.bench import positive
from t2i_gcpo.bench.measure import Line, Report, check_same, interleave, paired_ratio, warm_up
from t2i_gcpo.utils.device import pick_device

BASELINE = "a loop over images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=positive, default=100, help="pairs of calls that are measured")
    parser.add_argument("--batch", type=positive, default=256, help="images")
    parser.add_argument("--tokens", type=positive, default=576, help="tokens of an image, at least 2")


def one_by_one(logprob_positive: Tensor, logprob_negative: Tensor) -> Tensor:
    """Compute the divergence, its rank and the weights (2605.29198) [B, T] of each image by itself: the baseline.

    Plain ranks from two sorts, which is right only where no two tokens of an image tie; no noise floor.
    """
    exponent = math.log(1 - credit.DEFAULT_MASS) / math.log(1 - credit.DEFAULT_TOP) - 1
    weights = []
    for positive_row, negative_row in zip(logprob_positive, logprob_negative, strict=True):
        d = (negative_row - positive_row).clamp(-credit.MAX_LOG_RATIO, credit.MAX_LOG_RATIO)
        divergence = (torch.expm1(d) - d).clamp(max=credit.MAX_DIVERGENCE)
        rank = divergence.argsort().argsort() + 1
        row = (rank / len(rank)) ** exponent
        weights.append(row / row.mean())
    return torch.stack(weights)


def logprobs(batch: int, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make positive and negative log-probs [B, T], nats, without ties and far above the floor.

    Their differences are a row's shuffled grid from -1 to 2. Sorting does not care which values it sorts.
    """
    grid = torch.linspace(-1.0, 2.0, tokens)
    order = torch.rand(batch, tokens, generator=generator).argsort(dim=-1)
    positive_logprob = torch.full((batch, tokens), -2.0)  # a constant: rounding may not make ties
    return positive_logprob, positive_logprob - grid[order]


def run(options: argparse.Namespace, console: Console) -> Report:
    """Time both sides. ValueError: fewer than two tokens. RuntimeError: the sides differ."""
    if options.tokens < 2:
        raise ValueError(f"--tokens is {options.tokens}; a rank needs at least 2")
    device = pick_device(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    inputs = tuple(values.to(device) for values in logprobs(options.batch, options.tokens, generator))
    sides = {"ours": lambda: credit.token_weights(*inputs), "baseline": lambda: one_by_one(*inputs)}
    warmup = warm_up(sides, device, console, calls=3)
    check_same("weights", sides["ours"](), sides["baseline"](), rtol=1e-4, atol=1e-6)
    console.print("checked: same weights", highlight=False)
    times = interleave(sides, options.pairs, device)
    ours, baseline = (1e3 * statistics.median(times[name]) for name in ("ours", "baseline"))
    ratio = paired_ratio(times["baseline"], times["ours"], seed=options.seed)
    line = Line("weights", ours, baseline, "ms", ratio, "higher", options.pairs)
    settings = {"batch": options.batch, "tokens": options.tokens, "seed": options.seed}
    return Report("credit", (line,), BASELINE, warmup, device, settings)
