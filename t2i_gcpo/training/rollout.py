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
from t2i_gcpo.generators.base import ImageGenerator, Negative
from t2i_gcpo.records import Prompt, Rollout, Rows, Sampling, ScoredRollout, cat_parts
from t2i_gcpo.utils.processes import ALONE, Processes, joined

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


def collect(
    generator: ImageGenerator,
    reward: Reward,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    rng: torch.Generator | None = None,
    prompt_indices: Sequence[int] | None = None,
    negative_prompts: Negative = None,
    phase: Phase = _untimed,
) -> ScoredRollout:
    """Sample `sampling.group_size` images for each prompt and score them.

    prompt_indices: place of each prompt among those that share the noise's seed (None: 0, 1, ...).
    """
    with phase("sample"):
        rollout = generator.sample(
            prompts, sampling, rng=rng, prompt_indices=prompt_indices, negative_prompts=negative_prompts
        )
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
    """Holds what a training step works on: a process's own rollout, and the scores of all processes."""

    scored: ScoredRollout | None
    """None where dynamic sampling found no group with reward spread, on any process."""
    scores: Tensor
    """[N] fp32, the scores of all images sampled, discarded ones included: N is the budget of a fair comparison."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Name -> [N]."""
    groups_discarded: int = 0
    rows: Rows | None = None
    """Which rows of the whole rollout `scored` has; None: all."""

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


@dataclass(frozen=True)
class Round:
    """Holds what all processes drew for n prompts."""

    scored: ScoredRollout | None
    """This process's own part; None where it had no prompt."""
    prompts: slice
    """Which of the n prompts are its own."""
    scores: Tensor
    """[n * G] fp32, of all processes, in the order of the prompts."""
    parts: dict[str, Tensor]
    """Name -> [n * G]."""


def shared_round(processes: Processes, own: slice, scored: ScoredRollout | None) -> Round:
    """Exchange the scores of a round."""
    if processes.count == 1 and scored is not None:
        return Round(scored, own, scored.scores, scored.parts)
    everything = joined(processes, [] if scored is None else [(scored.scores, scored.parts)])
    return Round(scored, own, torch.cat([scores for scores, _ in everything]), cat_parts(everything))


def collect_once(
    draw: Callable[[int], list[Prompt]],
    collect_prompts: Callable[[Sequence[Prompt], int], ScoredRollout | None],
    wanted: int,
    processes: Processes = ALONE,
) -> Collected:
    """Draw `wanted` prompts; each process samples and scores its part of them.

    `collect_prompts(prompts, first)` does so for some of them, of which `first` is the place of the first; for none it
    returns None.
    """
    drawn, own = draw(wanted), processes.part(wanted)
    done = shared_round(processes, own, collect_prompts(drawn[own], own.start))
    scored = done.scored
    if scored is None:
        raise ValueError(f"{wanted} prompts a step for {processes.count} processes; each needs at least one")
    group = scored.rollout.sampling.group_size
    rows = Rows(torch.arange(own.start * group, own.stop * group), wanted * group)
    return Collected(scored, done.scores, done.parts, rows=rows)


def collect_informative(
    draw: Callable[[int], list[Prompt]],
    collect_prompts: Callable[[Sequence[Prompt], int], ScoredRollout | None],
    wanted: int,
    limit: int,
    processes: Processes = ALONE,
) -> Collected:
    """Draw prompts until `wanted` groups have reward spread, in `limit` rounds at most.

    This is DAPO's dynamic sampling (2503.14476).

    Each round draws as many prompts as groups are still missing, for all processes together. A group stays on the
    process that sampled it, so they may end with unequal numbers. `draw(n)` gives the next n prompts; `collect_prompts`
    as in `collect_once`.
    """
    kept: list[ScoredRollout] = []
    places: list[int] = []  # of this process's groups among all that are kept
    everything: list[tuple[Tensor, dict[str, Tensor]]] = []
    missing, discarded, found = wanted, 0, 0
    for _ in range(limit):
        drawn, own = draw(missing), processes.part(missing)
        done = shared_round(processes, own, collect_prompts(drawn[own], own.start))
        everything.append((done.scores, done.parts))
        group = len(done.scores) // missing
        useful = informative_groups(done.scores, group).nonzero().flatten()
        discarded += missing - len(useful)
        mine = [(found + place, int(k)) for place, k in enumerate(useful) if own.start <= int(k) < own.stop]
        if done.scored is not None and len(useful):
            # A process without any of the useful groups has an empty share of the rollout.
            kept.append(done.scored.groups(torch.tensor([k - own.start for _, k in mine], dtype=torch.int64)))
        places += [place for place, _ in mine]
        found += len(useful)
        missing -= len(useful)
        if not missing:
            break
    scores = torch.cat([round_scores for round_scores, _ in everything])
    rows = Rows(torch.tensor([p * group + g for p in places for g in range(group)], dtype=torch.int64), found * group)
    scored = ScoredRollout.cat(kept) if found else None
    return Collected(scored, scores, cat_parts(everything), discarded, rows)
