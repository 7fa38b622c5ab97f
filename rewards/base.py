"""Defines what a reward is, and checks that its scores are worth training on. B images, H, W their sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from rewards.identity import Identity, identity

if TYPE_CHECKING:
    from torch import Tensor

#: What happens to an image whose score is not finite: "raise" stops with a ValueError, "mark" keeps it as NaN, which
#: leaves the image out of its group's statistics and of the loss.
FailurePolicy = Literal["raise", "mark"]

#: Prompts named in an error message at most.
_SHOWN = 3


@dataclass(frozen=True)
class RewardOutput:
    """Holds the scores of a batch of images."""

    scores: Tensor
    """[B] float, higher is better, NaN = this image could not be scored."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Name -> [B] float, for the log; NaN where a part does not apply to an image."""
    reasons: tuple[tuple[str, ...], ...] = ()
    """B times why an image does not have the full score, a line a reason; () of a reward that gives no reasons."""


class PromptError(ValueError):
    """Says that a reward cannot score a prompt; `index` is its place in the list that was checked."""

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(problem)
        self.index = index


@runtime_checkable
class Reward(Protocol):
    """Scores images. Stateless between calls: an image's score depends on its own row only.

    A class that inherits from it needs `__call__` alone; everything else has a default. A class or function that does
    not inherit is made a reward by `rewards.function.as_reward`.
    """

    name: str = ""
    """What error messages call it; "" stands for the class's name."""
    weights: Mapping[str, float] | None = None
    """The parts' names and their weights, for a weighted sum. None for any other reward."""
    built_with: Mapping[str, Any] = {}
    """The options that `rewards.load` built it with, defaults included."""

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        """Score `images` [B, 3, H, W] uint8 for B prompts with B rows of metadata, such as GenEval's."""
        ...

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Raise PromptError for the first prompt that cannot be scored, whatever the picture.

        By default every prompt can be.
        """
        return None

    def identity(self) -> Identity:
        """Say which scorer it is: runs save it, and refuse to go on with another one."""
        return identity(name_of(self), self.built_with, self.weights)

    def own_code(self) -> dict[str, str]:
        """Return a hash of the code of each function of a user's own that it calls, by its name.

        By default there is none. A run may go on after such a function was mended, so it is no part of the identity;
        processes that score together must have the same.
        """
        return {}


class Pending(Protocol):
    """Stands for scores that are being computed."""

    def result(self) -> RewardOutput:
        """Wait for the scores. Raises what the reward raised."""
        ...


@runtime_checkable
class AsyncReward(Reward, Protocol):
    """Scores elsewhere: the caller may go on with other work between `submit` and `result`."""

    submit_batch: int | None
    """Images of a `submit` at best; None: nothing is scored elsewhere, and there is nothing to gain by it."""

    def submit(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Pending:
        """Begin to score. Arguments and result are those of a call."""
        ...


def name_of(reward: Reward) -> str:
    """Return what error messages call a reward."""
    return reward.name or type(reward).__name__


def check_each(
    check: Callable[[str, dict[str, Any]], object], prompts: Sequence[str], metadata: Sequence[dict[str, Any]]
) -> None:
    """Call `check` with each prompt and its row; a ValueError of it becomes a PromptError with the prompt's place."""
    for index, (prompt, row) in enumerate(zip(prompts, metadata, strict=True)):
        try:
            check(prompt, row)
        except ValueError as error:
            raise PromptError(index, str(error)) from error


def join(outputs: Sequence[RewardOutput]) -> RewardOutput:
    """Put the scores of several batches one after the other.

    A part that a batch lacks (that of a task of which it has no image) is NaN there. Reasons are joined where any batch
    has some. ValueError for no batches.
    """
    import torch

    if not outputs:
        raise ValueError("there are no scores to join")
    names = dict.fromkeys(name for output in outputs for name in output.parts)
    parts = {
        name: torch.cat([o.parts.get(name, torch.full_like(o.scores, torch.nan)) for o in outputs]) for name in names
    }
    reasons = tuple(lines for output in outputs for lines in output.reasons or ((),) * len(output.scores))
    return RewardOutput(torch.cat([output.scores for output in outputs]), parts, reasons if any(reasons) else ())


def check_policy(failure: str) -> None:
    """Raise ValueError unless `failure` is one of the two policies."""
    if failure not in ("raise", "mark"):
        raise ValueError(f"failure policy {failure!r} is unknown; allowed: raise, mark")


def check(
    output: RewardOutput, batch: int, name: str, prompts: Sequence[str], *, failure: FailurePolicy = "raise"
) -> RewardOutput:
    """Return `output` with float32 scores, or raise ValueError naming the reward and the prompts.

    Raises where the number of scores (or of a part's values) is not `batch`, and, with `failure="raise"`, where a score
    is not finite. With `failure="mark"` such a score becomes NaN, infinities too.
    """
    check_policy(failure)
    for label, values in {"scores": output.scores, **output.parts}.items():
        if tuple(values.shape) != (batch,):
            raise ValueError(
                f"reward {name!r} returned {label} of shape {tuple(values.shape)} for {batch} images "
                f"({_quoted(prompts)}); it must return one number per image, shape ({batch},)"
            )
    if output.reasons and len(output.reasons) != batch:
        raise ValueError(
            f"reward {name!r} returned reasons for {len(output.reasons)} of {batch} images ({_quoted(prompts)}); it "
            "must return a tuple of lines for each image, or no reasons"
        )
    scores = output.scores.detach().float()
    finite = scores.isfinite()
    if not finite.all():
        if failure == "raise":
            bad = [prompt for prompt, fine in zip(prompts, finite.tolist(), strict=True) if not fine]
            raise ValueError(
                f"reward {name!r} gave {len(bad)} of {batch} images a score that is not finite ({_quoted(bad)}); mend "
                "the scorer, or set failure='mark' to leave such images out of the update"
            )
        scores = scores.masked_fill(~finite, float("nan"))
    return replace(output, scores=scores)


def _quoted(prompts: Sequence[str]) -> str:
    shown = ", ".join(repr(prompt) for prompt in prompts[:_SHOWN])
    return f"prompts: {shown}" + (f" and {len(prompts) - _SHOWN} more" if len(prompts) > _SHOWN else "")
