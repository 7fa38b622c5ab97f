"""What a run is made of, settled and checked before anything is sampled: its options, prompts and reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.base import Reward
from t2i_gcpo.algorithms import Algorithm, resolve
from t2i_gcpo.data.prompts import read
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.generators.base import ImageGenerator, as_prompts
from t2i_gcpo.records import Prompt, Sampling, SamplingOptions
from t2i_gcpo.training.credit_inputs import check_prompts
from t2i_gcpo.training.options import CheckpointPlan, LoopOptions, SamplingConfig, Schedule, with_options


@dataclass(frozen=True)
class RunSettings:
    """Holds a run's groups of options, each checked, and alone as with the others."""

    algorithm: Algorithm
    loop: LoopOptions
    sampling: Sampling
    """What every rollout is drawn by, but for its seed: with the group, contrast and statistics of the algorithm."""
    optim: Schedule
    checkpoint: CheckpointPlan
    negative_prompt: str | None
    """The negative prompt of every rollout; None is that of each prompt, or the generator's."""

    @classmethod
    def settle(
        cls,
        algorithm: Algorithm | str,
        *,
        loop: LoopOptions,
        sampling: SamplingOptions,
        optim: Schedule,
        checkpoint: CheckpointPlan,
        options: Mapping[str, Any],
    ) -> RunSettings:
        """Settle the groups and the single `options` that change them. ValueError for what is not allowed."""
        groups: dict[str, Any] = {
            "algorithm": resolve(algorithm) if isinstance(algorithm, str) else algorithm,
            "loop": loop,
            "sampling": SamplingConfig.of(sampling),
            "optim": optim,
            "checkpoint": checkpoint,
        }
        groups = with_options(groups, options)
        chosen: Algorithm = groups["algorithm"]
        groups["loop"].check_rollout(chosen)
        asked = sampling.stats if isinstance(sampling, Sampling) else ()
        drawn_by = Sampling.of(
            groups["sampling"],
            group_size=chosen.group_size,
            contrast=chosen.needs_contrast,
            stats=tuple(sorted({*asked, *chosen.needed_stats, "entropy"})),
        )
        negative_prompt = groups["sampling"].negative_prompt
        return cls(chosen, groups["loop"], drawn_by, groups["optim"], groups["checkpoint"], negative_prompt)

    def read_prompts(
        self, prompts: str | Path | Sequence[Prompt | str], generator: ImageGenerator, reward: Reward
    ) -> Sequence[Prompt]:
        """Return the prompts.

        ValueError where the generator, the reward or the algorithm can do nothing with them, or the generator lacks
        what the algorithm trains.
        """
        rows = read(prompts) if isinstance(prompts, (str, Path)) else as_prompts(prompts)
        generator.check_prompts(rows)
        if self.algorithm.events is not None:
            generator.check_events()
        check_scorable(rows, reward)
        check_prompts(self.algorithm, rows)
        return rows

    def keep_reference(self, generator: ImageGenerator) -> bool:
        """Have the generator keep its weights as the reference, where the run reads one; return whether it does.

        A copy of the weights that nothing needs is not made, and one that is seldom read waits on the host. A reference
        that moves is the updater's. ValueError where one is to move that nothing looks at.
        """
        always = self.loop.kl_always(self.algorithm) or self.algorithm.entropy_reward_coef > 0
        looked_at = always or self.loop.kl_every > 0
        self.optim.check_reference(looked_at=looked_at)
        if not (generator.has_lora or (looked_at and not self.optim.reference_every)):
            return False
        generator.keep_reference()
        if not always:
            generator.park_reference()
        return True
