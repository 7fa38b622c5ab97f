"""The options of a training: one frozen dataclass for each part of it, with its defaults, docstrings and checks.

`Trainer` and `Updater` take these groups, and the command's configuration is composed of them, so that an option is
declared here once and refused with the same sentence from Python, the command line and a YAML.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from t2i_gcpo.algorithms import Algorithm
from t2i_gcpo.records import SamplingOptions
from t2i_gcpo.utils.checks import LARGEST_SEED, above_zero, at_least, at_most, declared, share

DEFAULT_ALGORITHM = "gcpo"
_FLOAT32_MAX = 3.4028235e38


@dataclass(frozen=True)
class LoopOptions:
    """Says how long a run is and how a rollout is used."""

    steps: int = 200
    """Training steps: each samples images, scores them and updates the generator."""
    max_images: int = 0
    """End the run after the step in which it has sampled this many images, those that dynamic sampling discards
    included: a budget that is fair to algorithms that discard some; 0 is off. `steps` stays the upper limit, and sets
    the learning rate's course."""
    prompts_per_step: int = 8
    """Prompts of a rollout; each gets `algorithm.group-size` images."""
    distribution: Literal["conditional", "guided", "guided_detached"] = "guided"
    """Whose log-probs are trained: the generator's under the prompt, those of the guided mix that was sampled, or the
    latter without gradient through the unconditional branch."""
    epochs: int = 1
    """Passes of the optimiser over a rollout."""
    minibatches: int = 1
    """Optimiser steps a pass; the rollout's images are dealt out evenly."""
    micro_batch: int = 16
    """Rows in one training forward and backward pass; gradients are accumulated, so it changes memory and time, not the
    update."""
    reduce_gradients: Literal["update", "micro_batch"] = "update"
    """When several processes sum their gradients: once an `update`, for which each adds up whole fp32 gradients, or
    after each `micro_batch`, which sends as many times the bytes and leaves each process its share of the sum. It
    changes memory and time, not the update."""
    kl_stop: float | None = None
    """Stop the run when the KL to the reference exceeds this many nats a token; null never does."""
    kl_every: int = 10
    """Steps between measurements of the KL to the reference in a run whose loss and `kl_stop` do without it: it takes
    another forward pass, and a copy of the trained weights; 0 measures none, and keeps no copy."""
    max_nonfinite: int = 3
    """Stop the run after this many updates in a row with a non-finite loss or gradient, each of which is skipped, or
    steps in a row without any score."""
    seed: int = 0
    """Every random choice of the run follows from it."""

    def __post_init__(self) -> None:
        declared(self)
        at_least(0, seed=self.seed, kl_every=self.kl_every, max_images=self.max_images)
        at_most(LARGEST_SEED, seed=self.seed)
        at_least(1, steps=self.steps, prompts_per_step=self.prompts_per_step)
        at_least(1, epochs=self.epochs, minibatches=self.minibatches, micro_batch=self.micro_batch)
        at_least(1, max_nonfinite=self.max_nonfinite)
        above_zero(kl_stop=self.kl_stop)

    def kl_always(self, algorithm: Algorithm) -> bool:
        """Return whether every step needs the log-probs under the reference: for the loss, or for `kl_stop`."""
        return algorithm.needs_reference or self.kl_stop is not None

    def kl_due(self, algorithm: Algorithm, step: int) -> bool:
        """Return whether step `step` (1, 2, ...) measures the KL to the reference."""
        return self.kl_always(algorithm) or (self.kl_every > 0 and step % self.kl_every == 0)

    def check_rollout(self, algorithm: Algorithm) -> None:
        """Raise ValueError where the mini-batches do not divide the images, or the algorithm takes one update only."""
        if algorithm.event_width > 0 and self.epochs * self.minibatches > 1:
            raise ValueError(
                f"algorithm.event_width is {algorithm.event_width}, epochs {self.epochs} and minibatches "
                f"{self.minibatches}: which tokens are one event changes with the weights, so a rollout serves one "
                "update; set epochs and minibatches to 1, or algorithm.event_width to 0"
            )
        rows = self.prompts_per_step * algorithm.group_size
        if rows % self.minibatches:
            raise ValueError(
                f"minibatches is {self.minibatches}, which does not divide the {rows} images of a rollout "
                f"(prompts_per_step {self.prompts_per_step} x algorithm.group_size {algorithm.group_size})"
            )


