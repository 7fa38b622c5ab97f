"""The protocol of a generator: what the trainer, the evaluation and the demo know about it.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, T tokens of the grid, H, W pixels.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor, nn

from t2i_gcpo.generators.checkpoints import Checkpoint
from t2i_gcpo.records import Events, Prompt, Rollout, Sampling, SamplingOptions, Vectors

Distribution = Literal["conditional", "guided", "guided_detached"]
DISTRIBUTIONS: tuple[str, ...] = ("conditional", "guided", "guided_detached")

Negative = str | Sequence[str] | None
"""A negative prompt for all, one for each prompt, or None: the null prompt that guidance uses."""

Item = TypeVar("Item")
Self = TypeVar("Self", bound="ImageGenerator")


class TrainingScores(NamedTuple):
    """The log-probs that an update trains, and how much each token counts."""

    logprob: Tensor
    """[B, T] fp32, nats, differentiable in the policy's weights."""
    scale: Tensor | None = None
    """[B, T] fp32, the factor of each token's loss, 0 for a token without a log-prob; None: 1 for all."""
    token_logprob: Tensor | None = None
    """[B, T] fp32, nats: the tokens' own log-probs, which the KL is taken of, where `logprob` is of several tokens;
    None: `logprob` is."""

    @property
    def own(self) -> Tensor:
        """The log-probs [B, T] fp32 that the KL is taken of."""
        return self.logprob if self.token_logprob is None else self.token_logprob


