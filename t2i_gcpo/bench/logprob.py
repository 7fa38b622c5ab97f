"""Measure token log-probs through the head, forward and backward, against a full fp32 log-softmax: memory and time.

The head is frozen, as Janus's is: gradients go to the hidden states. B rows, T tokens, V codebook, D hidden width.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from torch import Tensor, nn

from t2i_gcpo.bench import positive
from t2i_gcpo.bench.measure import MIB, Report, check_same, cost, interleave, peak_bytes, warm_up
from t2i_gcpo.generators.tokens.logprobs import DEFAULT_CHUNK, token_logprob
from t2i_gcpo.utils.device import pick_device

BASELINE = "a full log-softmax"
MEMORY_ROUNDS = 3
"""Peaks hardly vary from call to call."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=positive, default=10, help="pairs of calls that are timed")
    parser.add_argument("--batch", type=positive, default=1, help="rows")
    parser.add_argument("--tokens", type=positive, default=576, help="tokens of a row")
    parser.add_argument("--vocabulary", type=positive, default=16384, help="codebook entries")
    parser.add_argument("--width", type=positive, default=2048, help="hidden width")
    parser.add_argument("--chunk", type=positive, default=DEFAULT_CHUNK, help="tokens whose logits we hold at once")


def full_logprob(hidden: Tensor, head: nn.Module, tokens: Tensor) -> Tensor:
    """Compute log-probs [B, T] out of those of the whole codebook [B, T, V]: the baseline."""
    return head(hidden).float().log_softmax(dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def run(options: argparse.Namespace, console: Console) -> Report:
    """Measure both sides. RuntimeError: they differ."""
    device = pick_device(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch, options.tokens)
    hidden = torch.randn(*shape, options.width, generator=generator).to(device).requires_grad_()
    head = (
        nn.Linear(options.width, options.vocabulary, bias=False, device="meta")
        .to_empty(device=device)
        .requires_grad_(False)
    )
    # A standard deviation of 2 for the logits: neither flat nor certain.
    head.weight.copy_(2 * torch.randn(options.vocabulary, options.width, generator=generator) / options.width**0.5)
    tokens = torch.randint(options.vocabulary, shape, generator=generator).to(device)
    upstream = torch.randn(shape, generator=generator).to(device)

    def differentiated(logprob: Tensor) -> tuple[Tensor, Tensor]:
        return logprob.detach(), torch.autograd.grad(logprob, hidden, upstream)[0]

    sides = {
        "ours": lambda: differentiated(token_logprob(hidden, head, tokens, chunk=options.chunk)),
        "baseline": lambda: differentiated(full_logprob(hidden, head, tokens)),
    }
    warmup = warm_up(sides, device, console)
    check_same("log-probs and gradients", sides["ours"](), sides["baseline"](), rtol=1e-4, atol=1e-5)
    console.print("checked: same log-probs, same gradients", highlight=False)
    peaks = {name: [float(peak_bytes(side, device)) for _ in range(MEMORY_ROUNDS)] for name, side in sides.items()}
    times = interleave(sides, options.pairs, device)
    lines = (
        cost("memory", peaks["ours"], peaks["baseline"], unit="MiB", scale=1 / MIB, seed=options.seed),
        cost("time", times["ours"], times["baseline"], unit="ms", scale=1e3, seed=options.seed),
    )
    settings = {name: vars(options)[name] for name in ("batch", "tokens", "vocabulary", "width", "chunk", "seed")}
    return Report("logprob", lines, BASELINE, warmup, device, settings)
