"""Prompt, Sampling, Rollout, ScoredRollout: what travels from the sampler to the loss.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, T = rows * columns tokens of the image grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from t2i_gcpo.utils.checks import at_least, declared

Item = TypeVar("Item")

#: Which vectors of the codebook's tokens: those that the image decoder reads, or those that the policy reads.
Vectors = Literal["codebook", "inputs"]
#: What can be taken of each token's logits at sampling time: the entropy of the raw conditional distribution and of the
#: one that is sampled; the divergences of the conditional from the contrast's; `contrast_variance`; and the surprisal
#: of the token's event (`Events`), which is what of the drawn token the prompt has to do with.
STATS = ("entropy", "behaviour_entropy", "exact_kl", "js", "variance", "event")

#: How many tokens stay masked after each sampling step; `generators.tokens.unmasking` has the curves.
UnmaskingSchedule = Literal["cosine", "linear", "square", "cubic", "sqrt"]
#: How the positions that a step commits are chosen.
UnmaskingOrder = Literal["confidence", "random"]
#: Whose contrast makes the events of a code: its own, or in two controls that of a random other.
EventCodes = Literal["own", "shuffled", "matched"]


@dataclass(frozen=True)
class Prompt:
    """One prompt and what its scorers need to know about it (GenEval's row, a target text, ...)."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = field(default="", compare=False, repr=False)
    """File and line that it was read from, for error messages; "" where it is from no file."""

    @property
    def task(self) -> str:
        """Return GenEval's task name, or "all" where the prompt has none."""
        return str(self.metadata.get("tag") or "all")


@dataclass(frozen=True)
class Unmasking:
    """The order in which a masked generator fixes its tokens; see `unmasking.py`.

    Autoregressive generators do not read it.
    """

    steps: int = 12
    """N, sampling steps, at most T."""
    schedule: UnmaskingSchedule = "cosine"
    """How many tokens stay masked after each step."""
    order: UnmaskingOrder = "confidence"
    """Which tokens a step fixes: those of the highest "confidence", or "random" ones, with which the tokens' log-probs
    are exact."""
    temperature: float = 2.0
    """Temperature of the Gumbel noise on the confidence at the first step; falls to 0 in equal parts."""

    def __post_init__(self) -> None:
        declared(self, "unmasking.")
        at_least(1, "unmasking.", steps=self.steps)
        at_least(0, "unmasking.", temperature=self.temperature)


@dataclass(frozen=True)
class SamplingOptions:
    """Says how tokens are drawn. The behaviour distribution is `softmax(truncate(mix(c, u) / temperature))`."""

    guidance: float = 2.0
    """Classifier-free guidance scale g in u + g (c - u); 1 samples the conditional distribution, without guidance."""
    temperature: float = 1.0
    """Divides the guided logits; 0 is greedy, which cannot be trained on."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this much probability; 1 keeps all."""
    unmasking: Unmasking = field(default_factory=Unmasking)
    """The order in which masked generators fix their tokens."""

    def __post_init__(self) -> None:
        declared(self, "sampling.")
        if self.guidance < 0:
            raise ValueError(f"sampling.guidance is {self.guidance}; it must be at least 0 (1 is no guidance)")
        if self.temperature < 0:
            raise ValueError(f"sampling.temperature is {self.temperature}; it must be at least 0 (0 is greedy)")
        if self.top_k < 0:
            raise ValueError(f"sampling.top_k is {self.top_k}; it must be at least 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p is {self.top_p}; it must be in (0, 1] (1 keeps all tokens)")


@dataclass(frozen=True)
class Sampling(SamplingOptions):
    """Says how the tokens of one rollout are drawn, and what is kept of their logits."""

    group_size: int = 1
    """G, images a prompt."""
    seed: int = 0
    """Each image's noise depends on (seed, prompt index, image index) only."""
    contrast: bool = True
    """Whether `logprob_negative` is wanted. Free under guidance with the null prompt, else one forward without
    gradient."""
    stats: tuple[str, ...] = ("entropy",)
    """Which of `STATS` to take from the logits at sampling time."""

    @classmethod
    def of(cls, options: SamplingOptions, **choices: Any) -> Sampling:
        """Make a `Sampling` of the options of a user, with `choices` for the other fields (and for single options)."""
        shared = {field.name: vars(options)[field.name] for field in fields(SamplingOptions)}
        return cls(**{**shared, **choices})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, "sampling.", group_size=self.group_size)
        unknown = set(self.stats) - set(STATS)
        if unknown:
            raise ValueError(f"unknown sampling stats {sorted(unknown)}; allowed: {', '.join(STATS)}")


