"""One training step: sample and score, spread the advantages over the tokens, update.

It does not know which algorithm it runs: that is a row of `algorithms.TABLE`. Nor does it know of checkpoints, logs and
callbacks: those are the run's, in `trainer.py`.

P prompts, G images a prompt, B = P * G rows, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rewards.base import Reward
from t2i_gcpo.algorithms import Algorithm, TokenAdvantages, token_advantages
from t2i_gcpo.data.sampler import PromptSampler
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Prompt, Sampling, ScoredRollout
from t2i_gcpo.training.rollout import Collected, code_vectors, collect, collect_informative, diversity
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils.clock import Clock


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
    """Source of every random choice but the order of the prompts."""

    def __call__(self) -> Outcome:
        """Take a step. FloatingPointError after too many non-finite updates in a row."""
        clock, lr = Clock(self.generator.device), self.updater.learning_rate
        collected = self._collect(clock)
        metrics, scored, targets = collected.metrics(), collected.scored, None
        if scored is not None:
            targets = self._targets(scored, clock)
            metrics |= {**targets.metrics, "diversity": diversity(scored.rollout)}
            metrics["entropy"] = float(scored.rollout.stats["entropy"].mean())
            if bool(targets.mask.any()):  # else every image failed, and there is nothing to learn from
                metrics |= self.updater.update(scored.rollout, targets, clock, self.rng)
        metrics |= {"lr": lr, **clock.report()}
        metrics["tokens_per_s"] = len(collected.scores) * math.prod(self.generator.grid) / metrics["time/step"]
        return Outcome(metrics, len(collected.scores), int(collected.scores.isfinite().sum()), scored, targets)

    def _collect(self, clock: Clock) -> Collected:
        """Draw prompts, sample their images and score them."""

        def collect_prompts(prompts: list[Prompt]) -> ScoredRollout:
            return collect(
                self.generator,
                self.reward,
                prompts,
                self.sampling,
                rng=self.rng,
                negative_prompts=self.negative_prompt,
                phase=clock.phase,
            )

        draw, wanted, algorithm = self.prompts.draw, self.prompts_per_step, self.algorithm
        if algorithm.dynamic_sampling:
            return collect_informative(draw, collect_prompts, wanted, algorithm.dynamic_sampling_limit)
        scored = collect_prompts(draw(wanted))
        return Collected(scored, scored.scores, scored.parts)

    def _targets(self, scored: ScoredRollout, clock: Clock) -> TokenAdvantages:
        """Multiply the group advantages by the token weights."""
        reference_entropy = None
        if self.algorithm.entropy_reward_coef > 0:
            with clock.phase("forward"):
                reference_entropy = self.updater.reference_entropy(scored.rollout)
        with clock.phase("credit"):
            return token_advantages(
                self.algorithm,
                scored.rollout,
                scored.scores,
                generator=self.rng,
                parts=scored.parts,
                part_weights=self.reward.weights,
                reference_entropy=reference_entropy,
                code_vectors=code_vectors(self.generator, self.algorithm),
            )
