"""One training step: sample and score, spread the advantages over the tokens, update.

It does not know which algorithm it runs: that is a row of `algorithms.TABLE`. Nor does it know of checkpoints, logs and
callbacks: those are the run's, in `trainer.py`.

P prompts, G images a prompt, B = P * G rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rewards.base import Reward
from t2i_gcpo.algorithms import Algorithm, RunningMean, TokenAdvantages, token_advantages
from t2i_gcpo.data.sampler import PromptSampler
from t2i_gcpo.generators.base import ImageGenerator, seeded
from t2i_gcpo.records import Prompt, Rollout, Rows, Sampling, ScoredRollout
from t2i_gcpo.training.credit_inputs import credit_inputs
from t2i_gcpo.training.rollout import (
    Collected,
    collect,
    collect_informative,
    collect_once,
    diversity,
)
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils.clock import Clock
from t2i_gcpo.utils.processes import ALONE, Processes, mean


@dataclass(frozen=True)
class StepRecord:
    """Holds what callbacks see of a finished step. `metrics` may be added to; it is logged after them."""

    step: int
    """Steps done, this one included."""
    metrics: dict[str, float]
    scored: ScoredRollout | None = None
    """The rollout that was trained on; None where no group had reward spread."""
    targets: TokenAdvantages | None = None
    """The very tensors that the loss used."""


@dataclass(frozen=True)
class Outcome:
    """Says what a step did."""

    metrics: dict[str, float]
    images: int
    """Images that were sampled, discarded ones included."""
    images_scored: int
    """Images among them that have a score."""
    scored: ScoredRollout | None = None
    targets: TokenAdvantages | None = None


@dataclass(frozen=True)
class Step:
    """Holds what a step works with; calling it takes one."""

    generator: ImageGenerator
    reward: Reward
    algorithm: Algorithm
    updater: Updater
    prompts: PromptSampler
    sampling: Sampling
    """Its group size, contrast and statistics are those that the algorithm needs."""
    negative_prompt: str | None
    prompts_per_step: int
    rng: torch.Generator
    """Source of every random choice but the order of the prompts; in the same state on every process."""
    credit_mean: RunningMean
    """What token weights are divided by under `normalize_over: running`; each step takes its own into it."""
    processes: Processes = ALONE

    def __call__(self) -> Outcome:
        """Take a step. FloatingPointError after too many non-finite updates in a row."""
        clock, lr = Clock(self.generator.device), self.updater.learning_rate
        collected = self._collect(clock)
        metrics, scored, targets = collected.metrics(), collected.scored, None
        if scored is not None:
            targets = self._targets(scored, collected.rows, clock)
            metrics |= {**targets.metrics, **self._variety(scored.rollout)}
            if self.processes.any(bool(targets.mask.any())):  # else every image failed, and nothing is to be learnt
                metrics |= self.updater.update(scored.rollout, targets, clock, self.rng, rows=collected.rows)
        metrics |= {"lr": lr, **clock.report()}
        metrics["tokens_per_s"] = len(collected.scores) * math.prod(self.generator.grid) / metrics["time/step"]
        return Outcome(metrics, len(collected.scores), int(collected.scores.isfinite().sum()), scored, targets)

    def _variety(self, rollout: Rollout) -> dict[str, float]:
        """Return how much images of one prompt differ, and how undecided their tokens were."""
        own = {"diversity": diversity(rollout), "entropy": float(rollout.stats["entropy"].mean())}
        return mean(self.processes, own, rollout.batch)

    def _collect(self, clock: Clock) -> Collected:
        """Draw prompts, sample their images and score them."""

        def collect_prompts(prompts: Sequence[Prompt], first: int) -> ScoredRollout | None:
            if not prompts:
                seeded(self.sampling, self.rng)  # the generator of numbers goes on as on the other processes
                return None
            return collect(
                self.generator,
                self.reward,
                prompts,
                self.sampling,
                rng=self.rng,
                prompt_indices=range(first, first + len(prompts)),
                negative_prompts=self.negative_prompt,
                phase=clock.phase,
            )

        draw, wanted, algorithm = self.prompts.draw, self.prompts_per_step, self.algorithm
        if algorithm.dynamic_sampling:
            limit = algorithm.dynamic_sampling_limit
            return collect_informative(draw, collect_prompts, wanted, limit, self.processes)
        return collect_once(draw, collect_prompts, wanted, self.processes)

    def _targets(self, scored: ScoredRollout, rows: Rows | None, clock: Clock) -> TokenAdvantages:
        """Multiply the group advantages by the token weights."""
        reference_entropy = None
        if self.algorithm.entropy_reward_coef > 0:
            with clock.phase("forward"):
                reference_entropy = self.updater.reference_entropy(scored.rollout)
        with clock.phase("forward"):
            inputs = credit_inputs(
                self.generator, self.algorithm, scored.rollout, micro_batch=self.updater.loop.micro_batch
            )
        with clock.phase("credit"):
            return token_advantages(
                self.algorithm,
                scored.rollout,
                scored.scores,
                generator=self.rng,
                parts=scored.parts,
                part_weights=self.reward.weights,
                reference_entropy=reference_entropy,
                **inputs,
                processes=self.processes,
                rows=rows,
                running=self.credit_mean,
            )
