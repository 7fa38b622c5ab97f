"""One rollout's optimiser updates: passes, mini-batches, accumulated micro-batches, the KL's reference, the guard.

B rows, b rows of a micro-batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from t2i_gcpo.algorithms import Algorithm, TokenAdvantages, loss, loss_denominator
from t2i_gcpo.clock import Clock
from t2i_gcpo.generators.base import Distribution, ImageGenerator
from t2i_gcpo.optim import NonFiniteGuard, adamw, all_finite, clip_gradients, scheduler
from t2i_gcpo.precision import MasterWeights
from t2i_gcpo.records import Rollout

#: Mean |re-scored - recorded log-prob|, nats, up to which the recorded ones serve as old log-probs. fp32 re-scores to 1e-5,
#: bf16 to 1e-2.
DRIFT_TOLERANCE = 1e-4


class Updater:
    """Holds the optimiser, and updates the generator's policy from a rollout and its token advantages."""

    def __init__(
        self,
        generator: ImageGenerator,
        algorithm: Algorithm,
        *,
        distribution: Distribution,
        steps: int,
        epochs: int,
        minibatches: int,
        micro_batch: int,
        guard: NonFiniteGuard,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        schedule: str,
        warmup_steps: int,
        min_ratio: float,
        max_grad_norm: float,
    ) -> None:
        self.generator, self.algorithm, self.distribution = generator, algorithm, distribution
        self.epochs, self.minibatches, self.micro_batch = epochs, minibatches, micro_batch
        self.guard, self.max_grad_norm = guard, max_grad_norm
        self.weights = MasterWeights(generator.trainable_parameters())
        self.optimizer = adamw(self.weights, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
        self.scheduler = scheduler(
            self.optimizer, schedule=schedule, steps=steps, warmup_steps=warmup_steps, min_ratio=min_ratio
        )

    @property
    def learning_rate(self) -> float:
        """That of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    # -- log-probs -----------------------------------------------------------------------------------------------------

    def _recorded(self, rollout: Rollout) -> Tensor:
        """The log-probs of the trained distribution that sampling kept."""
        return rollout.logprob_positive if self.distribution == "conditional" else rollout.logprob_behaviour

    @torch.no_grad()
    def _rescored(self, rollout: Rollout, index: Tensor) -> Tensor:
        parts = [self.generator.token_logprobs(rollout.rows(part), distribution=self.distribution)
                 for part in index.split(self.micro_batch)]  # fmt: skip
        return torch.cat(parts)

    def _old(self, rollout: Rollout, clock: Clock) -> Tensor | None:
        """[B, T] old log-probs for several updates from one rollout; None where one update needs no memory of them."""
        if self.epochs * self.minibatches == 1:
            return None
        everything = torch.arange(rollout.batch)
        probe = everything[: self.micro_batch]
        with clock.phase("forward"):
            recorded = self._recorded(rollout)
            drift = (self._rescored(rollout, probe) - recorded[: len(probe)]).abs().mean()
            return recorded if float(drift) <= DRIFT_TOLERANCE else self._rescored(rollout, everything)

    @torch.no_grad()
    def reference_entropy(self, rollout: Rollout) -> Tensor:
        """[B, T] nats: the reference model's entropy at the rollout's tokens (STAGE's entropy reward)."""
        with self.generator.reference():
            parts = [self.generator.token_entropy(rollout.rows(part))
                     for part in torch.arange(rollout.batch).split(self.micro_batch)]  # fmt: skip
        return torch.cat(parts)

    # -- the update ----------------------------------------------------------------------------------------------------

    def _minibatches(self, batch: int, rng: torch.Generator) -> Iterator[Tensor]:
        """Row indices of each optimiser step. One step takes the rows in order; several deal them out anew each pass."""
        for _ in range(self.epochs):
            order = torch.arange(batch) if self.minibatches == 1 else torch.randperm(batch, generator=rng)
            yield from order.tensor_split(min(self.minibatches, batch))

    def update(self, rollout: Rollout, targets: TokenAdvantages, clock: Clock, rng: torch.Generator) -> dict[str, float]:
        """All optimiser steps of one rollout; returns their mean metrics. RuntimeError from the guard."""
        old = self._old(rollout, clock)
        history: list[dict[str, Tensor]] = []
        skipped = 0
        for index in self._minibatches(rollout.batch, rng):
            batch_targets = targets.rows(index)
            denominator = loss_denominator(self.algorithm, batch_targets)
            total = torch.zeros(())
            self.weights.clear_gradients()
            for part in index.split(self.micro_batch):
                metrics, value = self._accumulate(rollout, targets, part, old, denominator, clock)
                total = total + value.cpu()
                history.append(metrics)
            with clock.phase("backward"):
                gradients = self.weights.collect()
                norm = clip_gradients(gradients, self.max_grad_norm)
                history[-1]["grad_norm"] = norm
                if self.guard.ok(total, norm):
                    self.optimizer.step()
                    self.weights.publish()
                else:
                    skipped += 1
        self.scheduler.step()
        result = _means(history)
        result["clip_fraction"] = result["clip_fraction_low"] + result["clip_fraction_high"]
        result["updates/skipped"] = float(skipped)
        return result

    def _accumulate(
        self,
        rollout: Rollout,
        targets: TokenAdvantages,
        part: Tensor,
        old: Tensor | None,
        denominator: Tensor,
        clock: Clock,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Forward and backward of one micro-batch."""
        rows = rollout.rows(part)
        part_targets = targets.rows(part)
        with clock.phase("forward"):
            reference = self._reference(rows)
            logprob = self.generator.token_logprobs(rows, distribution=self.distribution)
            fresh = logprob.detach()
            output = loss(
                self.algorithm,
                logprob,
                fresh if old is None else old[part.to(old.device)],
                part_targets,
                logprob_reference=reference,
                denominator=denominator,
            )
        with clock.phase("backward"):
            if all_finite(output.loss.detach()):
                output.loss.backward()
        metrics = dict(output.metrics)
        if old is None:
            metrics["logprob_drift"] = (fresh - self._recorded(rows)).abs().mean()
        if reference is not None:
            metrics["kl"] = metrics.pop("kl_k3")
        count = part_targets.mask.sum()
        return {**metrics, "loss": output.loss.detach() * 1.0, "_tokens": count}, output.loss.detach()

    @torch.no_grad()
    def _reference(self, rows: Rollout) -> Tensor:
        """[b, T] log-probs of the reference model, for the loss or, where the row has no KL term, for the log."""
        with self.generator.reference():
            return self.generator.token_logprobs(rows, distribution=self.distribution)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.weights.weights(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "skipped_in_a_row": self.guard.in_a_row,
            "skipped_in_all": self.guard.total,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights.load_weights(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.guard.in_a_row, self.guard.total = state["skipped_in_a_row"], state["skipped_in_all"]


#: Metrics that add up over the micro-batches of an update, because they carry the whole batch's denominator.
_SUMMED = ("loss", "policy_loss", "kl_loss")


def _means(history: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means over the tokens of all micro-batches; losses, which are shares of a whole, are summed and divided by the updates."""
    tokens = torch.stack([row["_tokens"].float().cpu() for row in history])
    updates = sum("grad_norm" in row for row in history)
    result = {}
    for name in sorted({name for row in history for name in row} - {"_tokens"}):
        have = torch.tensor([name in row for row in history])
        values = torch.stack([row[name].float().cpu() for row in history if name in row])
        if name in _SUMMED:
            result[name] = float(values.sum() / updates)
        elif name == "ratio_max":
            result[name] = float(values.max())
        else:
            share = tokens[have].clamp(min=1.0) if name != "grad_norm" else torch.ones_like(values)
            result[name] = float((values * share).sum() / share.sum())
    return result
