"""Turns a row's choices into the weights of a rollout's tokens: which of them get the credit.

B rows (images), T tokens, V tokens in the codebook, D numbers a vector.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from t2i_gcpo import credit as credits
from t2i_gcpo.algorithms import clauses, rivals
from t2i_gcpo.algorithms.running_mean import RunningMean
from t2i_gcpo.algorithms.table import STATS, Algorithm
from t2i_gcpo.records import Rollout, Rows
from t2i_gcpo.utils.processes import ALONE, Processes


def token_weights(
    algorithm: Algorithm,
    rollout: Rollout,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    code_vectors: Tensor | None = None,
    clause_logprobs: Tensor | None = None,
    processes: Processes = ALONE,
    rows: Rows | None = None,
    running: RunningMean | None = None,
) -> Tensor:
    """Return the algorithm's credit: [B, T] fp32 of mean 1 over the valid tokens of each row.

    With `normalize_over` batch the mean is 1 over the valid tokens of all rows; with running it is 1 over those of the
    batches before, whose average `running` holds (None: there were none, and it is the batch's). mask [B, T] bool,
    true = valid.

    `generator` is what the controls draw from. code_vectors [V, D]: what `algorithm.needed_vectors` names.
    clause_logprobs [K, B, T], nats: under the prompt without each clause, for credit clauses; the result is then the
    mean of the clauses' weights. processes, rows: who shares the batch, and which of its rows these are (None: all).
    ValueError: a log-prob or statistic that the rollout lacks, vectors that are missing, or weights that follow from
    the rewards (credit dissimilar), which `token_advantages` gives.
    """
    if algorithm.credit == "uniform":
        return valid_tokens(rollout, mask).float()
    if algorithm.credit == "dissimilar":
        raise ValueError(f"the weights of algorithm {algorithm.name!r} follow from the rewards; see token_advantages")
    if algorithm.credit == "clauses":
        return clauses.mean_over_clauses(*clause_weights(algorithm, rollout, clause_logprobs, mask))
    if algorithm.credit == "critical":
        vectors = token_vectors(algorithm, rollout, code_vectors)
        values = statistic(algorithm, rollout, "behaviour_entropy")
        chosen = rivals.critical_tokens(values, vectors, rollout.sampling.group_size, rollout.grid)
        return credits.normalize(chosen.float(), normalization="none", floor=0.0, mask=mask)
    top, mass, kind = algorithm.top, algorithm.mass, algorithm.normalization
    if algorithm.credit == "random":
        shape, device = (rollout.batch, rollout.tokens.shape[1]), rollout.tokens.device
        return credits.random_weights(
            shape, top=top, mass=mass, mask=mask, generator=generator, device=device, rows=rows
        )
    if algorithm.credit in ("entropy", "variance"):
        values = statistic(algorithm, rollout, algorithm.credit)
        if algorithm.keeps_size:
            return _by_size(algorithm, values, values.sqrt(), mask, processes, running)
        return credits.normalize(values, normalization=kind, top=top, mass=mass, floor=0.0, mask=mask)
    if algorithm.divergence in STATS:
        name, curvature = STATS[algorithm.divergence]
        values, floor = statistic(algorithm, rollout, name), algorithm.floor**2 / curvature
        if algorithm.keeps_size:
            weights = _by_size(algorithm, values, (values * curvature).sqrt(), mask, processes, running)
        else:
            weights = credits.normalize(values, normalization=kind, top=top, mass=mass, floor=floor, mask=mask)
    else:
        if rollout.logprob_negative is None:
            raise ValueError(
                f"algorithm {algorithm.name!r} needs the log-probs under the negative prompt, and the rollout has "
                "none; sample with contrast on"
            )
        positive, negative = rollout.logprob_positive, rollout.logprob_negative
        if algorithm.keeps_size:
            values = credits.divergence(positive, negative, cast(credits.Divergence, algorithm.divergence))
            weights = _by_size(algorithm, values, (negative - positive).abs(), mask, processes, running)
        else:
            weights = _contrast_weights(algorithm, positive, negative, mask)
    if algorithm.credit == "sibling":
        return credits.of_siblings(weights, rollout.sampling.group_size, mask=mask)
    if algorithm.credit == "shuffled":
        return credits.shuffled(weights, mask=mask, generator=generator, rows=rows)
    return weights


def clause_weights(
    algorithm: Algorithm, rollout: Rollout, clause_logprobs: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return GCPO's weights for each clause, [K, B, T], and which clauses there are, [K, B] bool."""
    if clause_logprobs is None:
        raise ValueError(
            f"algorithm {algorithm.name!r} contrasts the prompt with itself without each clause: pass clause_logprobs, "
            "from training.credit_inputs.credit_inputs"
        )
    positive = rollout.logprob_positive
    return clauses.clause_weights(
        lambda negative: _contrast_weights(algorithm, positive, negative, mask), clause_logprobs.to(positive.device)
    )


def _contrast_weights(algorithm: Algorithm, positive: Tensor, negative: Tensor, mask: Tensor | None) -> Tensor:
    """Return the weights [B, T] of the contrast between two log-probs [B, T] of the drawn tokens."""
    return credits.token_weights(
        positive,
        negative,
        divergence=cast(credits.Divergence, algorithm.divergence),
        normalization=algorithm.normalization,
        top=algorithm.top,
        mass=algorithm.mass,
        floor=algorithm.floor,
        mask=mask,
    )


def _by_size(
    algorithm: Algorithm,
    values: Tensor,
    contrast: Tensor,
    mask: Tensor | None,
    processes: Processes,
    running: RunningMean | None,
) -> Tensor:
    """Weigh by the size of `values` [B, T], 0 where the `contrast` [B, T], nats, is below the token floor."""
    values = values.masked_fill(contrast < algorithm.token_floor, 0.0)
    if algorithm.normalize_over == "image":
        return credits.by_size(values, cap=algorithm.cap, mask=mask)
    if algorithm.normalize_over == "batch" or running is None:
        return credits.by_size(values, cap=algorithm.cap, over="batch", mask=mask, total=processes.sum)
    divisor = running.divide_by(float(credits.batch_mean(values, mask, processes.sum)))
    return credits.by_size(values, cap=algorithm.cap, mask=mask, divisor=divisor)


def valid_tokens(rollout: Rollout, mask: Tensor | None) -> Tensor:
    """Return the tokens that count, [B, T] bool: those of `mask`, or all."""
    return torch.ones_like(rollout.tokens, dtype=torch.bool) if mask is None else mask.bool()


def token_vectors(algorithm: Algorithm, rollout: Rollout, code_vectors: Tensor | None) -> Tensor:
    """Return the vectors [B, T, D] of the rollout's tokens."""
    if code_vectors is None:
        raise ValueError(
            f"algorithm {algorithm.name!r} compares the tokens' vectors: pass code_vectors, "
            f"generator.code_vectors({algorithm.needed_vectors!r})"
        )
    return code_vectors.to(rollout.tokens.device)[rollout.tokens]


def statistic(algorithm: Algorithm, rollout: Rollout, name: str) -> Tensor:
    """Return a statistic [B, T] of the rollout. ValueError: it has none of that name."""
    if name not in rollout.stats:
        raise ValueError(
            f"algorithm {algorithm.name!r} needs the statistic {name!r} of the rollout, which has "
            f"{sorted(rollout.stats)}; "
            "name it in sampling.stats"
        )
    return rollout.stats[name]
