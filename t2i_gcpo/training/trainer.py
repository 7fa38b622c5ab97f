"""The training loop: sample and score, spread the advantages over the tokens, update; and go on after any interruption.

It does not know which algorithm it runs: that is a row of `algorithms.TABLE`.

P prompts, G images a prompt, B = P * G rows, T tokens.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rewards.base import Reward
from rewards.function import as_reward
from t2i_gcpo.algorithms import Algorithm, TokenAdvantages, resolve, token_advantages
from t2i_gcpo.data.prompts import read
from t2i_gcpo.data.sampler import PromptSampler
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.generators.base import DISTRIBUTIONS, Distribution, ImageGenerator, Negative, as_prompts
from t2i_gcpo.records import Prompt, Sampling, ScoredRollout
from t2i_gcpo.training import checkpoint as checkpoints
from t2i_gcpo.training.optim import NonFiniteGuard
from t2i_gcpo.training.options import CheckpointPlan, Schedule
from t2i_gcpo.training.rollout import Collected, collect, collect_informative, diversity
from t2i_gcpo.training.tracker import Tracker, check_unused
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils.clock import Clock
from t2i_gcpo.utils.interrupt import on_interrupt

__all__ = ["Callback", "CheckpointPlan", "Schedule", "StepRecord", "Trainer"]


@dataclass(frozen=True)
class StepRecord:
    """What callbacks see of a finished step. `metrics` may be added to; it is logged after them."""

    step: int
    """Steps done, this one included."""
    metrics: dict[str, float]
    scored: ScoredRollout | None = None
    """The rollout that was trained on; None where no group had reward spread."""
    targets: TokenAdvantages | None = None
    """The very tensors that the loss used."""


Callback = Callable[["Trainer", StepRecord], None]


@dataclass(eq=False)
class Trainer:
    """Fine-tunes `generator` on `prompts` for `reward`.

        def redness(images, prompts, metadata):                       # [B, 3, H, W] uint8 -> B numbers
            return images[:, 0].float().mean(dim=(1, 2)) / 255

        trainer = Trainer(generators.load("janus-mini"), redness, "shapes:train", "runs/red", algorithm="gcpo", steps=50)
        trainer.train()

    `trainer.resume()` before `train()` goes on from the newest checkpoint. A run that is resumed is the run uninterrupted, bit for
    bit on the CPU of one machine, if the generator is the one that the run began with and the arguments are the same.
    """

    generator: ImageGenerator
    reward: Reward | Callable[..., Any]
    """A reward, or a function `(images [B, 3, H, W] uint8, prompts, metadata) -> B numbers`."""
    prompts: str | Path | Sequence[Prompt | str]
    """Prompts, or what `prompts.read` reads: a file, or shapes:train."""
    output_dir: str | Path
    algorithm: Algorithm | str = "gcpo"
    steps: int = 200
    prompts_per_step: int = 8
    sampling: Sampling = field(default_factory=lambda: Sampling(guidance=2.0))
    """Its group size, contrast and statistics are those that the algorithm needs, its seed is drawn for each rollout."""
    negative_prompt: Negative = None
    distribution: Distribution = "guided"
    epochs: int = 1
    """Passes over a rollout."""
    minibatches: int = 1
    """Optimiser steps a pass."""
    micro_batch: int = 16
    """Rows in one training forward and backward pass: changes memory and time, not the update."""
    balanced: bool = True
    """Draw the prompts' tasks in equal parts."""
    optim: Schedule = field(default_factory=Schedule)
    checkpoint: CheckpointPlan = field(default_factory=CheckpointPlan)
    kl_stop: float | None = None
    """Stop the run where the KL to the reference exceeds this many nats a token."""
    max_nonfinite: int = 3
    """Give up after this many updates in a row with a non-finite loss or gradient."""
    seed: int = 0
    callbacks: Sequence[Callback] = ()
    """Called after each step with the trainer and a `StepRecord`."""
    tracker: Tracker | None = None
    """Who passes one closes it. None: `train` makes one, with metrics.jsonl and a progress bar."""
    config: dict[str, Any] | None = None
    """What the trainer's own tracker shows of the run's options."""

    def __post_init__(self) -> None:
        self.algorithm = algorithm = resolve(self.algorithm) if isinstance(self.algorithm, str) else self.algorithm
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution is {self.distribution!r}; allowed: {', '.join(DISTRIBUTIONS)}")
        self.reward = as_reward(self.reward)
        prompts = read(self.prompts) if isinstance(self.prompts, (str, Path)) else as_prompts(self.prompts)
        self.sampling = replace(
            self.sampling,
            group_size=algorithm.group_size,
            contrast=algorithm.needs_contrast,
            stats=tuple(sorted({*self.sampling.stats, *algorithm.needed_stats, "entropy"})),
        )
        self.output_dir = Path(self.output_dir)
        self.rng = torch.Generator().manual_seed(self.seed)
        self.generator.check_prompts(prompts)
        check_scorable(prompts, self.reward)
        self.prompt_sampler = PromptSampler(prompts, seed=self.seed, balanced=self.balanced)
        self.generator.keep_reference()
        if hasattr(self.generator, "compiles"):
            self.generator.compiles.rollouts_ahead = self.steps
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
        self.interrupted = False
        """Whether Ctrl-C ended the last `train`."""
        self._stop_reason: str | None = None
        self._validation: float | None = None  # the present step's score, where there is one
        self._saved_step: int | None = None
        self._begun = False

    # -- one step ------------------------------------------------------------------------------------------------------

    def step(self) -> StepRecord:
        """Sample, score, spread the credit, update. FloatingPointError after `max_nonfinite` non-finite updates in a row."""
        clock, lr = Clock(self.generator.device), self.updater.learning_rate
        collected = self._collect(clock)
        self.images_sampled += len(collected.scores)
        metrics, scored, targets = collected.metrics(), collected.scored, None
        if scored is not None:
            targets = self._targets(scored, clock)
            metrics |= {**targets.metrics, "diversity": diversity(scored.rollout)}
            metrics["entropy"] = float(scored.rollout.stats["entropy"].mean())
            if bool(targets.mask.any()):  # else every image failed, and there is nothing to learn from
                metrics |= self.updater.update(scored.rollout, targets, clock, self.rng)
        self.step_number += 1
        metrics |= {"lr": lr, "images_sampled": float(self.images_sampled), **clock.report()}
        metrics["tokens_per_s"] = len(collected.scores) * math.prod(self.generator.grid) / metrics["time/step"]
        return StepRecord(self.step_number, metrics, scored, targets)

    def _collect(self, clock: Clock) -> Collected:
        def collect_prompts(prompts: list[Prompt]) -> ScoredRollout:
            return collect(
                self.generator,
                as_reward(self.reward),
                prompts,
                self.sampling,
                rng=self.rng,
                negative_prompts=self.negative_prompt,
                phase=clock.phase,
            )

        draw, wanted, algorithm = self.prompt_sampler.draw, self.prompts_per_step, self._algorithm
        if algorithm.dynamic_sampling:
            return collect_informative(draw, collect_prompts, wanted, algorithm.dynamic_sampling_limit)
        scored = collect_prompts(draw(wanted))
        return Collected(scored, scored.scores, scored.parts)

    def _targets(self, scored: ScoredRollout, clock: Clock) -> TokenAdvantages:
        """Group advantages times token weights."""
        reference_entropy = None
        if self._algorithm.entropy_reward_coef > 0:
            with clock.phase("forward"):
                reference_entropy = self.updater.reference_entropy(scored.rollout)
        with clock.phase("credit"):
            return token_advantages(
                self._algorithm,
                scored.rollout,
                scored.scores,
                generator=self.rng,
                parts=scored.parts,
                part_weights=as_reward(self.reward).weights,
                reference_entropy=reference_entropy,
            )

    @property
    def _algorithm(self) -> Algorithm:
        assert isinstance(self.algorithm, Algorithm)
        return self.algorithm

    # -- the run -------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run to `steps`. Ctrl-C finishes the step, saves and returns; a second Ctrl-C interrupts at once.

        An error (of the reward, of a callback, a loss that stays non-finite) ends the run with a saved checkpoint.
        """
        rounds = self.iterate()
        with on_interrupt(self._interrupt):
            for _ in rounds:
                pass

    def iterate(self) -> Iterator[StepRecord]:
        """As `train`, a step at a time: hands out each step's record when it is logged. Ctrl-C is the caller's affair.

        After `stop(reason)` the next round saves the present step and ends. A loop that is left in its middle saves nothing more.
        """
        self._stop_reason, self.interrupted = None, False
        return self._rounds()

    def _rounds(self) -> Iterator[StepRecord]:
        if self.tracker is not None:
            yield from self._run(self.tracker)
            return
        if not self._begun:
            check_unused(self.output_dir)
        with Tracker(
            self.output_dir, steps=self.steps, start_step=self.step_number, config=self.config, progress=True
        ) as self.tracker:
            try:
                yield from self._run(self.tracker)
            finally:
                self.tracker = None

    def _run(self, tracker: Tracker) -> Iterator[StepRecord]:
        self._begun = True
        checkpoints.clean(self.output_dir)
        while self.step_number < self.steps and self._stop_reason is None:
            before = self._position()
            try:
                record = self.step()
                self._finish(record, tracker)
            except Exception as error:
                self._rescue(error, before, tracker)
                raise
            yield record
        if self._stop_reason and self._saved_step != self.step_number:
            self.save()
        if self._stop_reason:
            tracker.say(
                f"stopped after step {self.step_number} of {self.steps}: {self._stop_reason}. {self._how_to_go_on()}"
            )

    def _finish(self, record: StepRecord, tracker: Tracker) -> None:
        """What follows a step: callbacks, the log, a checkpoint where one is due."""
        kl = record.metrics.get("kl", 0.0)
        if self.kl_stop is not None and kl > self.kl_stop:
            self.stop(f"the KL to the reference is {kl:.4g} nats a token, above kl_stop = {self.kl_stop:g}")
        try:
            for callback in self.callbacks:
                callback(self, record)
        finally:
            tracker.log(record.step, record.metrics)
        self._validation = record.metrics.get("validation/overall")
        plan, best, score = self.checkpoint, checkpoints.best(self.output_dir), self._validation
        is_best = plan.keep_best and score is not None and (best is None or score > best[1])
        due = bool(plan.every) and record.step % plan.every == 0
        if due or is_best or record.step == self.steps or self._stop_reason:
            self.save()
            self._keep_best()
            checkpoints.prune(self.output_dir, plan.keep, keep_best=plan.keep_best)

    def _keep_best(self) -> None:
        if self.checkpoint.keep_best and self._validation is not None:
            checkpoints.record_best(self.output_dir, self.step_number, self._validation)

    def stop(self, reason: str) -> None:
        """Save and end the run after the present step."""
        self._stop_reason = self._stop_reason or reason

    @property
    def stopped(self) -> str | None:
        """Why the last `train` ended before `steps`, or None."""
        return self._stop_reason

    def _interrupt(self) -> None:
        self.interrupted = True
        self.stop("interrupted (Ctrl-C)")
        if self.tracker is not None:
            self.tracker.say("Ctrl-C: the step is finished and saved first; press it again to stop at once")

    def _rescue(self, error: Exception, before: dict[str, Any], tracker: Tracker) -> None:
        """Save what was trained before an error ends the run."""
        if isinstance(error, FloatingPointError):
            self.updater.guard.in_a_row = 0  # the resumed run draws other images, and may try as often
        elif self.step_number == 0:
            return  # nothing to lose
        elif self.step_number == before["step"] and not self.updater.under_way:
            self._set_position(before)  # nothing was learnt from this step: the resumed run repeats it
        with contextlib.suppress(OSError):  # a full disk must not hide the error
            if self._saved_step != self.step_number or isinstance(error, FloatingPointError):
                self.save()
            tracker.say(f"stopped by an error after step {self.step_number} of {self.steps}. {self._how_to_go_on()}")

    def _how_to_go_on(self) -> str:
        return f"The checkpoint is saved; go on with: t2i-gcpo train --output-dir {self.output_dir} --resume"

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _position(self) -> dict[str, Any]:
        """Where the run is, but for the weights: what a step changes before it updates them."""
        return {
            "step": self.step_number,
            "images_sampled": self.images_sampled,
            "rng": self.rng.get_state(),
            "prompts": self.prompt_sampler.state_dict(),
        }

    def _set_position(self, state: dict[str, Any]) -> None:
        self.step_number, self.images_sampled = state["step"], state["images_sampled"]
        self.rng.set_state(state["rng"])
        self.prompt_sampler.load_state_dict(state["prompts"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        state = {**self._position(), "updater": self.updater.state_dict(), "validation": self._validation}
        return {**state, "options": self._options()}

    def _options(self) -> dict[str, Any]:
        """What decides what is trained on what, nested."""
        names = ("negative_prompt", "distribution", "prompts_per_step", "epochs", "minibatches", "balanced", "seed")
        groups = {"algorithm": asdict(self._algorithm), "sampling": asdict(self.sampling), "optim": asdict(self.optim)}
        return {**groups, **{name: getattr(self, name) for name in names}}

    def save(self) -> Path:
        """Write the checkpoint of the present step: a folder that `--checkpoint` takes, and that `resume` goes on from."""
        path = checkpoints.save(
            self.output_dir, self.step_number, state=self.state_dict(), save_model=self.generator.save
        )
        self._saved_step = self.step_number
        return path

    def resume(self, path: str | Path | None = None) -> int:
        """Load a checkpoint (None: the newest whole one) and return its step.

        The generator must be as it was at the start of the run: it is the reference. ValueError: there is no checkpoint, or it is
        that of a run with other options.
        """
        found = path or checkpoints.newest(self.output_dir)
        if found is None:
            raise ValueError(
                f"{self.output_dir} holds no whole checkpoint to resume from; start the run anew in another folder"
            )
        state = checkpoints.load(found)
        checkpoints.check_resumable(state["options"], self._options())
        self._set_position(state)
        self.updater.load_state_dict(state["updater"])
        self._validation, self._begun = state["validation"], True
        if path is None:
            self._saved_step = self.step_number
            self._keep_best()  # the run may have been killed before it noted its best score
        return self.step_number
