"""Get from the generator what a rule of credit needs beyond the rollout.

K clauses of a prompt at most, P prompts, B rows, T tokens, V codebook, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from t2i_gcpo.algorithms import Algorithm
from t2i_gcpo.data.clauses import without_clauses
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Prompt, Rollout
from t2i_gcpo.training.options import LoopOptions


class CreditInputs(TypedDict):
    """Holds arguments of `token_advantages` and `token_weights`."""

    code_vectors: Tensor | None
    """[V, D], what `Algorithm.needed_vectors` names."""
    clause_logprobs: Tensor | None
    """[K, B, T] fp32, nats, where the credit is by clause."""


def credit_inputs(
    generator: ImageGenerator, algorithm: Algorithm, rollout: Rollout, *, micro_batch: int = LoopOptions.micro_batch
) -> CreditInputs:
    """Return what the algorithm's weights are made of, and None for the rest.

    ValueError: a generator without such vectors, prompts without clauses.
    """
    vectors = algorithm.needed_vectors
    return {
        "code_vectors": None if vectors is None else generator.code_vectors(vectors),
        "clause_logprobs": clause_logprobs(generator, rollout, micro_batch) if algorithm.credit == "clauses" else None,
    }


def check_prompts(algorithm: Algorithm, prompts: Sequence[Prompt]) -> None:
    """Raise ValueError for the first prompt that the algorithm's credit cannot take apart."""
    if algorithm.credit == "clauses":
        for prompt in prompts:
            without_clauses(prompt)


@torch.no_grad()
def clause_logprobs(generator: ImageGenerator, rollout: Rollout, micro_batch: int) -> Tensor:
    """Return the log-probs of the rollout's tokens under the prompt without each clause: [K, B, T] fp32, nats.

    Where nothing is left without it they are those under the negative prompt, which the rollout has. NaN for a clause
    that a row's prompt does not have. One forward pass a clause and row that has something left.
    """
    if rollout.logprob_negative is None:
        raise ValueError("the rollout has no log-probs under the negative prompt; sample with contrast on")
    texts = rollout.per_row([without_clauses(prompt) for prompt in rollout.prompts])
    count = max(map(len, texts), default=0)
    result = rollout.logprob_negative.new_full((count, *rollout.tokens.shape), torch.nan)
    for k in range(count):
        nothing = [row for row, of_row in enumerate(texts) if k < len(of_row) and of_row[k] is None]
        result[k, nothing] = rollout.logprob_negative[nothing]
        left = torch.tensor([row for row, of_row in enumerate(texts) if k < len(of_row) and of_row[k] is not None])
        for part in left.split(micro_batch) if len(left) else ():
            shorter = [text for row in part.tolist() if (text := texts[row][k]) is not None]
            result[k, part] = generator.token_logprobs(rollout.rows(part), prompt=shorter)
    return result
