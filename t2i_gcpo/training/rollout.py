"""Prompts to scored images: sample, decode, score; and DAPO's dynamic sampling on top.

P prompts, G images a prompt, B = P * G rows, N images of a step, discarded ones included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from rewards.base import AsyncReward, Pending, Reward, RewardOutput, check, join, name_of
from t2i_gcpo.advantages import informative_groups
from t2i_gcpo.algorithms import Algorithm
from t2i_gcpo.generators.base import ImageGenerator, Negative
from t2i_gcpo.records import Prompt, Rollout, Sampling, ScoredRollout, cat_parts

Phase = Callable[[str], AbstractContextManager[None]]


def _untimed(name: str) -> AbstractContextManager[None]:
    return nullcontext()


def score(generator: ImageGenerator, reward: Reward, rollout: Rollout, *, phase: Phase = _untimed) -> ScoredRollout:
    """Decode a rollout's tokens and score the images. ValueError where the reward gives the wrong number of scores.

    A reward that scores elsewhere gets the images as they are decoded, and works while the next ones are.
    """
    owners = rollout.row_prompts
    texts, metadata = [prompt.text for prompt in owners], [prompt.metadata for prompt in owners]
    name = name_of(reward)
    if isinstance(reward, AsyncReward) and reward.submit_batch is not None:
        decoded: list[Tensor] = []
        pending: list[Pending] = []
        for start in range(0, len(owners), reward.submit_batch):
            rows = slice(start, start + reward.submit_batch)
            with phase("decode"):
                decoded.append(generator.decode(rollout.tokens[rows]).cpu())
            with phase("score"):
                pending.append(reward.submit(decoded[-1], texts[rows], metadata[rows]))
        images = torch.cat(decoded)
        with phase("score"):
            output = join([_checked_type(scores.result(), name) for scores in pending])
    else:
        with phase("decode"):
            images = generator.decode(rollout.tokens).cpu()
        with phase("score"):
            output = _checked_type(reward(images, texts, metadata), name)
    # What a failed score means is the reward's own option; here a NaN that it let through stays one.
    output = check(output, len(texts), name, texts, failure="mark")
    parts = {part: values.detach().float().cpu() for part, values in output.parts.items()}
    return ScoredRollout(rollout, images, output.scores.cpu(), parts)


def _checked_type(output: Any, name: str) -> RewardOutput:
    if not isinstance(output, RewardOutput):
        raise ValueError(f"reward {name!r} returned {type(output).__name__}; a reward's class returns a RewardOutput")
    return output


def code_vectors(generator: ImageGenerator, algorithm: Algorithm) -> Tensor | None:
    """Return the vectors [V, D] of the codebook's tokens that the algorithm's weights are made of, if they are."""
    return None if algorithm.needed_vectors is None else generator.code_vectors(algorithm.needed_vectors)


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


def diversity(rollout: Rollout) -> float:
    """Compute the share of tokens in which two images of one prompt differ.

    It is the mean over pairs of siblings, tokens and prompts, 0 to 1.
    """
    siblings = rearrange(rollout.tokens, "(p g) t -> p g t", g=rollout.sampling.group_size)
    prompts, group, tokens = siblings.shape
    differ = rearrange(siblings, "p g t -> p g 1 t") != rearrange(siblings, "p g t -> p 1 g t")
    pairs = prompts * group * (group - 1) * tokens
    return float(differ.sum()) / pairs if pairs else float("nan")


@dataclass(frozen=True)
class Collected:
    """Holds what a training step works on."""

    scored: ScoredRollout | None
    """None where dynamic sampling found no group with reward spread."""
    scores: Tensor
    """[N] fp32, the scores of all images sampled, discarded ones included: N is the budget of a fair comparison."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Name -> [N]."""
    groups_discarded: int = 0

    def metrics(self) -> dict[str, float]:
        """Mean and spread of the rewards over the images that have one, and the mean of each part.

        Discarded groups count: without them the mean would say nothing about the generator, as its best and worst
        prompts are discarded first.
        """
        metrics = {"groups/discarded": float(self.groups_discarded)}
        metrics["reward/failed"] = float((~self.scores.isfinite()).sum())
        for name, values in {"mean": self.scores, **{f"part/{part}": v for part, v in self.parts.items()}}.items():
            metrics[f"reward/{name}"] = float(values[values.isfinite()].double().mean())  # NaN of no images
        scores = self.scores[self.scores.isfinite()].double()  # the squares of 1e19 are beyond float32
        metrics["reward/std"] = float(scores.std()) if len(scores) > 1 else 0.0
        return metrics


def collect_informative(
    draw: Callable[[int], list[Prompt]],
    collect_prompts: Callable[[list[Prompt]], ScoredRollout],
    wanted: int,
    limit: int,
) -> Collected:
    """Draw prompts until `wanted` groups have reward spread, in `limit` rounds at most.

    This is DAPO's dynamic sampling (2503.14476).

    Each round draws as many prompts as groups are still missing. `draw(n)` gives the next n prompts.
    """
    kept: list[ScoredRollout] = []
    everything: list[tuple[Tensor, dict[str, Tensor]]] = []
    missing, discarded = wanted, 0
    for _ in range(limit):
        scored = collect_prompts(draw(missing))
        everything.append((scored.scores, scored.parts))
        useful = informative_groups(scored.scores, scored.rollout.sampling.group_size).nonzero().flatten()
        discarded += missing - len(useful)
        if len(useful):
            kept.append(scored.groups(useful))
        missing -= len(useful)
        if not missing:
            break
    scores = torch.cat([round_scores for round_scores, _ in everything])
    return Collected(ScoredRollout.cat(kept) if kept else None, scores, cat_parts(everything), discarded)
