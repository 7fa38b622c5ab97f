"""Compare several checkpoints on one prompt and seed: images, names that may be hidden, and votes.

P = 1 prompt, G images by each checkpoint; the same image number has the same noise everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from t2i_gcpo.demo.models import Models
from t2i_gcpo.demo.scoring import ImageScores, Scorer
from t2i_gcpo.records import Prompt, Sampling

LETTERS = "ABCDEFGH"
NO_PREFERENCE = "no difference"


@dataclass(frozen=True)
class Comparison:
    """Is what a session has on its screen."""

    prompt: Prompt
    names: tuple[str, ...]
    """The checkpoints in the order in which they are shown; under other names while `hidden`."""
    blind: bool = False
    voted: str | None = None
    """The label that was voted for."""
    images: dict[str, Tensor] = field(default_factory=dict)
    """Name -> [G, 3, H, W] uint8, of the checkpoints that are done."""
    image_scores: dict[str, ImageScores] = field(default_factory=dict)

    @property
    def hidden(self) -> bool:
        return self.blind and self.voted is None

    @property
    def labels(self) -> list[str]:
        """Return what stands above each column: letters while names are hidden, both after the vote."""
        if not self.blind:
            return list(self.names)
        letters = [f"{LETTERS[k]}" for k in range(len(self.names))]
        return letters if self.hidden else [f"{a}: {name}" for a, name in zip(letters, self.names, strict=True)]

    @property
    def complete(self) -> bool:
        return len(self.images) == len(self.names)

    def vote(self, choice: str | None) -> tuple[Comparison, str | None]:
        """Return the comparison with the names shown, and the checkpoint that got the vote (None: no difference).

        ValueError: nothing to vote on, names not hidden, a second vote, or no choice.
        """
        if not self.blind:
            raise ValueError("The names are shown: tick “blind” and generate, so that you vote on what you see.")
        if not self.complete:
            raise ValueError("Wait until all images are there, then vote.")
        if self.voted is not None:
            raise ValueError("You have voted on these images; generate others to vote again.")
        letters = list(LETTERS[: len(self.names)])
        if choice not in [*letters, NO_PREFERENCE]:
            raise ValueError(f"Choose {', '.join(letters)} or “{NO_PREFERENCE}” first.")
        winner = None if choice == NO_PREFERENCE else self.names[letters.index(choice)]
        return replace(self, voted=choice), winner


def generate(
    models: Models,
    scorer: Scorer,
    prompt: Prompt,
    *,
    seed: int,
    num: int,
    guidance: float,
    blind: bool,
    shuffle: random.Random,
    names: Sequence[str] | None = None,
) -> Iterator[Comparison]:
    """Yield the comparison as it grows: first without images, then after each checkpoint.

    names: which checkpoints (None: all).
    """
    order = list(models.names if names is None else names)
    if blind:
        shuffle.shuffle(order)
    models.get(order[0]).check_prompts([prompt])
    comparison = Comparison(prompt, tuple(order), blind)
    yield comparison
    sampling = Sampling(group_size=num, guidance=guidance, seed=seed, contrast=False, stats=())
    for name in order:
        generator = models.get(name)
        with torch.no_grad():
            images = generator.decode(generator.sample([prompt], sampling).tokens).cpu()
        image_scores = scorer(images, prompt)
        comparison = replace(
            comparison,
            images={**comparison.images, name: images},
            image_scores={**comparison.image_scores, name: image_scores},
        )
        yield comparison


@dataclass(frozen=True)
class Tally:
    """Counts the votes of one session."""

    votes: dict[str, int] = field(default_factory=dict)
    """Checkpoint -> votes."""
    undecided: int = 0
    shown: dict[str, int] = field(default_factory=dict)
    """Checkpoint -> comparisons that it was part of."""

    def add(self, winner: str | None, names: Sequence[str]) -> Tally:
        votes = {**self.votes, winner: self.votes.get(winner, 0) + 1} if winner is not None else self.votes
        shown = {**self.shown, **{name: self.shown.get(name, 0) + 1 for name in names}}
        return Tally(votes, self.undecided + (winner is None), shown)