class ImageGenerator(Protocol):
    """A model that draws a grid of codebook tokens for a prompt, and can score the tokens again.

    Derive from it to have the defaults of what is optional: `masked`, `base`, `has_lora`, `prepare`, `images`,
    `training_scores`, `merge_lora`, `park_reference`.
    """

    kind: str
    """The model_type that `generators.load` chose the adapter by."""
    grid: tuple[int, int]
    """(rows, columns); T = rows * columns."""
    codebook_size: int
    masked: ClassVar[bool] = False
    """Whether the class takes the options of masked generators, `generators.MASKED_OPTIONS`."""
    base: Checkpoint | None = None
    """The checkpoint that the generator was loaded from; None where it was built in memory."""

    @property
    @abstractmethod
    def policy(self) -> nn.Module:
        """The module whose weights are trained.

        An adapter may let it be set to a wrapper (DDP) around the same module.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[Prompt | str],
        sampling: Sampling,
        *,
        rng: torch.Generator | None = None,
        prompt_indices: Sequence[int] | None = None,
        negative_prompts: Negative = None,
    ) -> Rollout:
        """Draw `sampling.group_size` token grids for each of P prompts, without gradient.

        >>> rollout = generator.sample(["a photo of a red circle"], Sampling(group_size=2))
        >>> tuple(rollout.tokens.shape), tuple(generator.decode(rollout.tokens).shape)
        ((2, 144), (2, 3, 96, 96))

        Image g of prompt p has noise that depends on (seed, `prompt_indices[p]`, g) only: the place of the prompt among
        those that share the seed (None: 0, 1, ...). With `rng`, one 63-bit draw from it replaces `sampling.seed` and is
        recorded in the rollout's sampling.
        """

    @torch.no_grad()
    def images(
        self,
        prompts: str | Prompt | Sequence[Prompt | str],
        n: int = 8,
        *,
        seed: int = 0,
        sampling: SamplingOptions = Sampling(),  # noqa: B008 (frozen)
        negative_prompts: Negative = None,
    ) -> list[Image.Image]:
        """Draw n pictures of one prompt, or n of each of several one prompt after the other.

        >>> [picture.size for picture in generator.images("a photo of a red circle", n=2, seed=0)]
        [(96, 96), (96, 96)]

        sampling: guidance, temperature and the like; its group size, seed and statistics are replaced. ValueError:
        words that the generator does not know, or n below 1.
        """
        given = [prompts] if isinstance(prompts, (str, Prompt)) else prompts
        self.check_prompts(as_prompts(given))
        drawn = Sampling.of(sampling, group_size=n, seed=seed, contrast=False, stats=())
        rollout = self.sample(given, drawn, negative_prompts=negative_prompts)
        pixels = self.decode(rollout.tokens).cpu()
        return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in pixels]

    @abstractmethod
    def token_logprobs(
        self,
        rollout: Rollout,
        *,
        prompt: str | list[str] = "positive",
        distribution: Distribution = "conditional",
    ) -> Tensor:
        """Compute log-probs [B, T] fp32 in nats of the rollout's tokens, differentiable in the policy's weights."""

    def training_scores(
        self, rollout: Rollout, *, distribution: Distribution = "conditional", events: Events | None = None
    ) -> TrainingScores:
        """Return what an update trains: by default the log-prob of each token, and every token counts alike.

        events: train the log-prob of all tokens together that the prompt favours as much as the sampled one
        (`tokens/events.py`). ValueError where the generator cannot.
        """
        if events is not None:
            self.check_events()
        return TrainingScores(self.token_logprobs(rollout, distribution=distribution))

    def check_events(self) -> None:
        """Raise ValueError where `training_scores` has no events: by default."""
        raise ValueError(
            f"{type(self).__name__} does not say which tokens the prompt favours alike; set algorithm.event_width to "
            "0, or choose another algorithm"
        )

    @abstractmethod
    def token_entropy(self, rollout: Rollout) -> Tensor:
        """Compute the entropy [B, T] fp32, nats, of the raw conditional distribution at each token; no gradient."""

    def code_vectors(self, kind: Vectors) -> Tensor:
        """Return the vectors [V, D] fp32 of the codebook's tokens, for rules of credit that compare tokens.

        kind: "codebook", those that the image decoder reads; "inputs", those that the policy reads. ValueError where
        the generator has none.
        """
        raise ValueError(f"{type(self).__name__} names no vectors of its tokens; choose another algorithm")

    def redraw(self, rollout: Rollout, uniform: Tensor) -> Tensor:
        """Draw K other tokens at each place, each after the same tokens before it: [B, T, K] int64.

        They come from the distribution that the rollout's own tokens were drawn from. uniform: [B, T, K] in [0, 1).
        ValueError where the generator cannot.
        """
        raise ValueError(f"{type(self).__name__} draws its tokens in no fixed order, so none can be drawn anew alone")

    def sample_on(self, rollout: Rollout, rows: Tensor, begun: Tensor, keys: Tensor) -> Tensor:
        """Draw R images that begin as they are told to: tokens [R, T] int64.

        Image r is of the prompt of row `rows[r]` of the rollout. Its first tokens are those of `begun[r]` up to the
        first -1, and the others are drawn from the distribution that the rollout's were drawn from. Images with the
        same key have the same noise, and draw the same tokens as far as their distributions are alike. rows, keys: [R]
        int64; begun: [R, T] int64. ValueError where the generator cannot.
        """
        raise ValueError(f"{type(self).__name__} draws its tokens in no fixed order, so none can be drawn anew alone")

    @abstractmethod
    def check_prompts(self, prompts: Sequence[Prompt | str]) -> None:
        """Raise a ValueError for prompts that the generator cannot read, e.g. for words that it does not know."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Decode tokens [B, T] int64 to images [B, 3, H, W] uint8."""

    def prepare(self, rollouts_ahead: int, rows: int | None = None) -> None:
        """Take note that the caller will ask for so many rollouts of like size in all, of `rows` images each.

        By default nothing depends on it.
        """
        del rollouts_ahead, rows

    @abstractmethod
    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the policy's parameters that are trained (with LoRA its adapters'), in a fixed order."""

    @property
    def has_lora(self) -> bool:
        """Whether low-rank adapters are trained instead of the policy's own weights."""
        return False

    @abstractmethod
    def add_lora(
        self, rank: int = 16, alpha: float = 32.0, *, targets: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        """Train low-rank adapters (2106.09685) of the policy instead of its own weights.

        targets: the linear layers that get one (None: the usual ones). ValueError where the generator cannot.
        """

    def merge_lora(self) -> None:
        """Add the adapters to the policy's weights, and train these from here on. ValueError where there are none."""
        raise ValueError("there are no LoRA adapters to merge")

    @abstractmethod
    def keep_reference(self) -> None:
        """Keep the policy as it is now for `reference()`.

        With LoRA the adapters alone are kept, and new ones add nothing to the base.
        """

    def park_reference(self) -> None:
        """Take note that the kept reference is used now and then: it may lie in slower memory until it is.

        By default it stays where it is.
        """

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """Make the generator the reference model inside a `with` block."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write a folder that `generators.load` accepts."""

    def snapshot(self: Self) -> Self:
        """Return a copy that `save` writes as the generator is now, in another thread, while this one is trained on.

        By default it is a deep copy, on the same device.
        """
        return copy.deepcopy(self)


def as_prompts(prompts: Sequence[Prompt | str]) -> tuple[Prompt, ...]:
    """Return prompts, texts made into them. ValueError for a lone string or an empty sequence."""
    if isinstance(prompts, (str, Prompt)) or not len(prompts):
        raise ValueError(f"prompts is {prompts!r}; pass a non-empty sequence of prompts, for one prompt a list of one")
    return tuple(prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts)


@overload
def as_negatives(negative: None, count: int) -> None: ...
@overload
def as_negatives(negative: str | Sequence[str], count: int) -> tuple[str, ...]: ...
@overload
def as_negatives(negative: Negative, count: int) -> tuple[str, ...] | None: ...
def as_negatives(negative: Negative, count: int) -> tuple[str, ...] | None:
    """Return a negative text for each of `count` prompts, or None: the null prompt. ValueError for another number."""
    if negative is None:
        return None
    if isinstance(negative, str):
        return (negative,) * count
    if len(negative) != count:
        raise ValueError(f"{len(negative)} negative prompts for {count} prompts; pass one for all, or one for each")
    return tuple(negative)


def as_indices(prompt_indices: Sequence[int] | None, count: int) -> Sequence[int]:
    """Return the place of each of `count` prompts among those that share a seed. ValueError: another number of them."""
    if prompt_indices is None:
        return range(count)
    if len(prompt_indices) != count:
        raise ValueError(f"prompt_indices has {len(prompt_indices)} places for {count} prompts; give one for each")
    return prompt_indices


def row_texts(rollout: Rollout, prompt: str | Sequence[str]) -> list[str] | None:
    """Return the text of each row [B] that `prompt` asks for; None stands for the null prompt.

    prompt: "positive"; "negative", the rollout's negative prompts, else the null prompt; or texts, one for each prompt
    or row. ValueError for another word, or a number of texts that does not fit.
    """
    if prompt == "positive":
        return [owner.text for owner in rollout.row_prompts]
    if prompt == "negative":
        return None if rollout.negative_prompts is None else rollout.per_row(rollout.negative_prompts)
    if isinstance(prompt, str):
        raise ValueError(f'prompt is {prompt!r}; allowed: "positive", "negative", or a list of texts')
    if len(prompt) not in (len(rollout.prompts), rollout.batch):
        raise ValueError(
            f"{len(prompt)} texts for {len(rollout.prompts)} prompts and {rollout.batch} rows; pass one for each"
        )
    return rollout.per_row(prompt) if len(prompt) == len(rollout.prompts) else list(prompt)


def seeded(sampling: Sampling, rng: torch.Generator | None) -> Sampling:
    """Replace the seed of `sampling` by one 63-bit draw from `rng`, if there is one."""
    if rng is None:
        return sampling
    return replace(sampling, seed=int(torch.randint(0, 2**63 - 1, (), generator=rng, device=rng.device)))


def check_tokens(tokens: Tensor, grid: tuple[int, int], codebook_size: int) -> None:
    """Raise a ValueError unless tokens are [B, rows * columns] codebook indices."""
    length = grid[0] * grid[1]
    if tokens.dim() != 2 or tokens.shape[1] != length or tokens.is_floating_point():
        raise ValueError(
            f"tokens are {tuple(tokens.shape)} {tokens.dtype}; expected int64 [B, "
            f"{length}] for a {grid[0]} x {grid[1]} grid"
        )
    if tokens.numel() and not (0 <= int(tokens.min()) and int(tokens.max()) < codebook_size):
        raise ValueError(
            f"tokens span {int(tokens.min())} to {int(tokens.max())}; allowed are 0 to {codebook_size - 1}"
        )


def chunks(items: Sequence[Item], most: int | None) -> Iterator[Sequence[Item]]:
    """Cut items into nearly equal runs of at most `most` (None: all at once)."""
    count = 1 if most is None else -(-len(items) // most)
    size = -(-len(items) // max(count, 1))
    for start in range(0, len(items), max(size, 1)):
        yield items[start : start + size]


def in_chunks(function: Callable[[Tensor], Tensor], rows: Tensor, most: int | None) -> Tensor:
    """Apply `function` to at most `most` rows at a time, and join the results along the rows."""
    if most is None or len(rows) <= most:
        return function(rows)
    return torch.cat([function(part) for part in rows.split(most)])