@dataclass(frozen=True)
class Events:
    """Says which tokens are one event in training: those with nearly the same contrast (`generators.tokens.events`)."""

    width: float = 1.0
    """Nats of contrast that an event spans; above 0. By default all tokens that the prompt makes at most 1.65 times as
    likely, or as unlikely, are one. (Chosen here.)"""
    codes: EventCodes = "own"
    """Whose contrast a code has. own: its own; shuffled, matched: controls, with which it has that of a code drawn at
    random, from events as many, or as probable."""

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"the width of events is {self.width}; it must be above 0 nats")
        if self.codes not in get_args(EventCodes):
            raise ValueError(f"the codes of events are {self.codes!r}; allowed: {', '.join(get_args(EventCodes))}")


@dataclass(frozen=True)
class Rows:
    """Says which rows of a batch that several processes share are those of one of them."""

    index: Tensor
    """[b] int64 on the CPU, in rising order."""
    total: int
    """B, the rows of all processes."""

    @staticmethod
    def all(batch: int) -> Rows:
        """Return the rows of a process that has the whole batch."""
        return Rows(torch.arange(batch), batch)

    def own(self, chosen: Tensor) -> Tensor:
        """Return which of this process's rows (0 to b - 1) are among the `chosen` [c] of the batch, in their order."""
        place = torch.full((self.total,), -1)
        place[self.index] = torch.arange(len(self.index))
        found = place[chosen]
        return found[found >= 0]


