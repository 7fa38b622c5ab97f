"""One rollout's optimiser updates: passes, mini-batches, accumulated micro-batches, the KL's reference, the guard.

B rows, b rows of a micro-batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i_gcpo.algorithms import Algorithm, TokenAdvantages, loss, loss_denominator
from t2i_gcpo.generators.base import ImageGenerator, TrainingScores
from t2i_gcpo.records import Rollout, Rows
from t2i_gcpo.training import updater_state
from t2i_gcpo.training.average import ModelWriter, PolicyAverage, model_writer
from t2i_gcpo.training.master_weights import AFTER_DIVERGENCE
from t2i_gcpo.training.moving_reference import MovingReference
from t2i_gcpo.training.optim import NonFiniteGuard, adamw, lr_factor
from t2i_gcpo.training.options import LoopOptions, OptimConfig
from t2i_gcpo.training.sharded_weights import masters_of
from t2i_gcpo.training.writing import Shards
from t2i_gcpo.utils.clock import Clock
from t2i_gcpo.utils.finite import all_finite
from t2i_gcpo.utils.processes import ALONE, Processes, joined, mean

#: Mean |re-scored - recorded log-prob|, nats, up to which the recorded ones serve as old log-probs. fp32 re-scores to
#: 1e-5; bf16 does not come near it.
DRIFT_TOLERANCE = 1e-4


class Updater:
    """Holds the optimiser, and updates the generator's policy from a rollout and its token advantages."""

    def __init__(
        self,
        generator: ImageGenerator,
        algorithm: Algorithm,
        loop: LoopOptions,
        optim: OptimConfig,
        processes: Processes = ALONE,
    ) -> None:
        """Set up the optimiser over the generator's trainable parameters. ValueError where there are none."""
        self.generator, self.algorithm, self.loop, self.optim = generator, algorithm, loop, optim
        self.processes = processes
        self.guard = NonFiniteGuard(loop.max_nonfinite)
        self.weights = masters_of(generator, processes, each_pass=loop.reduce_gradients == "micro_batch")
        self.optimizer = adamw(self.weights, optim)
        self.average = PolicyAverage(generator, optim.average_decay) if optim.average_decay else None
        self.moving = (
            MovingReference(generator, every=optim.reference_every, decay=optim.reference_decay)
            if optim.reference_every
            else None
        )
        self.updates = 0
        """Rollouts that the weights were updated from: where the learning rate is on its course."""
        self.incomplete = False
        """Whether an error stopped `update` between two optimiser steps of one rollout."""
        self._probe: Rollout | None = None  # the first rows of the last update's rollout

    @property
    def learning_rate(self) -> float:
        """Return the learning rate of the next update.

        A function of the options and of the number of updates that were done.
        """
        return self.optim.lr * lr_factor(self.updates, self.optim, self.loop.steps)

    # -- the update ----------------------------------------------------------------------------------------------------

    def update(
        self,
        rollout: Rollout,
        targets: TokenAdvantages,
        clock: Clock,
        rng: torch.Generator,
        *,
        rows: Rows | None = None,
    ) -> dict[str, float]:
        """Take all optimiser steps of one rollout and return their mean metrics. FloatingPointError from the guard.

        rows: which rows of the rollout of all processes these are (None: all). A process that has none of an optimiser
        step takes part in it without a gradient.
        """
        rows = Rows.all(rollout.batch) if rows is None else rows
        self._probe = rollout.rows(torch.arange(min(self.loop.micro_batch, rollout.batch)))
        with clock.phase("forward"):
            due = self.loop.kl_due(self.algorithm, self.updates + 1)
            reference = self._reference(rollout) if due else None
            old, drift = self._old(rollout)
        history: list[dict[str, Tensor]] = []
        norms: list[Tensor] = []
        skipped = 0
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        for chosen in self._minibatches(rows.total, rng):
            index = rows.own(chosen)
            batch_targets = targets.rows(index)
            if not self.processes.any(bool(batch_targets.mask.any())):
                continue  # all of its images failed
            denominator = loss_denominator(self.algorithm, batch_targets, self.processes)
            self.weights.clear_gradients()
            micro = [part for part in index.split(self.loop.micro_batch) if len(part)]
            more = self.weights.passes(len(micro)) - len(micro)
            parts = [self._accumulate(rollout, targets, part, old, reference, denominator, clock) for part in micro]
            history += parts
            with clock.phase("backward"):
                for _ in range(more):
                    self.weights.add_gradients()
                lost = self.processes.any(not all_finite(*(part["loss"] for part in parts)))
                self.weights.reduce()
                norms.append(self.weights.clip_gradients(self.optim.max_grad_norm))
                if self.guard.count(all_finite(norms[-1]) and not lost):
                    self.incomplete = True
                    self.optimizer.step()
                    self.weights.write_back()
                    self.weights.check_finite()
                    if self.average is not None:
                        self.average.add()
                else:
                    skipped += 1
        if self.incomplete:  # a step without any update is none of the schedule's
            self.updates += 1
            if self.moving is not None:
                self.moving.after(self.updates)
        self.incomplete = False
        history = [{name: value.cpu() for name, value in part.items()} for part in history]
        return {**_means(joined(self.processes, history), norms), **drift, "updates/skipped": float(skipped)}

    def _minibatches(self, batch: int, rng: torch.Generator) -> Iterator[Tensor]:
        """Yield the row indices of each optimiser step.

        One step takes the rows in order; several deal them out anew each pass.
        """
        for _ in range(self.loop.epochs):
            order = torch.arange(batch) if self.loop.minibatches == 1 else torch.randperm(batch, generator=rng)
            yield from order.tensor_split(min(self.loop.minibatches, batch))

    def _accumulate(
        self,
        rollout: Rollout,
        targets: TokenAdvantages,
        part: Tensor,
        old: Tensor | None,
        reference: Tensor | None,
        denominator: Tensor,
        clock: Clock,
    ) -> dict[str, Tensor]:
        """Run the micro-batch of rows `part` [b] forward and backward, and return its metrics."""
        part = part.to(denominator.device)
        rows, part_targets = rollout.rows(part), targets.rows(part)
        with clock.phase("forward"):
            scores = self._scores(rows)
            fresh, scale = scores.logprob.detach(), scores.scale
            output = loss(
                self.algorithm,
                scores.logprob,
                fresh if old is None else old[part],
                part_targets,
                logprob_reference=None if reference is None else reference[part],
                token_logprob=scores.own,
                scale=scale,
                logprob_sampled=self._recorded(rows) if scale is None else None,
                denominator=denominator,
            )
        with clock.phase("backward"):
            if all_finite(output.loss.detach()):
                output.loss.backward()
            self.weights.add_gradients()  # also those of a pass that gave none: the other processes may wait
        counted = part_targets.mask if scale is None else part_targets.mask & (scale > 0)
        metrics = {**output.metrics, "loss": output.loss.detach(), "_tokens": counted.sum()}
        if reference is not None:
            metrics["kl"] = metrics.pop("kl_k3")
        if old is None and scale is None:
            drift = (scores.own.detach() - self._recorded(rows)).abs()
            metrics |= {"logprob_drift": drift.mean(), "logprob_drift_max": drift.max()}
        return metrics

    @torch.no_grad()
    def check_usable(self) -> None:
        """Raise FloatingPointError, with what to do, where the weights are of no use: such weights are not saved.

        They must be finite, and so must the log-probs be that they give the first rows of the last rollout: weights of
        1e30 are finite and give nothing but NaN.
        """
        self.weights.check_finite()
        finite = True
        if self._probe is not None and self._probe.batch:
            scores = self._scores(self._probe)
            finite = all_finite(scores.logprob)
        if self.processes.any(not finite):
            raise FloatingPointError(f"the log-probs of the updated weights are not finite; {AFTER_DIVERGENCE}")

    # -- log-probs -----------------------------------------------------------------------------------------------------

    def _scores(self, rows: Rollout) -> TrainingScores:
        """Score some rows as they are trained."""
        return self.generator.training_scores(rows, distribution=self.loop.distribution, events=self.algorithm.events)

    def _recorded(self, rollout: Rollout) -> Tensor:
        """Return the log-probs of the trained distribution that sampling recorded."""
        return rollout.logprob_positive if self.loop.distribution == "conditional" else rollout.logprob_behaviour

    def _as_reference(self) -> AbstractContextManager[None]:
        """Inside, the generator is the reference: the one that follows the policy, else the start of the run."""
        return self.generator.reference() if self.moving is None else self.moving.in_place()

    def _reference(self, rollout: Rollout) -> Tensor:
        """Return the [B, T] log-probs of the tokens under the reference model."""
        with self._as_reference():
            return torch.cat([scores.own for scores in self._scored(rollout)] or [rollout.logprob_positive])

    @torch.no_grad()
    def _scored(self, rollout: Rollout) -> list[TrainingScores]:
        """Score each micro-batch of the rollout, in order, without gradients and without events, which no one reads."""
        return [
            self.generator.training_scores(rollout.rows(part), distribution=self.loop.distribution)
            for part in torch.arange(rollout.batch).split(self.loop.micro_batch)
            if len(part)
        ]

    def _old(self, rollout: Rollout) -> tuple[Tensor | None, dict[str, float]]:
        """Return [B, T] old log-probs for several updates from one rollout.

        And how far the training forward is from the recorded ones.

        None where one update needs no memory of them: its ratio is 1 whatever the rounding.
        """
        if self.loop.epochs * self.loop.minibatches == 1:
            return None, {}
        drift, recorded = self._drift(rollout)
        if drift and drift["logprob_drift"] <= DRIFT_TOLERANCE:
            return recorded, drift
        return torch.cat([scores.logprob for scores in self._scored(rollout)] or [recorded]), drift

    @torch.no_grad()
    def _drift(self, rollout: Rollout) -> tuple[dict[str, float], Tensor]:
        """Return how far the training forward is from the recorded log-probs of the first rows, and all of these.

        Nothing where sampling did not record what is trained.
        """
        probe, recorded = torch.arange(rollout.batch)[: self.loop.micro_batch], self._recorded(rollout)
        own: dict[str, float] = {}
        largest = 0.0
        if len(probe):
            found = self._scores(rollout.rows(probe))
            if found.scale is None:
                difference = (found.logprob - recorded[: len(probe)]).abs()
                own, largest = {"logprob_drift": float(difference.mean())}, float(difference.max())
        drift = mean(self.processes, own, len(probe))
        if drift:
            drift["logprob_drift_max"] = max(self.processes.gather(largest))
        return drift, recorded

    @torch.no_grad()
    def reference_entropy(self, rollout: Rollout) -> Tensor:
        """Return the reference model's entropy at the rollout's tokens, [B, T] nats (for STAGE's entropy reward)."""
        with self._as_reference():
            parts = [self.generator.token_entropy(rollout.rows(part))
                     for part in torch.arange(rollout.batch).split(self.loop.micro_batch) if len(part)]  # fmt: skip
        return torch.cat(parts or [rollout.logprob_positive])

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            **updater_state.whole_state(self.weights, self.optimizer),
            **({} if self.average is None else {"average": self.average.values}),
            **({} if self.moving is None else {"reference": self.moving.values}),
            "updates": self.updates,
            "skipped_in_a_row": self.guard.in_a_row,
            "skipped_in_all": self.guard.total,
        }

    def model_writer(self, *, copied: bool) -> ModelWriter:
        """Return what writes the generator, and its average, into a checkpoint's folder."""
        return model_writer(self.generator, self.average, copied=copied)

    def plan_shards(self, folder: Path, *, copied: bool) -> Shards | None:
        """Return what this process writes of its own into a checkpoint's folder. Every process calls it."""
        return updater_state.plan_shards(folder, self.weights, self.optimizer, self.processes, copied=copied)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        trained = {id(parameter) for parameter in self.generator.trainable_parameters()}
        names = [name for name, parameter in self.generator.policy.named_parameters() if id(parameter) in trained]
        updater_state.load(state, self.weights, self.optimizer, names)
        if self.average is not None:
            self.average.load(state["average"])
        if self.moving is not None:
            self.moving.load(state["reference"])
        self.updates = state["updates"]
        self.guard.in_a_row, self.guard.total = state["skipped_in_a_row"], state["skipped_in_all"]
        self.incomplete = False


#: Metrics that add up over the micro-batches of an update, because they carry the whole batch's denominator.
_SUMMED = ("loss", "policy_loss", "kl_loss")


def _means(history: list[dict[str, Tensor]], norms: list[Tensor]) -> dict[str, float]:
    """Return means over the tokens of all micro-batches, and over the gradient norms of the updates.

    Losses, which are shares of a whole, are summed and divided by the updates. A micro-batch whose images all failed
    has no tokens, and no say in a mean.
    """
    tokens = torch.stack([row["_tokens"].float().cpu() for row in history])
    result = {"grad_norm": float(torch.stack(norms).mean())}
    for name in sorted(set(history[0]) - {"_tokens"}):
        values = torch.stack([row[name].float().cpu() for row in history])
        if name in _SUMMED:
            result[name] = float(values.sum() / len(norms))
        elif name in ("ratio_max", "logprob_drift_max"):
            result[name] = float(values.max())
        else:
            result[name] = float((values * tokens).sum() / tokens.sum().clamp(min=1.0))
    return {**result, "clip_fraction": result["clip_fraction_low"] + result["clip_fraction_high"]}
