"""Applies a row of the algorithms' table to a rollout: token advantages and the loss.

P prompts, G images a prompt, B = P * G rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from t2i_gcpo import advantages as group
from t2i_gcpo import credit as credits
from t2i_gcpo import losses
from t2i_gcpo.algorithms import clauses, rivals
from t2i_gcpo.algorithms.running_mean import RunningMean
from t2i_gcpo.algorithms.table import Algorithm
from t2i_gcpo.algorithms.weights import clause_weights, statistic, token_vectors, token_weights, valid_tokens
from t2i_gcpo.losses import LossOutput
from t2i_gcpo.records import Rollout, Rows
from t2i_gcpo.utils.processes import ALONE, Processes, all_rows, mean


@dataclass(frozen=True)
class TokenAdvantages:
    """Holds what the rollout's rewards say about each token: all that the loss and the heatmap need of them."""

    advantages: Tensor
    """[B, T] fp32, `A[b, t] = A_b * w[b, t]`, with credit clauses the mean of that over the clauses; 0 where masked."""
    weights: Tensor
    """[B, T] fp32, token weights w of mean 1 over the valid tokens of an image; 0 where masked."""
    kl_weights: Tensor
    """[B, T] fp32, the factor of each token's KL, where the algorithm weighs it."""
    sequence_advantages: Tensor
    """[B] fp32, the group-relative advantage A_b, with credit clauses the mean of theirs; 0 for a failed image."""
    valid: Tensor
    """[B] bool, false for an image whose reward failed: it is not in the loss at all."""
    mask: Tensor
    """[B, T] bool, the tokens that are in the loss."""
    metrics: dict[str, float]
    """Name -> number, for logging."""

    def rows(self, index: Tensor) -> TokenAdvantages:
        """Return some rows, for a micro-batch; the metrics stay those of the whole. `index`: [b] int64."""
        index = index.to(self.advantages.device)
        tensors = {name: vars(self)[name][index] for name in
                   ("advantages", "weights", "kl_weights", "sequence_advantages", "valid", "mask")}  # fmt: skip
        return replace(self, **tensors)


def token_advantages(
    algorithm: Algorithm,
    rollout: Rollout,
    rewards: Tensor,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    parts: Mapping[str, Tensor] | None = None,
    part_weights: Mapping[str, float] | None = None,
    reference_entropy: Tensor | None = None,
    code_vectors: Tensor | None = None,
    clause_logprobs: Tensor | None = None,
    processes: Processes = ALONE,
    rows: Rows | None = None,
    running: RunningMean | None = None,
) -> TokenAdvantages:
    """Return the token advantages of a whole rollout, or of one process's share of it.

    Rewards [B], NaN = failed, rows in groups of `rollout.sampling.group_size`.

    mask [B, T] bool: further tokens to leave out. parts, part_weights: the reward's parts [B] and their weights, for
    `normalize_parts` and, the parts alone, credit clauses. reference_entropy [B, T] or [B], nats: the reference model's
    entropy of the same distribution as `Rollout.stats["entropy"]` at the same tokens, for the entropy reward.
    code_vectors [V, D]: what `algorithm.needed_vectors` names. clause_logprobs [K, B, T], nats: under the prompt
    without each clause, for credit clauses. processes: who shares the batch, over all of which statistics and metrics
    are. rows: which of its rows these are (None: all). running: the average of the batches before, for
    `normalize_over` running (None: there were none). ValueError: one of these is wanted and missing, or the rollout's
    group size is not the algorithm's.
    """
    size = rollout.sampling.group_size
    if size != algorithm.group_size:
        raise ValueError(
            f"the rollout's group size is {size}, the algorithm's {algorithm.group_size}; pass the whole rollout"
        )
    if rewards.shape != rollout.tokens.shape[:1]:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}; expected [{rollout.batch}], one for each row")
    device = rollout.tokens.device
    rewards = rewards.to(device).float()
    valid = group.valid_rows(rewards)
    scale: dict[str, Any] = {"scale": algorithm.advantage_scale, "eps": algorithm.advantage_eps}
    if algorithm.normalize_parts:
        if parts is None or part_weights is None:
            raise ValueError("normalize_parts needs the reward's parts and their weights; pass them, or turn it off")
        parts = {name: part.to(device).masked_fill(~valid, torch.nan) for name, part in parts.items()}
        sequence = group.part_advantages(parts, part_weights, size, **scale)
        if algorithm.normalize_batch:
            # A row with one failed part was left out of all parts' statistics: it has no advantage here either.
            whole = valid & torch.stack([parts[name].isfinite() for name in part_weights]).all(dim=0)
            sequence = _batch_normalized(algorithm, sequence, whole, processes)
    else:
        bonus = _entropy_bonus(algorithm, rollout, rewards, reference_entropy)
        sequence = group.group_advantages(rewards + bonus, size, **scale)
    kept = valid_tokens(rollout, mask) & valid.unsqueeze(-1)
    if algorithm.credit == "dissimilar":
        vectors = token_vectors(algorithm, rollout, code_vectors)
        similarity = rivals.opposite_similarity(vectors, sequence, size)
        weights = rivals.dissimilarity(similarity, mask=kept, total=processes.sum)
        of_kl = rivals.similarity_kl_weights(similarity)
        spread = sequence.unsqueeze(-1) * weights
    elif algorithm.credit == "clauses":
        by_clause, present = clause_weights(algorithm, rollout, clause_logprobs, mask)
        own = clauses.clause_advantages(parts or {}, present, valid, size, **scale)
        sequence = clauses.mean_over_clauses(own, present)
        weights = clauses.mean_over_clauses(by_clause, present) * valid.unsqueeze(-1)
        of_kl = losses.kl_weights(weights)
        spread = clauses.mean_over_clauses(own.unsqueeze(-1) * by_clause, present)
    else:
        weights = token_weights(
            algorithm,
            rollout,
            mask=mask,
            generator=generator,
            code_vectors=code_vectors,
            processes=processes,
            rows=rows,
            running=running,
        )
        weights = weights * valid.unsqueeze(-1)
        of_kl = weights if algorithm.credit == "critical" else losses.kl_weights(weights)
        spread = sequence.unsqueeze(-1) * weights
    metrics = _metrics(algorithm, rollout, rewards, sequence, weights, kept, mask, processes)
    return TokenAdvantages(spread, weights, of_kl, sequence, valid, kept, metrics)