@dataclass(frozen=True)
class Rollout:
    """Sampled token grids and the log-probs that were computed on the way."""

    tokens: Tensor
    """[B, T] int64, codebook indices in raster order of the grid."""
    logprob_positive: Tensor
    """[B, T] fp32, raw log-prob (temperature 1, untruncated) under the prompt, nats."""
    logprob_negative: Tensor | None
    """[B, T] fp32, raw log-prob under the negative prompt, nats; None where `sampling.contrast` is off and nothing gave
    it for free."""
    logprob_behaviour: Tensor
    """[B, T] fp32, log-prob of the distribution that was sampled: after guidance, temperature and truncation."""
    commit_step: Tensor
    """[B, T] int64, the sampling step that fixed each token: 0..T-1 for autoregressive, the unmasking step for
    masked."""
    prompts: tuple[Prompt, ...]
    """P prompts; row p * G + g belongs to prompt p."""
    grid: tuple[int, int]
    """(rows, columns), T = rows * columns."""
    sampling: Sampling
    negative_prompts: tuple[str, ...] | None = None
    """P texts, or None for the null prompt that guidance uses."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Name -> [B, T] fp32, taken from the logits at sampling time."""

    @property
    def batch(self) -> int:
        return self.tokens.shape[0]

    @property
    def row_prompts(self) -> list[Prompt]:
        """Return the prompt of each row, B of them."""
        return self.per_row(self.prompts)

    def per_row(self, values: Sequence[Item]) -> list[Item]:
        """Repeat P values, one a prompt, to B values, one a row. ValueError for another number of values."""
        if len(values) != len(self.prompts):
            raise ValueError(f"{len(values)} values for {len(self.prompts)} prompts; pass one for each prompt")
        return [value for value in values for _ in range(self.sampling.group_size)]

    def rows(self, index: Tensor) -> Rollout:
        """Return some rows, as a rollout with a group size of 1 (each row brings its own prompt).

        `index`: [b] int64.
        """
        group = self.sampling.group_size
        owners = [int(row) // group for row in index]
        device_index = index.to(self.tokens.device)

        def pick(value: Tensor | None) -> Any:
            return None if value is None else value[device_index]

        return replace(
            self,
            tokens=pick(self.tokens),
            logprob_positive=pick(self.logprob_positive),
            logprob_negative=pick(self.logprob_negative),
            logprob_behaviour=pick(self.logprob_behaviour),
            commit_step=pick(self.commit_step),
            prompts=tuple(self.prompts[p] for p in owners),
            sampling=replace(self.sampling, group_size=1),
            negative_prompts=None if self.negative_prompts is None else tuple(self.negative_prompts[p] for p in owners),
            stats={name: pick(value) for name, value in self.stats.items()},
        )

    def cpu(self) -> Rollout:
        """Return the rollout with all its tensors on the CPU."""
        moved: dict[str, Any] = {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved, stats={name: value.cpu() for name, value in self.stats.items()})

    def groups(self, index: Tensor) -> Rollout:
        """Return some prompts with all their images. `index`: [p] int64, prompts."""
        group = self.sampling.group_size
        rows = (index[:, None] * group + torch.arange(group, device=index.device)).flatten()
        one_each = self.rows(rows)
        owners = index.tolist()
        return replace(
            one_each,
            prompts=tuple(self.prompts[p] for p in owners),
            sampling=self.sampling,
            negative_prompts=None if self.negative_prompts is None else tuple(self.negative_prompts[p] for p in owners),
        )

    @staticmethod
    def cat(rollouts: list[Rollout]) -> Rollout:
        """Join rollouts of the same generator, sampling and kind of negative prompt, one after the other.

        The seed of the result is the first one's.
        """
        first = rollouts[0]

        def join(take: Callable[[Rollout], Tensor]) -> Tensor:
            return torch.cat([take(rollout) for rollout in rollouts])

        negatives = [rollout.logprob_negative for rollout in rollouts if rollout.logprob_negative is not None]
        return replace(
            first,
            tokens=join(lambda rollout: rollout.tokens),
            logprob_positive=join(lambda rollout: rollout.logprob_positive),
            logprob_negative=None if first.logprob_negative is None else torch.cat(negatives),
            logprob_behaviour=join(lambda rollout: rollout.logprob_behaviour),
            commit_step=join(lambda rollout: rollout.commit_step),
            prompts=tuple(prompt for rollout in rollouts for prompt in rollout.prompts),
            negative_prompts=None
            if first.negative_prompts is None
            else tuple(text for rollout in rollouts for text in rollout.negative_prompts or ()),
            stats={name: torch.cat([rollout.stats[name] for rollout in rollouts]) for name in first.stats},
        )


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout, its images and their scores."""

    rollout: Rollout
    images: Tensor
    """[B, 3, H, W] uint8."""
    scores: Tensor
    """[B] fp32, higher is better, NaN = this image's scorer failed."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Name -> [B] fp32: the reward's parts."""

    def groups(self, index: Tensor) -> ScoredRollout:
        """Return some prompts with all their images. `index`: [p] int64, prompts."""
        group = self.rollout.sampling.group_size
        rows = (index[:, None] * group + torch.arange(group, device=index.device)).flatten()
        images, scores = self.images[rows.to(self.images.device)], self.scores[rows.to(self.scores.device)]
        parts = {name: part[rows.to(part.device)] for name, part in self.parts.items()}
        return ScoredRollout(self.rollout.groups(index), images, scores, parts)

    @staticmethod
    def cat(items: list[ScoredRollout]) -> ScoredRollout:
        """Join scored rollouts of the same generator, sampling and reward, one after the other."""
        return ScoredRollout(
            Rollout.cat([item.rollout for item in items]),
            torch.cat([item.images for item in items]),
            torch.cat([item.scores for item in items]),
            cat_parts([(item.scores, item.parts) for item in items]),
        )


def cat_parts(items: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the parts of several batches of scores, one after the other; `items`: (scores [B], name -> [B]).

    A part that a batch lacks (that of a task of which it has no image) is NaN there.
    """
    names = dict.fromkeys(name for _, parts in items for name in parts)
    return {
        name: torch.cat([parts.get(name, torch.full_like(scores, torch.nan)) for scores, parts in items])
        for name in names
    }
