"""Compute the gradient that each rule of credit has on the same scored rollout, without an update.

B rows, b rows of a micro-batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from t2i_gcpo.algorithms import Algorithm, loss, loss_denominator, token_advantages
from t2i_gcpo.generators.base import Distribution, ImageGenerator
from t2i_gcpo.records import ScoredRollout
from t2i_gcpo.training.credit_inputs import credit_inputs
from t2i_gcpo.training.options import LoopOptions


def rule_gradients(
    generator: ImageGenerator,
    scored: ScoredRollout,
    rules: Mapping[str, Algorithm],
    *,
    distribution: Distribution = LoopOptions.distribution,
    micro_batch: int = LoopOptions.micro_batch,
    rng: torch.Generator | None = None,
) -> dict[str, list[Tensor]]:
    """Return, for each rule, the gradient of its policy loss at ratio 1: one tensor a trainable parameter.

    One forward pass serves all rules with the same events. The terms of a reference model are left out, as there is
    none, and so are DAPO's discarded groups: they have no gradient. `rng`: what the controls draw from. ValueError: a
    log-prob or statistic that the rollout lacks, events that the generator does not know.
    """
    parameters = generator.trainable_parameters()
    plain = {name: replace(rule, kl_coef=0.0, entropy_reward_coef=0.0, ratio_bound=0.0) for name, rule in rules.items()}
    targets = {
        name: token_advantages(
            rule,
            scored.rollout,
            scored.scores,
            generator=rng,
            parts=scored.parts,
            **credit_inputs(generator, rule, scored.rollout, micro_batch=micro_batch),
        )
        for name, rule in plain.items()
    }
    totals = {name: [torch.zeros_like(parameter) for parameter in parameters] for name in rules}
    for part in torch.arange(scored.rollout.batch).split(micro_batch):
        rows = scored.rollout.rows(part.to(scored.rollout.tokens.device))
        scored_by = {
            events: generator.training_scores(rows, distribution=distribution, events=events)
            for events in {rule.events for rule in plain.values()}
        }
        for k, (name, rule) in enumerate(plain.items()):
            scores = scored_by[rule.events]
            output = loss(
                rule,
                scores.logprob,
                scores.logprob.detach(),
                targets[name].rows(part),
                scale=scores.scale,
                denominator=loss_denominator(rule, targets[name]),
            )
            gradients = torch.autograd.grad(output.loss, parameters, retain_graph=k + 1 < len(plain), allow_unused=True)
            for total, gradient in zip(totals[name], gradients, strict=True):
                if gradient is not None:
                    total += gradient
    return totals