def _batch_normalized(algorithm: Algorithm, sequence: Tensor, whole: Tensor, processes: Processes) -> Tensor:
    """Normalise the advantages [b] of this process's rows over those of all processes."""
    counts = processes.gather(len(sequence))
    everything = group.batch_normalized(
        all_rows(processes, sequence), all_rows(processes, whole), eps=algorithm.advantage_eps
    )
    return everything.split(counts)[processes.rank]


def _metrics(
    algorithm: Algorithm,
    rollout: Rollout,
    rewards: Tensor,
    sequence: Tensor,
    weights: Tensor,
    kept: Tensor,
    mask: Tensor | None,
    processes: Processes,
) -> dict[str, float]:
    """Return the means over the rows of all processes."""
    failed = (~group.valid_rows(rewards)).sum()
    rows = {
        "groups/informative": float(group.informative_groups(rewards, algorithm.group_size).float().mean()),
        "advantage/abs_mean": float(sequence.abs().mean()),
    }
    if rollout.logprob_negative is not None:
        contrast = credits.contrast(rollout.logprob_positive, rollout.logprob_negative, mask=mask)
        rows["credit/contrast"] = float(contrast.mean())
        rows["credit/below_floor"] = float((contrast < algorithm.floor).float().mean())
    counted = float(kept.any(dim=-1).sum())
    credit = {f"credit/{k}": v for k, v in credits.statistics(weights, top=algorithm.top, mask=kept).items()}
    rows, credit = mean(processes, rows, rollout.batch), mean(processes, credit, counted)
    return {**rows, **credit, "rows/failed": float(processes.sum(failed))}


