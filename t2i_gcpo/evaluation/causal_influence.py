"""Measure how much each token of an image matters for its reward, by drawing it anew and finishing the image again.

The influence of token t is the standard deviation, over the tokens that could have been drawn there, of the expected
reward of the images that begin so. K tokens are drawn in its place, and each is finished M times with the same noise
for all K (common random numbers): Gumbel noise, under which images stay alike as far as their distributions are, so
that what they share cancels. Nothing is assumed of the model or the reward. The generator must draw its tokens in a
fixed order.

N images, T tokens, K alternatives, M completions, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor
from tqdm import tqdm

from rewards.base import Reward, check, name_of
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Prompt, Rollout

#: With fewer, what the alternatives differ by cannot be told from what the completions differ by, in either half.
LEAST_ALTERNATIVES, LEAST_COMPLETIONS = 2, 4


@dataclass(frozen=True)
class Plan:
    """Says how much is drawn. ValueError for too little."""

    places: int = 0
    """Tokens of an image that are measured, drawn at random for each image; 0: all."""
    alternatives: int = 8
    """K, tokens drawn in the place of each."""
    completions: int = 8
    """M, images finished of each of them; even."""

    def __post_init__(self) -> None:
        if self.places < 0:
            raise ValueError(f"places is {self.places}; it must be at least 0 (0: all tokens)")
        if self.alternatives < LEAST_ALTERNATIVES:
            raise ValueError(f"alternatives is {self.alternatives}; it must be at least {LEAST_ALTERNATIVES}")
        if self.completions < LEAST_COMPLETIONS or self.completions % 2:
            raise ValueError(
                f"completions is {self.completions}; it must be even and at least {LEAST_COMPLETIONS}, as each half "
                "of them gives an estimate of its own"
            )


@dataclass(frozen=True)
class Influence:
    """Holds what was measured of a rollout's tokens."""

    variance: Tensor
    """[N, T] fp32: the influence squared, estimated without bias, so that it can be below 0; NaN: not measured."""
    halves: Tensor
    """[2, N, T] fp32: the same from either half of the completions."""
    drawn: int = 0
    """Images that were finished for it."""

    @property
    def value(self) -> Tensor:
        """Return the influence [N, T] fp32 in units of the reward: the root of the variance, 0 where that is below."""
        return self.variance.clamp(min=0).sqrt()

    @staticmethod
    def cat(parts: Sequence[Influence]) -> Influence:
        """Join what was measured of several rollouts."""
        return Influence(
            torch.cat([part.variance for part in parts]),
            torch.cat([part.halves for part in parts], dim=1),
            sum(part.drawn for part in parts),
        )


def between_variance(rewards: Tensor) -> Tensor:
    """Estimate the variance of the alternatives' expected reward, from rewards [*, K, M]: [*], without bias.

    >>> between_variance(torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]]))
    tensor(0.0417)

    The two-way layout without replication: `(MS_alternatives - MS_residual) / M`. Column m has the same noise for all
    alternatives, so what it adds to each of them cancels; what is left of chance is the residual, which the mean of M
    holds 1 / M of. It can be below 0. NaN where a reward is NaN.
    """
    count = rewards.shape[-1]
    row, column = rewards.mean(dim=-1, keepdim=True), rewards.mean(dim=-2, keepdim=True)
    residual = rewards - row - column + rewards.mean(dim=(-2, -1), keepdim=True)
    degrees = (rewards.shape[-2] - 1) * (count - 1)
    return row.squeeze(-1).var(dim=-1) - residual.square().sum(dim=(-2, -1)) / degrees / count


@torch.no_grad()
def measure(
    generator: ImageGenerator,
    reward: Reward,
    rollout: Rollout,
    plan: Plan = Plan(),
    *,
    rng: torch.Generator | None = None,
    progress: bool = False,
) -> Influence:
    """Measure the tokens of a rollout of N images that the generator drew, with the weights that it has now.

    rng: what the places, the alternatives and the completions are drawn from. A token in whose place only itself was
    drawn has influence 0 and costs nothing. ValueError: a generator that cannot draw a token anew.
    """
    images, length = rollout.tokens.shape
    variance = torch.full((images, length), torch.nan)
    halves = torch.full((2, images, length), torch.nan)
    tokens = rollout.tokens.cpu()
    others = generator.redraw(rollout, torch.rand(images, length, plan.alternatives, generator=rng)).cpu()
    drawn = 0
    for row in tqdm(range(images), desc="images", disable=None if progress else True, leave=False):
        chosen = torch.arange(length)
        if plan.places:
            chosen = torch.randperm(length, generator=rng)[: plan.places].sort().values
        keys = torch.randint(2**62, (plan.completions,), generator=rng)
        variance[row, chosen], halves[:, row, chosen] = 0.0, 0.0
        open_places = chosen[(others[row, chosen] != tokens[row, chosen, None]).any(dim=-1)]
        if not len(open_places):
            continue
        place, which, alternative = _distinct(others[row, open_places])
        at = open_places[place].unsqueeze(-1)
        begun = tokens[row].expand(len(at), -1).masked_fill(torch.arange(length) > at, -1)
        begun = begun.scatter(1, at, others[row, at.squeeze(-1), which].unsqueeze(-1))
        finished = generator.sample_on(
            rollout,
            torch.full((len(at) * plan.completions,), row),
            repeat(begun, "r t -> (r m) t", m=plan.completions),
            repeat(keys, "m -> (r m)", r=len(at)),
        )
        drawn += len(finished)
        scores = _score(generator, reward, finished, rollout.row_prompts[row])
        table = rearrange(scores, "(r m) -> r m", m=plan.completions)[alternative]  # [places, K, M]
        half = plan.completions // 2
        variance[row, open_places] = between_variance(table)
        halves[0, row, open_places] = between_variance(table[..., :half])
        halves[1, row, open_places] = between_variance(table[..., half:])
    return Influence(variance, halves, drawn)


def _distinct(others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """List the distinct tokens of each place, from the alternatives [S, K] of S places.

    Returns the place [R] of each, the number [R] of an alternative that is it, and for each alternative its row
    [S, K]: what is drawn twice is finished once.
    """
    first = (others.unsqueeze(-1) == others.unsqueeze(-2)).int().argmax(dim=-1)  # the first that is the same token
    is_first = first == torch.arange(others.shape[1])
    place, which = is_first.nonzero(as_tuple=True)
    row = torch.zeros_like(first)
    row[place, which] = torch.arange(len(place))
    return place, which, row.gather(-1, first)


def _score(generator: ImageGenerator, reward: Reward, tokens: Tensor, prompt: Prompt) -> Tensor:
    """Decode and score images [R, T] of one prompt: [R] fp32."""
    distinct, place = tokens.unique(dim=0, return_inverse=True)
    images = generator.decode(distinct)
    texts, metadata = [prompt.text] * len(images), [prompt.metadata] * len(images)
    output = check(reward(images, texts, metadata), len(images), name_of(reward), texts, failure="mark")
    return output.scores.cpu()[place.cpu()]
