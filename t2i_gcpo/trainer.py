"""The training loop: sample and score, spread the advantages over the tokens, update; and go on after any interruption.

It does not know which algorithm it runs: that is a row of `algorithms.TABLE`.

P prompts, G images a prompt, B = P * G rows, T tokens.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rewards.base import Reward
from rewards.function import FunctionReward
from t2i_gcpo import checkpoint as checkpoints
from t2i_gcpo.algorithms import Algorithm, TokenAdvantages, resolve, token_advantages
from t2i_gcpo.clock import Clock
from t2i_gcpo.generators.base import Distribution, ImageGenerator, Negative
from t2i_gcpo.optim import NonFiniteGuard
from t2i_gcpo.prompts import PromptSampler
from t2i_gcpo.records import Prompt, Sampling, ScoredRollout
from t2i_gcpo.rollout import Collected, collect, collect_informative
from t2i_gcpo.tracking import Tracker
from t2i_gcpo.update import Updater


@dataclass(frozen=True)
class StepRecord:
    """What callbacks see of a finished step. `metrics` may be added to; it is logged after them."""

    step: int
    """Updates done, this one included."""
    metrics: dict[str, float]
    scored: ScoredRollout | None = None
    """The rollout that was trained on; None where no group had reward spread."""
    targets: TokenAdvantages | None = None
    """The very tensors that the loss used."""


Callback = Callable[["Trainer", StepRecord], None]


@dataclass
class Schedule:
    """The learning rate's course and AdamW's options, as in `optim.py`."""

    lr: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    schedule: str = "constant"
    warmup_steps: int = 10
    min_ratio: float = 0.05
    max_grad_norm: float = 1.0


@dataclass
class CheckpointPlan:
    """When checkpoints are written: every `every` steps (0: at the end only), `keep` newest and the best kept."""

    every: int = 50
    keep: int = 2
    keep_best: bool = True


@dataclass
class Trainer:
    """Fine-tunes `generator` on `prompts` for `reward`.

    `reward` is a `Reward` or a function `(images [B, 3, H, W] uint8, prompts, metadata) -> B numbers`. Callbacks are called after
    each step with the trainer and a `StepRecord`. `train()` runs to `steps`; `resume()` before it goes on from a checkpoint.
    """

    generator: ImageGenerator
    reward: Reward | Callable[..., Any]
    prompts: Sequence[Prompt]
    output_dir: str | Path
    algorithm: Algorithm | str = "gcpo"
    steps: int = 200
    prompts_per_step: int = 8
    sampling: Sampling = field(default_factory=lambda: Sampling(guidance=2.0))
    negative_prompt: Negative = None
    distribution: Distribution = "guided"
    epochs: int = 1
    minibatches: int = 1
    micro_batch: int = 16
    balanced: bool = True
    optim: Schedule = field(default_factory=Schedule)
    checkpoint: CheckpointPlan = field(default_factory=CheckpointPlan)
    kl_stop: float | None = None
    max_nonfinite: int = 3
    seed: int = 0
    callbacks: Sequence[Callback] = ()
    tracker: Tracker | None = None
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.algorithm, str):
            self.algorithm = resolve(self.algorithm)
        algorithm = self.algorithm
        if not isinstance(self.reward, Reward) or type(self.reward).__name__ == "function":
            self.reward = FunctionReward(self.reward)
        self.sampling = replace(
            self.sampling,
            group_size=algorithm.group_size,
            contrast=algorithm.needs_contrast,
            stats=tuple(sorted({*self.sampling.stats, *algorithm.needed_stats, "entropy"})),
        )
        self.output_dir = Path(self.output_dir)
        self.rng = torch.Generator().manual_seed(self.seed)
        self.prompt_sampler = PromptSampler(self.prompts, seed=self.seed, balanced=self.balanced)
        self.generator.keep_reference()
        if hasattr(self.generator, "rollouts_ahead"):
            self.generator.rollouts_ahead = self.steps
        self.updater = Updater(
            self.generator,
            algorithm,
            distribution=self.distribution,
            steps=self.steps,
            epochs=self.epochs,
            minibatches=self.minibatches,
            micro_batch=self.micro_batch,
            guard=NonFiniteGuard(self.max_nonfinite),
            **vars(self.optim),
        )
        self.step_number = 0
        self.images_sampled = 0
        self._stop_reason: str | None = None

    # -- one step ------------------------------------------------------------------------------------------------------

    def step(self) -> StepRecord:
        """Sample, score, spread the credit, update. RuntimeError after `max_nonfinite` non-finite updates in a row."""
        clock = Clock(self.generator.device)
        collected = self._collect(clock)
        self.images_sampled += collected.images_sampled
        scored, targets = collected.scored, None
        metrics: dict[str, float] = {}
        if scored is not None:
            algorithm = self._algorithm
            reference_entropy = None
            if algorithm.entropy_reward_coef > 0:
                with clock.phase("forward"):
                    reference_entropy = self.updater.reference_entropy(scored.rollout)
            targets = token_advantages(
                algorithm,
                scored.rollout,
                scored.scores,
                generator=self.rng,
                parts=scored.parts,
                part_weights=getattr(self.reward, "weights", None),
                reference_entropy=reference_entropy,
            )
            metrics = {**reward_metrics(scored), **targets.metrics}
            metrics["entropy"] = float(scored.rollout.stats["entropy"].mean())
            metrics.update(self.updater.update(scored.rollout, targets, clock, self.rng))
        self.step_number += 1
        metrics.update(clock.report())
        metrics["groups/discarded"] = float(collected.groups_discarded)
        metrics["images_sampled"] = float(self.images_sampled)
        tokens = collected.images_sampled * self.generator.grid[0] * self.generator.grid[1]
        metrics["tokens_per_s"] = tokens / metrics["time/step"]
        metrics["lr"] = self.updater.learning_rate
        return StepRecord(self.step_number, metrics, scored, targets)

    def _collect(self, clock: Clock) -> Collected:
        def collect_prompts(prompts: list[Prompt]) -> ScoredRollout:
            return collect(
                self.generator,
                self.reward,  # type: ignore[arg-type]
                prompts,
                self.sampling,
                rng=self.rng,
                negative_prompts=self.negative_prompt,
                phase=clock.phase,
            )

        algorithm = self._algorithm
        if algorithm.dynamic_sampling:
            return collect_informative(
                self.prompt_sampler.draw, collect_prompts, self.prompts_per_step, algorithm.dynamic_sampling_limit
            )
        scored = collect_prompts(self.prompt_sampler.draw(self.prompts_per_step))
        return Collected(scored, scored.rollout.batch, 0)

    @property
    def _algorithm(self) -> Algorithm:
        assert isinstance(self.algorithm, Algorithm)
        return self.algorithm

    # -- the run -------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run to `steps`. Ctrl-C finishes the step, saves and returns; a second Ctrl-C interrupts at once."""
        tracker = self.tracker or Tracker(
            self.output_dir, steps=self.steps, start_step=self.step_number, config=self.config, progress=True
        )
        checkpoints.clean(self.output_dir)
        with _stop_on_interrupt(self), tracker:
            while self.step_number < self.steps and self._stop_reason is None:
                try:
                    record = self.step()
                except RuntimeError as error:
                    if self.updater.guard.in_a_row < self.max_nonfinite:
                        raise
                    self.save()
                    raise FloatingPointError(f"{error}. The checkpoint of step {self.step_number} is saved.") from error
                self._stop_on_kl(record)
                for callback in self.callbacks:
                    callback(self, record)
                tracker.log(record.step, record.metrics)
                self._save_when_due(record)
            if self._stop_reason:
                tracker.say(
                    f"stopped after step {self.step_number} of {self.steps}: {self._stop_reason}; "
                    f"saved in {self.output_dir}, go on with --resume"
                )

    def stop(self, reason: str) -> None:
        """Save and end the run after the present step."""
        self._stop_reason = self._stop_reason or reason

    @property
    def stopped(self) -> str | None:
        """Why the run ended before `steps`, or None."""
        return self._stop_reason

    def _stop_on_kl(self, record: StepRecord) -> None:
        if self.kl_stop is not None and record.metrics.get("kl", 0.0) > self.kl_stop:
            self.stop(f"the KL to the reference is {record.metrics['kl']:.4g} nats a token, above kl_stop = {self.kl_stop}")

    def _save_when_due(self, record: StepRecord) -> None:
        plan, score = self.checkpoint, record.metrics.get("validation/overall")
        best = checkpoints.best(self.output_dir)
        is_best = plan.keep_best and score is not None and (best is None or score > best[1])
        due = bool(plan.every) and record.step % plan.every == 0
        if not (due or is_best or record.step == self.steps or self._stop_reason):
            return
        self.save()
        if is_best:
            checkpoints.record_best(self.output_dir, record.step, score)
        checkpoints.prune(self.output_dir, plan.keep, keep_best=plan.keep_best)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "step": self.step_number,
            "images_sampled": self.images_sampled,
            "rng": self.rng.get_state(),
            "prompts": self.prompt_sampler.state_dict(),
            "updater": self.updater.state_dict(),
        }

    def save(self) -> Path:
        """Write the checkpoint of the present step: a folder that `--checkpoint` takes, and that `resume` goes on from."""
        return checkpoints.save(
            self.output_dir, self.step_number, state=self.state_dict(), save_model=self.generator.save
        )

    def resume(self, path: str | Path | None = None) -> int:
        """Load a checkpoint (None: the newest whole one) and return its step. ValueError where there is none.

        The generator must be as it was at the start of the run: it is the reference.
        """
        path = path or checkpoints.newest(self.output_dir)
        if path is None:
            raise ValueError(f"{self.output_dir} holds no whole checkpoint to resume from; start the run anew in another folder")
        state = checkpoints.load(path)
        self.step_number = state["step"]
        self.images_sampled = state["images_sampled"]
        self.rng.set_state(state["rng"])
        self.prompt_sampler.load_state_dict(state["prompts"])
        self.updater.load_state_dict(state["updater"])
        return self.step_number


def reward_metrics(scored: ScoredRollout) -> dict[str, float]:
    """Mean and spread of the rewards over the images that have one, and the mean of each part."""
    scores = scored.scores[scored.scores.isfinite()]
    metrics = {
        "reward/mean": float(scores.mean()) if len(scores) else float("nan"),
        "reward/std": float(scores.std()) if len(scores) > 1 else 0.0,
    }
    for name, part in scored.parts.items():
        finite = part[part.isfinite()]
        if len(finite):
            metrics[f"reward/part/{name}"] = float(finite.float().mean())
    return metrics


class _stop_on_interrupt:
    """Inside, the first Ctrl-C asks the trainer to stop after the step; the next one interrupts as usual."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.previous: Any = None

    def _handle(self, *_: object) -> None:
        self.trainer.stop("interrupted (Ctrl-C)")
        signal.signal(signal.SIGINT, self.previous)

    def __enter__(self) -> None:
        try:
            self.previous = signal.signal(signal.SIGINT, self._handle)
        except ValueError:  # not the main thread (a demo's worker): nobody presses Ctrl-C there
            self.previous = None

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
