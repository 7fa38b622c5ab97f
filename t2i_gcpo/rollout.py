"""Prompts to scored images: sample, decode, score; and DAPO's dynamic sampling on top.

P prompts, G images a prompt, B = P * G rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from rewards.base import Reward, check
from t2i_gcpo.advantages import informative_groups
from t2i_gcpo.generators.base import ImageGenerator, Negative
from t2i_gcpo.records import Prompt, Rollout, Sampling, ScoredRollout

Phase = Callable[[str], AbstractContextManager[None]]


def _untimed(name: str) -> AbstractContextManager[None]:
    return nullcontext()


def score(generator: ImageGenerator, reward: Reward, rollout: Rollout, *, phase: Phase = _untimed) -> ScoredRollout:
    """Decode a rollout's tokens and score the images. ValueError where the reward gives the wrong number of scores."""
    with phase("decode"):
        images = generator.decode(rollout.tokens).cpu()
    with phase("score"):
        group = rollout.sampling.group_size
        owners = [prompt for prompt in rollout.prompts for _ in range(group)]
        texts = [prompt.text for prompt in owners]
        output = reward(images, texts, [prompt.metadata for prompt in owners])
        name = getattr(reward, "name", type(reward).__name__)
        # What a failed score means is the reward's own option; here a NaN that it let through stays one.
        output = check(output, len(texts), name, texts, failure="mark")
    return ScoredRollout(rollout, images, output.scores, dict(output.parts))


def collect(
    generator: ImageGenerator,
    reward: Reward,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    rng: torch.Generator | None = None,
    negative_prompts: Negative = None,
    phase: Phase = _untimed,
) -> ScoredRollout:
    """Sample `sampling.group_size` images for each prompt and score them."""
    with phase("sample"):
        rollout = generator.sample(prompts, sampling, rng=rng, negative_prompts=negative_prompts)
    return score(generator, reward, rollout, phase=phase)


@dataclass(frozen=True)
class Collected:
    """What a training step works on."""

    scored: ScoredRollout | None
    """None where dynamic sampling found no group with reward spread."""
    images_sampled: int
    """Discarded images included: the budget of a fair comparison."""
    groups_discarded: int


def collect_informative(
    draw: Callable[[int], list[Prompt]], collect_prompts: Callable[[list[Prompt]], ScoredRollout], wanted: int, limit: int
) -> Collected:
    """DAPO's dynamic sampling (2503.14476): draw prompts until `wanted` groups have reward spread, in `limit` rounds at most.

    Each round draws as many prompts as groups are still missing. `draw(n)` gives the next n prompts.
    """
    kept: list[ScoredRollout] = []
    missing, sampled, discarded = wanted, 0, 0
    for _ in range(limit):
        scored = collect_prompts(draw(missing))
        sampled += scored.rollout.batch
        useful = informative_groups(scored.scores, scored.rollout.sampling.group_size).nonzero().flatten()
        discarded += missing - len(useful)
        if len(useful):
            kept.append(scored.groups(useful))
        missing -= len(useful)
        if not missing:
            break
    return Collected(ScoredRollout.cat(kept) if kept else None, sampled, discarded)