def loss(
    algorithm: Algorithm,
    logprob: Tensor,
    logprob_old: Tensor,
    targets: TokenAdvantages,
    *,
    logprob_reference: Tensor | None = None,
    token_logprob: Tensor | None = None,
    scale: Tensor | None = None,
    logprob_sampled: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """Return the clipped policy loss plus the KL term, for some rows: log-probs [b, T], `targets` of the same rows.

    token_logprob [b, T]: the policy's log-probs that the KL to `logprob_reference` is taken of (None: `logprob`). A
    ratio may be of several tokens at once, and the estimators' exponent of so large a difference overflows.

    scale [b, T]: factor of each token's loss and KL (None: 1 for all); a token of scale 0 is in no metric.
    logprob_sampled [b, T]: what sampling recorded for the tokens, for `importance_cap`, which weighs the policy loss
    alone.
    `denominator`: that of the whole batch (`loss_denominator`) when these rows are a micro-batch; the gradients then
    add up to the whole batch's. Metrics: those of `losses.policy_loss`, `policy_loss`, and with a reference `kl_loss`
    (with factor), `kl_k1`, `kl_k3` (unweighted means). A reference may be passed for these metrics alone. ValueError:
    the row wants one.
    """
    if logprob_reference is None and algorithm.needs_reference:
        raise ValueError(
            f"algorithm {algorithm.name!r} has a KL term, or weighs by the ratio to the reference: pass "
            "logprob_reference, or set kl_estimator to none and ratio_bound to 0"
        )
    own = logprob if token_logprob is None else token_logprob
    factor = scale
    if algorithm.ratio_bound > 0 and logprob_reference is not None:
        ratio = rivals.running_ratio(own, logprob_reference, algorithm.ratio_bound)
        factor = ratio if scale is None else scale * ratio
    importance = None
    if algorithm.importance_cap > 0:
        if logprob_sampled is None:
            raise ValueError(
                "importance_cap needs the log-probs that sampling recorded for what is trained, and there are none (a "
                "masked generator's likelihood of a part of its passes has none); set algorithm.importance_cap to 0"
            )
        importance = losses.truncated_importance(logprob_old, logprob_sampled, algorithm.importance_cap)
    output = losses.policy_loss(
        logprob,
        logprob_old,
        targets.advantages,
        mask=targets.mask,
        scale=factor,
        importance=importance,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        reduction=algorithm.reduction,
        denominator=denominator,
    )
    total, metrics = output.loss, output.metrics | {"policy_loss": output.loss.detach()}
    if importance is not None:
        metrics["importance_mean"] = losses.reduce(importance, targets.mask, "token")
        capped = (importance >= algorithm.importance_cap).float()
        metrics["importance_capped"] = losses.reduce(capped, targets.mask, "token")
    if logprob_reference is None:
        return LossOutput(total, metrics)
    counted = targets.mask if scale is None else targets.mask & (scale > 0)
    for estimator in ("k1", "k3"):
        values = losses.kl(own.detach(), logprob_reference, estimator)
        metrics[f"kl_{estimator}"] = losses.reduce(values, counted, "token")
    if algorithm.kl_estimator != "none" and algorithm.kl_coef > 0:
        values = losses.kl(own, logprob_reference, algorithm.kl_estimator)
        if algorithm.kl_weighting:
            values = values * targets.kl_weights
        if scale is not None:
            values = values * scale
        term = algorithm.kl_coef * losses.reduce(values, targets.mask, algorithm.reduction, denominator)
        total, metrics = total + term, metrics | {"kl_loss": term.detach()}
    return LossOutput(total, metrics)


def loss_denominator(algorithm: Algorithm, targets: TokenAdvantages, processes: Processes = ALONE) -> Tensor:
    """Return what the loss of the whole batch, that of all processes, is divided by, a scalar.

    The gradients of the processes then add up to those of the whole batch.
    """
    return losses.reduction_denominator(targets.mask, algorithm.reduction, processes.sum)


def _entropy_bonus(algorithm: Algorithm, rollout: Rollout, rewards: Tensor, reference: Tensor | None) -> Tensor:
    """Return STAGE's entropy reward with its factor, [B]; zeros where it is off."""
    if algorithm.entropy_reward_coef == 0:
        return torch.zeros_like(rewards)
    if reference is None:
        raise ValueError("entropy_reward_coef is above 0: pass reference_entropy, the reference model's entropy [B, T]")
    entropy = statistic(algorithm, rollout, "entropy").mean(dim=-1)
    reference = reference.to(rewards.device)
    reference = reference.mean(dim=-1) if reference.ndim == 2 else reference
    size = rollout.sampling.group_size
    bonus = algorithm.entropy_reward_coef * group.closest_entropy_bonus(rewards, entropy, reference, size)
    if algorithm.entropy_reward_groups == "all":
        return bonus
    return bonus * group.per_row(group.informative_groups(rewards, size), size)
