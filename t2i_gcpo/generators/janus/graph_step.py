"""One sampling step recorded as a CUDA graph, and replayed for every token after it: one launch instead of hundreds.

A graph reads and writes the same memory at each replay. The step's other memory (weights, cache, positions) stays where
it is for the length of a batch, so the graph is made anew for each batch and let go of with it.

R rows sampled at once, N branches, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Results = TypeVar("Results")
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""Input embeddings [N R, 1, D], noise [R] or [R, V] -> the next input embeddings, tokens [R] and their records [R]."""

#: Steps of a batch that run before one is recorded: kernels are built in the first, and must not be while recording.
WARM_UP = 3


def recorded(function: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
    """Record what a function asks of the GPU, without running it; return how to replay it, and what a replay writes."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph.replay, results


class GraphStep:
    """A step with the signature of the one that it was recorded from."""

    def __init__(self, step: Step, embeds: Tensor, noise: Tensor) -> None:
        """Record `step`, whose inputs are like these; it must have run before."""
        self._embeds, self._noise = embeds.clone(), noise.clone()
        self._replay, self._results = recorded(lambda: step(self._embeds, self._noise))

    def __call__(self, embeds: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Take the step. Its embeddings are good until the next call, tokens and records for ever."""
        self._embeds.copy_(embeds)
        self._noise.copy_(noise)
        self._replay()
        following, token, records = self._results
        return following, token.clone(), {name: record.clone() for name, record in records.items()}