@dataclass(frozen=True)
class SamplingConfig(SamplingOptions):
    """Says how the rollout's images are sampled."""

    negative_prompt: str | None = None
    """The prompt that GCPO contrasts with; null is the null prompt of classifier-free guidance, which costs no extra
    forward pass."""

    def __post_init__(self) -> None:
        declared(self, "sampling.")
        above_zero("sampling.", temperature=self.temperature)
        super().__post_init__()

    @classmethod
    def of(cls, options: SamplingOptions) -> SamplingConfig:
        """Return the group of a training from any group of sampling options."""
        if isinstance(options, SamplingConfig):
            return options
        return cls(**{field.name: vars(options)[field.name] for field in fields(SamplingOptions)})


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay; norms, biases and other one-dimensional parameters have none."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up, over `steps`."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    min_ratio: float = 0.05
    """Share of the peak learning rate that linear and cosine end at."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    average_decay: float = 0.0
    """Decay an update of an exponential moving average of the trained weights, e.g. 0.99, which is scored on the
    validation prompts and saved in each checkpoint's folder `average`; it takes fp32 copies of them. 0 keeps none."""
    reference_every: int = 0
    """Steps with an update after which the reference of the KL is moved to the policy, as TR-DPO (2404.09656) does; it
    takes an fp32 copy of what is trained. 0 leaves the reference at the start of the run."""
    reference_decay: float = 0.0
    """Share of the old reference that stays when it is moved: 0 copies the policy, 0.99 with `reference_every: 1` is a
    moving average."""

    def __post_init__(self) -> None:
        declared(self, "optim.")
        above_zero("optim.", lr=self.lr, eps=self.eps, max_grad_norm=self.max_grad_norm)
        at_least(0, "optim.", weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)
        share("optim.", min_ratio=self.min_ratio)
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"optim.average_decay is {self.average_decay}; it must be in [0, 1) (0 keeps no average)")
        at_least(0, "optim.", reference_every=self.reference_every)
        if not 0 <= self.reference_decay < 1:
            raise ValueError(f"optim.reference_decay is {self.reference_decay}; it must be in [0, 1) (0 copies)")
        if self.reference_decay and not self.reference_every:
            raise ValueError(
                f"optim.reference_decay is {self.reference_decay}, and optim.reference_every is 0: the reference does "
                "not move; set reference_every to 1 for a moving average, or leave reference_decay out"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas are {self.betas}; each must be in [0, 1)")
        # AdamW's first step is the rate over 1 - beta, its decay the rate times the decay.
        largest = min((1 - self.betas[0]) * _FLOAT32_MAX, _FLOAT32_MAX / max(self.weight_decay, 1.0))
        if self.lr > largest:
            raise ValueError(f"optim.lr is {self.lr}; it must be at most {largest:g}, or a step leaves float32's range")

    def check_reference(self, *, looked_at: bool) -> None:
        """Raise ValueError where a reference moves that nothing looks at."""
        if self.reference_every and not looked_at:
            raise ValueError(
                f"optim.reference_every is {self.reference_every}, and nothing looks at the reference: the loss has no "
                "KL term, and kl_every is 0; set algorithm.kl_coef or kl_every, or leave reference_every out"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: int = 50
    """Steps between checkpoints; 0 writes one at the end only."""
    keep: int = 2
    """Newest checkpoints kept; 0 keeps all."""
    keep_best: bool = True
    """Keep the checkpoint with the best validation score as well."""
    asynchronous: bool = False
    """Write a checkpoint while training goes on: a save then takes as long as a copy into the host's memory, which must
    have room for all that is written. The last one of a run is written at once."""

    def __post_init__(self) -> None:
        declared(self, "checkpoint.")
        at_least(0, "checkpoint.", every=self.every, keep=self.keep)


@dataclass(frozen=True)
class LoggingConfig:
    """Says where the metrics go besides metrics.jsonl, which is always written."""

    tensorboard: bool = True
    """Write event files into the run folder."""
    wandb: bool = False
    """Log to Weights & Biases (extra: tracking)."""
    trackio: bool = False
    """Log to Trackio (extra: tracking)."""
    project: str = "t2i-gcpo"
    """Project name for wandb and trackio."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        declared(self, "logging.")


@dataclass(frozen=True)
class PicturesConfig:
    """Sample images and credit heatmaps in the run folder."""

    every: int = 10
    """Steps between pictures; 0 switches them off."""
    prompts: int = 2
    """Prompts a picture."""
    candidates: int = 8
    """Prompts that those of the pictures are chosen from before training, by one group of images each: those whose
    scores differ most, as the model sometimes fails them. As many as `prompts` or fewer: no choice."""
    group: int = 4
    """Images of each prompt in a picture, at most the group."""

    def __post_init__(self) -> None:
        declared(self, "pictures.")
        at_least(0, "pictures.", every=self.every)
        at_least(1, "pictures.", prompts=self.prompts, candidates=self.candidates, group=self.group)


@dataclass(frozen=True)
class WatchConfig:
    """Watching for reward hacking on the images that are trained on."""

    rewards: tuple[str, ...] = ()
    """Scorers that are logged as held_out/NAME and never trained on: registered names, or module:callable."""
    every: int = 1
    """Steps between their scores."""

    def __post_init__(self) -> None:
        declared(self, "watch.")
        at_least(1, "watch.", every=self.every)
        twice = sorted({name for name in self.rewards if self.rewards.count(name) > 1})
        if twice:
            raise ValueError(f"watch.rewards names {', '.join(twice)} more than once")


#: Seconds of a year; beyond some hundred of them clocks overflow.
YEAR = 365 * 24 * 3600


@dataclass(frozen=True)
class RanksConfig:
    """The processes of a run that torchrun started."""

    timeout: float = 1800.0
    """Seconds that a process waits for another before all end; more than the slowest reward takes."""

    def __post_init__(self) -> None:
        declared(self, "ranks.")
        above_zero("ranks.", timeout=self.timeout)
        if self.timeout > YEAR:
            raise ValueError(f"ranks.timeout is {self.timeout:g} seconds; it must be at most a year, {YEAR}")


#: The names of the same classes in Python programs.
Schedule = OptimConfig
CheckpointPlan = CheckpointConfig


def with_options(groups: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Change single options of groups by their names alone: `{"lr": 1e-4}` changes `groups["optim"]`.

    ValueError for a name that no group has, saying what to write instead.
    """
    owners = {field.name: name for name, group in groups.items() for field in fields(group)}
    owners.pop("name", None)  # an algorithm's name is given as `algorithm`
    changes: dict[str, dict[str, Any]] = {name: {} for name in groups}
    for name, value in options.items():
        if name not in owners:
            close = difflib.get_close_matches(name, owners, n=1)
            hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(sorted(owners))}"
            raise ValueError(f"Trainer has no option {name!r}; {hint}")
        changes[owners[name]][name] = value
    return {name: replace(group, **changes[name]) for name, group in groups.items()}
