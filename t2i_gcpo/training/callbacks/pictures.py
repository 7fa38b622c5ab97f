"""Draw samples and credit heatmaps of fixed prompts every few steps, and the heatmap of a group that was trained on.

The noise comes from a seed of its own, so that the pictures never change the training, and pictures of two steps differ
by the weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from rewards.base import Reward
from t2i_gcpo import heatmap
from t2i_gcpo.algorithms import ALL_STATS, token_advantages
from t2i_gcpo.generators.base import Negative, in_chunks
from t2i_gcpo.records import Prompt, Rollout, Sampling, ScoredRollout
from t2i_gcpo.training.callbacks import hard_prompts
from t2i_gcpo.training.credit_inputs import credit_inputs
from t2i_gcpo.training.options import PicturesConfig
from t2i_gcpo.training.rollout import score
from t2i_gcpo.utils import pictures

if TYPE_CHECKING:
    from t2i_gcpo.training.trainer import StepRecord, Trainer


class Pictures:
    """Draws samples and heatmaps of the same prompts and noise, and the heatmap of a group that was trained on.

    `draw` may be called before the first step for the picture that the later ones are compared with. prompts: the
    candidates, of which `shown` are drawn (None: all), those that the model sometimes fails when the first picture is
    drawn (`hard_prompts`); the run folder keeps which, and a resumed run draws the same.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        reward: Reward,
        *,
        sampling: Sampling,
        every: int,
        group: int,
        seed: int,
        shown: int | None = None,
        negative_prompt: Negative = None,
    ) -> None:
        PicturesConfig(every=every, group=group)
        self.prompts, self.reward = list(prompts), reward
        self.shown = len(self.prompts) if shown is None else min(shown, len(self.prompts))
        self.chosen: list[int] | None = list(range(self.shown)) if self.shown == len(self.prompts) else None
        self.sampling = replace(sampling, group_size=max(group, 2), seed=seed, contrast=True)
        self.every, self.negative_prompt = every, negative_prompt

    def __call__(self, trainer: Trainer, record: StepRecord) -> None:
        if not self.every or (record.step % self.every and not trainer.finished):
            return
        if not trainer.processes.is_main:
            return
        self.draw(trainer, record.step)
        if record.scored is not None and record.targets is not None and record.scored.rollout.batch:
            # The tensor itself, not another computation of it.
            size = record.scored.rollout.sampling.group_size
            group = first_informative(record.targets.sequence_advantages, size)
            scored = record.scored.groups(torch.tensor([group]))
            heatmap.save(
                trainer.output_dir / "heatmaps",
                f"step_{record.step:06d}_trained",
                scored,
                record.targets.rows(torch.arange(group * size, (group + 1) * size)),
                algorithm=trainer.algorithm,
                logprob_reference=reference_logprobs(trainer, scored.rollout),
            )

    def draw(self, trainer: Trainer, step: int) -> None:
        """Draw samples and heatmap of the fixed prompts under the present weights, on the main process alone."""
        if not trainer.processes.is_main:
            return
        group = self.sampling.group_size
        algorithm = replace(trainer.algorithm, group_size=group, entropy_reward_coef=0.0, normalize_parts=False)
        scored = self._collect(trainer, self.choose(trainer), replace(self.sampling, stats=ALL_STATS))
        rng = torch.Generator().manual_seed(self.sampling.seed)
        inputs = credit_inputs(trainer.generator, algorithm, scored.rollout)
        targets = token_advantages(
            algorithm, scored.rollout, scored.scores, generator=rng, parts=scored.parts, **inputs
        )
        grid = pictures.sample_grid(
            scored.images,
            [prompt.text for prompt in scored.rollout.row_prompts],
            columns=group,
            scores=scored.scores.tolist(),
        )
        if trainer.tracker is not None:
            trainer.tracker.picture(step, "samples", grid)
        heatmap.save(
            trainer.output_dir / "heatmaps",
            f"step_{step:06d}",
            scored,
            targets,
            algorithm=algorithm,
            logprob_reference=reference_logprobs(trainer, scored.rollout),
        )

    def choose(self, trainer: Trainer) -> list[int]:
        """Return which of the prompts are drawn; the first call samples all of them, unless the run has chosen."""
        if self.chosen is None:
            self.chosen = hard_prompts.load(trainer.output_dir, self.prompts, self.shown)
        if self.chosen is None:
            scores = self._collect(trainer, list(range(len(self.prompts))), self.sampling).scores
            self.chosen = hard_prompts.hardest(scores, self.sampling.group_size, self.shown)
            hard_prompts.save(trainer.output_dir, self.prompts, scores, self.chosen, seed=self.sampling.seed)
        return self.chosen

    def _collect(self, trainer: Trainer, chosen: list[int], sampling: Sampling) -> ScoredRollout:
        """Sample and score some of the prompts; each one's noise is that of its place among all."""
        rollout = trainer.generator.sample(
            [self.prompts[place] for place in chosen],
            sampling,
            prompt_indices=chosen,
            negative_prompts=self.negative_prompt,
        )
        return score(trainer.generator, self.reward, rollout)


@torch.no_grad()
def reference_logprobs(trainer: Trainer, rollout: Rollout) -> Tensor | None:
    """Return the raw log-probs of the rollout's tokens in the reference model, under their prompts: [B, T] nats.

    None where the run keeps no reference.
    """
    if not trainer.has_reference:
        return None
    with trainer.generator.reference():
        return in_chunks(
            lambda index: trainer.generator.token_logprobs(rollout.rows(index)),
            torch.arange(rollout.batch),
            trainer.loop.micro_batch,
        )


def first_informative(advantages: Tensor, group_size: int) -> int:
    """Return the first group whose advantages [B] are not all 0, or the first of all where there is none."""
    spread = rearrange(advantages, "(p g) -> p g", g=group_size).ne(0).any(dim=1)
    return int(spread.int().argmax())
