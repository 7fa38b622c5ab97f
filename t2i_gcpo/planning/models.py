"""What a plan asks of a model: its sizes, and what one pass over a number of rows holds and computes."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from t2i_gcpo.generators.policy_weights import PolicyWeights
from t2i_gcpo.generators.tokens.logprobs import DEFAULT_CHUNK
from t2i_gcpo.planning.trace import Trace, on_line

#: Layers and rows at which a pass is traced. All layers are alike, and so are all rows: a larger pass follows on the
#: line through both.
DEPTHS, ROWS = (2, 4), (2, 4)
#: fp32 tensors over the codebook that exist at once while tokens are drawn: the guided logits, their softmax, its
#: running sum, and one that is being made.
DRAWING = 4


@dataclass(frozen=True)
class PassOptions:
    """Holds the options of a run that change what a pass holds."""

    dtype: torch.dtype
    distribution: str
    guidance: float
    lora_rank: int = 0
    gradient_checkpointing: bool = False
    head_chunk: int = DEFAULT_CHUNK
    """Tokens whose logits exist at once where a model scores them in chunks."""
    prompt_columns: int = 0
    """Columns of an autoregressive model's prompt."""
    sampling_steps: int = 1
    """Forward passes that sample an image of a masked model."""
    masked_policy: str = "commit_step"
    masked_passes: int = 0
    fold_passes: bool = False
    order: str = "confidence"
    schedule: str = "cosine"


class PlannedModel(ABC):
    """A model on the meta device, of which passes are traced."""

    layers: int
    tokens: int
    """Tokens of an image, T."""
    codebook: int
    policy: int
    """Parameters of the trained submodule."""
    sizes: list[int]
    """Parameters of each of its tensors."""
    adapted: list[tuple[int, int]]
    """Inputs and outputs of each layer that LoRA adapts."""
    frozen: dict[str, int]
    """Part -> parameters of the rest."""
    idle: tuple[str, ...]
    """Parts among them that a GPU does not hold."""
    fp32: int
    """Parameters among them that are fp32 whatever the dtype."""
    chunked_head: bool
    """Whether tokens are scored in chunks of `PassOptions.head_chunk`."""

    def __init__(self) -> None:
        self._traces: dict[Hashable, Trace] = {}

    def along(
        self,
        name: Hashable,
        rows: int,
        layers: int,
        traced: Callable[[int, int], Trace],
        at: tuple[int, int] | None = None,
    ) -> Trace:
        """Call `along_rows_and_layers`, and trace under a name no number of rows and layers twice.

        Larger batches follow from the same small ones, so that a plan for another card needs no new trace.
        """

        def once(few: int, depth: int) -> Trace:
            key = (name, few, depth)
            if key not in self._traces:
                self._traces[key] = traced(few, depth)
            return self._traces[key]

        return along_rows_and_layers(rows, layers, once, at or ROWS)

    def trained(self, rank: int) -> list[int]:
        """Count the parameters of each tensor that is trained: the policy's, or those of adapters of this rank."""
        if not rank:
            return self.sizes
        return [rank * width for layer in self.adapted for width in layer]

    @abstractmethod
    def update(self, rows: int, options: PassOptions) -> Trace:
        """Trace the forward and backward pass of a micro-batch, whose gradients are not counted."""

    @abstractmethod
    def score(self, rows: int, options: PassOptions) -> Trace:
        """Trace the forward pass of a micro-batch whose log-probs want no gradient."""

    @abstractmethod
    def decode(self, rows: int, options: PassOptions) -> Trace:
        """Trace the decoding of rows to images."""

    @abstractmethod
    def cache(self, folded: int, options: PassOptions, *, compiled: bool, on_cpu: bool) -> int:
        """Count the bytes of the buffers that hold keys and values of folded rows; 0 where there are none."""

    @abstractmethod
    def sample(self, folded: int, prompts: int, options: PassOptions) -> int:
        """Count the bytes that sampling folded rows holds at most beside weights and buffers.

        prompts: rows of the distinct prompts, of all branches.
        """

    @abstractmethod
    def sampling_work(self, folded: int, options: PassOptions) -> tuple[float, float]:
        """Count the FLOPs, and the bytes read, of sampling folded rows."""


def along_rows_and_layers(
    rows: int, layers: int, traced: Callable[[int, int], Trace], at: tuple[int, int] = ROWS
) -> Trace:
    """Trace a pass of few rows and layers, and go along the lines through these to all of them.

    What a pass holds and computes is a plane over rows and layers; small ones are traced as they are. at: the rows.
    """
    return _along(rows, at, lambda few: _along(layers, DEPTHS, lambda depth: traced(few, depth)))


def rows_of_whole_chunks(tokens: int, chunk: int) -> tuple[int, int]:
    """Return the rows to trace at, so that their tokens fill chunks: a chunk that is not full would hold less."""
    few = max(ROWS[0], chunk // math.gcd(chunk, tokens))
    return few, 2 * few


def _along(size: int, at: tuple[int, int], traced: Callable[[int], Trace]) -> Trace:
    """Trace at two sizes and go along the line through both to `size`; up to the larger, trace at it."""
    low, high = at
    if size <= high:
        return traced(size)
    return on_line(traced(low), traced(high), (size - low) / (high - low))


def count(module: nn.Module) -> int:
    """Count the parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def tensor_sizes(module: nn.Module) -> list[int]:
    """Count the parameters of each tensor of a module, in their order."""
    return [parameter.numel() for parameter in module.parameters()]


def adapted_layers(module: nn.Module, targets: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return inputs and outputs of each linear layer that `targets` match."""
    pattern = re.compile(rf".*\.({'|'.join(targets)})")
    linear = [part for name, part in module.named_modules() if pattern.fullmatch(name) and isinstance(part, nn.Linear)]
    return [(part.in_features, part.out_features) for part in linear]


def trained(model: nn.Module, path: str, targets: tuple[str, ...], options: PassOptions) -> PolicyWeights:
    """Make the policy of a model trainable, with adapters where a rank is given."""
    weights = PolicyWeights(model, path)
    if options.lora_rank:
        weights.add_lora(options.lora_rank, 1.0, targets, 0)
    return weights


def branch_values(values: Callable[[int], Tensor], rows: int, options: PassOptions) -> tuple[Tensor, Tensor | None]:
    """Compute `values` of a number of rows for the prompt's branch, and for the unconditional one where it is scored.

    As the scorers do: both in one batch where both are trained, and without gradient where the second is detached.
    """
    if options.distribution == "conditional" or options.guidance == 1:
        return values(rows), None
    if options.distribution == "guided":
        conditional, unconditional = values(2 * rows).chunk(2)
        return conditional, unconditional
    conditional = values(rows)
    with torch.no_grad():
        return conditional, values(rows)
