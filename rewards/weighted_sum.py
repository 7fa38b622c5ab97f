"""Makes one reward of several: their weighted sum, with every part in the log."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.base import AsyncReward, FailurePolicy, PromptError, Reward, RewardOutput, check, check_policy
from rewards.function import as_reward
from rewards.identity import Identity
from rewards.registry import available, find, load

if TYPE_CHECKING:
    from torch import Tensor


class Composite(AsyncReward):
    """Sums rewards: `score = sum_k weight_k * score_k`.

    Parts: each reward's scores as `name`, each of its parts as `name/part`.

    Args:
        rewards: name -> reward.
        weights: name -> weight; a reward without one weighs 1.
        failure: "raise" stops at a score that is not finite; "mark" makes it NaN, and with it the image's sum: an image
            that one reward
            could not score has no score, whatever the weights. What a reward raises is raised under either.

    Rewards that score elsewhere are asked first and work while the others do.
    """

    name = "composite"

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float] | None = None,
        *,
        failure: FailurePolicy = "raise",
    ) -> None:
        check_policy(failure)
        weights = weights or {}
        if not rewards:
            raise ValueError("a composite reward needs at least one reward")
        strangers = sorted(set(weights) - set(rewards))
        if strangers:
            raise ValueError(
                f"weights for {', '.join(strangers)}, which is no reward here; there are {', '.join(rewards)}"
            )
        self.rewards = {name: as_reward(reward, name=name, failure=failure) for name, reward in rewards.items()}
        self.weights: dict[str, float] = {name: float(weights.get(name, 1.0)) for name in rewards}
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of reward {name!r} is {weight}; it must be a finite number")
        self.failure = failure
        self._elsewhere = {name: reward for name, reward in self.rewards.items() if isinstance(reward, AsyncReward)}
        sizes = [reward.submit_batch for reward in self._elsewhere.values() if reward.submit_batch is not None]
        self.submit_batch = min(sizes, default=None)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Let each reward check the prompts; of several that refuse one, the first prompt is reported."""
        errors = []
        for reward in self.rewards.values():
            try:
                reward.check_prompts(prompts, metadata)
            except PromptError as error:
                errors.append(error)
        if errors:
            raise min(errors, key=lambda error: error.index)

    def identity(self) -> Identity:
        """Say which rewards are summed, and how."""
        rewards: dict[str, Any] = {name: reward.identity() for name, reward in self.rewards.items()}
        return {"name": self.name, "options": {"rewards": rewards, "failure": self.failure}, "weights": self.weights}

    def own_code(self) -> dict[str, str]:
        """Return those of the rewards that are summed."""
        return {name: code for reward in self.rewards.values() for name, code in reward.own_code().items()}

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        return self.submit(images, prompts, metadata).result()

    def submit(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> PendingSum:
        """Ask the rewards that score elsewhere; the others score when the result is asked for."""
        pending = {name: reward.submit(images, prompts, metadata) for name, reward in self._elsewhere.items()}

        def output(name: str) -> RewardOutput:
            return pending[name].result() if name in pending else self.rewards[name](images, prompts, metadata)

        # The others first: the waiting comes last.
        order = sorted(self.rewards, key=lambda name: name in pending)
        return PendingSum(lambda: self._sum({name: output(name) for name in order}, images, prompts))

    def _sum(self, outputs: Mapping[str, RewardOutput], images: Tensor, prompts: list[str]) -> RewardOutput:
        sums: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        for name in self.rewards:
            output = check(outputs[name], len(images), name, prompts, failure=self.failure)
            scores = output.scores.to(images.device)
            sums.append(self.weights[name] * scores)
            parts[name] = scores
            parts.update({f"{name}/{part}": values.to(images.device) for part, values in output.parts.items()})
        total = sums[0]
        for term in sums[1:]:
            total = total + term
        reasons = _reasons({name: outputs[name].reasons for name in self.rewards}, len(images))
        return RewardOutput(total, parts, reasons)


def _reasons(named: Mapping[str, tuple[tuple[str, ...], ...]], count: int) -> tuple[tuple[str, ...], ...]:
    """Return the reasons of all rewards that give some, image by image, each with its reward's name."""
    given = {name: reasons for name, reasons in named.items() if any(reasons)}
    if not given:
        return ()
    return tuple(
        tuple(f"{name}: {line}" for name, reasons in given.items() for line in reasons[k]) for k in range(count)
    )


@dataclass(frozen=True)
class PendingSum:
    """Holds a sum of which some rewards are being computed elsewhere."""

    finish: Callable[[], RewardOutput]

    def result(self) -> RewardOutput:
        """Wait for all of them. Raises what the first of them raised."""
        return self.finish()


def composite(weighted: Mapping[Any, float], *, failure: FailurePolicy = "raise") -> Composite:
    """Make one reward of several and their weights: names, rewards, or functions of one's own.

    >>> import torch, rewards
    >>> def redness(images, prompts, metadata):  # [B, 3, H, W] uint8 -> B numbers
    ...     return images[:, 0].float().mean(dim=(1, 2)) / 255
    >>> mixture = rewards.composite({"geneval": 0.7, redness: 0.3})
    >>> ring = {"tag": "single_object", "include": [{"class": "ring", "count": 1}]}
    >>> output = mixture(torch.full((1, 3, 96, 96), 255, dtype=torch.uint8), ["a photo of a ring"], [ring])
    >>> output.scores, output.parts["geneval"], output.parts["redness"]
    (tensor([0.3000]), tensor([0.]), tensor([1.]))

    weighted: what `load` knows by name, what it returns, or a function `(images, prompts, metadata) -> B numbers` ->
        its weight. The log calls a function by its name, and a second of the same name NAME_2.
    failure: as in `Composite`. ValueError, in a sentence: something that cannot score, a weight that is no number, or
    at the call scores of another shape than one number an image.
    """
    if not isinstance(weighted, Mapping):
        raise ValueError(
            f"composite wants rewards with their weights, such as {{'clip': 0.7, my_function: 0.3}}; it was given "
            f"{type(weighted).__name__}"
        )
    built: dict[str, Reward] = {}
    weights: dict[str, float] = {}
    for scorer, weight in weighted.items():
        if not isinstance(scorer, str) and not callable(scorer):
            raise ValueError(
                f"{scorer!r} is {type(scorer).__name__}, which cannot score; give a name ({', '.join(available())}), "
                "what rewards.load returns, or a function (images, prompts, metadata) -> numbers"
            )
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ValueError(f"the weight of {_label(scorer)!r} is {weight!r}; it must be a number")
        label = _unused(_label(scorer), built)
        built[label] = load(scorer) if isinstance(scorer, str) else as_reward(scorer, name=label, failure=failure)
        weights[label] = float(weight)
    return Composite(built, weights, failure=failure)


def _label(scorer: Any) -> str:
    """Return what the log calls a scorer: the name that it is given by, else its own, else that of its class."""
    if isinstance(scorer, str):
        return scorer
    return as_reward(scorer).name or type(scorer).__name__


def _unused(label: str, taken: Mapping[str, Reward]) -> str:
    """Return the label, with a number where there is one like it."""
    number = 2
    new = label
    while new in taken:
        new, number = f"{label}_{number}", number + 1
    return new


def load_composite(rewards: Mapping[str, Mapping[str, Any] | None], *, failure: FailurePolicy = "raise") -> Composite:
    """Load a composite from plain settings, a mapping from label to name, weight and options.

    Each label has `{"name": the registry's name, "weight": 1.0, ...the reward's options}`.

    `name` may be left out where the label is the registry's name:
    `rewards.load("composite", rewards={"geneval": {"weight": 0.7}, "sharp": {"name": "mine:sharpness", "weight":
    0.3}})`.
    """
    built: dict[str, Reward] = {}
    weights: dict[str, float] = {}
    for label, settings in rewards.items():
        options = dict(settings or {})
        weights[label] = options.pop("weight", 1.0)
        name = options.pop("name", label)
        if ":" in name or "failure" in inspect.signature(find(name)).parameters:
            # Such a reward checks its own scores; under the sum's policy, or a marked image would stop the run there.
            options.setdefault("failure", failure)
        built[label] = load(name, **options)
    return Composite(built, weights, failure=failure)
