"""The run around the steps: callbacks, the log, checkpoints, and going on after any interruption.

What one step does is in `step.py`.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from rewards.base import Reward
from rewards.function import as_reward
from t2i_gcpo.algorithms import Algorithm, resolve
from t2i_gcpo.data.options import PromptsConfig
from t2i_gcpo.data.prompts import read
from t2i_gcpo.data.sampler import PromptSampler
from t2i_gcpo.evaluation.scorable import check_scorable
from t2i_gcpo.generators.base import ImageGenerator, as_prompts
from t2i_gcpo.records import Prompt, Sampling, SamplingOptions
from t2i_gcpo.training import checkpoint as checkpoints
from t2i_gcpo.training.options import (
    DEFAULT_ALGORITHM,
    CheckpointPlan,
    LoggingConfig,
    LoopOptions,
    SamplingConfig,
    Schedule,
    with_options,
)
from t2i_gcpo.training.resume import built_options, check_same_run, fingerprint, state_problem
from t2i_gcpo.training.step import Step, StepRecord
from t2i_gcpo.training.tracker import Tracker, check_unused
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils.interrupt import CTRL_C, on_interrupt, on_save_request
from t2i_gcpo.utils.lock import locked

#: What to do where another process trains in the same folder.
IN_USE = "wait for its end or stop it, or name another folder (--output-dir)"

__all__ = ["Callback", "CheckpointPlan", "Schedule", "StepRecord", "Trainer"]


class Trainer:
    """Fine-tune `generator` on `prompts` for `reward`.

    >>> def redness(images, prompts, metadata):  # [B, 3, H, W] uint8 -> B numbers
    ...     return images[:, 0].float().mean(dim=(1, 2)) / 255
    >>> trainer = Trainer(
    ...     generator, redness, "shapes:train", "runs/red", algorithm="gcpo", steps=1, prompts_per_step=1, group_size=2
    ... )
    >>> trainer.train()
    >>> trainer.step_number, trainer.images_sampled
    (1, 2)

    `trainer.resume()` before `train()` goes on from the newest checkpoint. A run that is resumed is the run
    uninterrupted, bit for bit on the CPU of one machine, if the generator is the one that the run began with and the
    arguments are the same.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        reward: Reward | Callable[..., Any],
        prompts: str | Path | Sequence[Prompt | str],
        output_dir: str | Path,
        *,
        algorithm: Algorithm | str = DEFAULT_ALGORITHM,
        loop: LoopOptions = LoopOptions(),  # noqa: B008 (frozen)
        sampling: SamplingOptions = SamplingConfig(),  # noqa: B008
        optim: Schedule = Schedule(),  # noqa: B008
        checkpoint: CheckpointPlan = CheckpointPlan(),  # noqa: B008
        balanced: bool = PromptsConfig.balanced,
        callbacks: Sequence[Callback] = (),
        tracker: Tracker | None = None,
        config: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Set up a run; nothing is written or sampled before `train`.

        reward: a reward, or a function `(images [B, 3, H, W] uint8, prompts, metadata) -> B numbers`. prompts: what
        `prompts.read` reads (a file, or shapes:train), or the prompts themselves. algorithm: a row's name, or
        `resolve(name, ...)`. sampling: of a `Sampling`, the group size, contrast and statistics are replaced by those
        that the algorithm needs, and the seed by one drawn for each rollout. balanced: draw the prompts' tasks in equal
        parts. callbacks: called after each step with the trainer and a `StepRecord`. tracker: who passes one closes it;
        without one `train` makes one, with metrics.jsonl and a progress bar. config: what the trainer's own tracker
        shows of the run's options.

        options: any option of `algorithm`, `loop`, `sampling`, `optim` and `checkpoint` by its own name, e.g. steps=50,
        group_size=16, guidance=3.0, lr=1e-4. ValueError for an option or a value that is not allowed.
        """
        groups: dict[str, Any] = {
            "algorithm": resolve(algorithm) if isinstance(algorithm, str) else algorithm,
            "loop": loop,
            "sampling": _training_sampling(sampling),
            "optim": optim,
            "checkpoint": checkpoint,
        }
        groups = with_options(groups, options)
        self.generator = generator
        self.reward: Reward = as_reward(reward)
        self.output_dir = Path(output_dir).expanduser()
        self.algorithm: Algorithm = groups["algorithm"]
        self.loop: LoopOptions = groups["loop"]
        self.optim: Schedule = groups["optim"]
        self.checkpoint: CheckpointPlan = groups["checkpoint"]
        self.negative_prompt: str | None = groups["sampling"].negative_prompt
        self.balanced, self.callbacks, self.tracker, self.config = balanced, callbacks, tracker, config
        self.loop.check_rollout(self.algorithm)
        stats = sampling.stats if isinstance(sampling, Sampling) else ()
        self.sampling = Sampling.of(
            groups["sampling"],
            group_size=self.algorithm.group_size,
            contrast=self.algorithm.needs_contrast,
            stats=tuple(sorted({*stats, *self.algorithm.needed_stats, "entropy"})),
        )
        rows = read(prompts) if isinstance(prompts, (str, Path)) else as_prompts(prompts)
        self.generator.check_prompts(rows)
        check_scorable(rows, self.reward)
        self.prompt_sampler = PromptSampler(rows, seed=self.loop.seed, balanced=balanced)
        self.rng = torch.Generator().manual_seed(self.loop.seed)
        self.generator.keep_reference()
        self.generator.prepare(rollouts_ahead=self.steps)
        # A plain function has no identity but its name, which says nothing of what it does.
        self._scorer = self.reward.identity() if self.reward is reward else None
        self._began_with = fingerprint(self.generator.policy)
        self.updater = Updater(self.generator, self.algorithm, self.loop, self.optim)
        self._step = Step(
            self.generator,
            self.reward,
            self.algorithm,
            self.updater,
            self.prompt_sampler,
            self.sampling,
            self.negative_prompt,
            self.loop.prompts_per_step,
            self.rng,
        )
        self.step_number = 0
        self.images_sampled = 0
        self.images_scored = 0
        """Sampled images that have a score."""
        self.interrupted_by: str | None = None
        """What ended the last `train` before its time, "Ctrl-C" or "SIGTERM", or None."""
        self._save_requested = False
        self._unscored_steps = 0  # in a row
        self._stop_reason: str | None = None
        self._validation: float | None = None  # the present step's score, where there is one
        self._saved_step: int | None = None
        self._begun = False

    @property
    def steps(self) -> int:
        """Return the step that the run ends at.

        Setting it makes the run longer or shorter, and with it the learning rate's course.
        """
        return self.loop.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self.loop = self.updater.loop = replace(self.loop, steps=steps)

    def step(self) -> StepRecord:
        """Sample, score, spread the credit, update.

        FloatingPointError after `max_nonfinite` non-finite updates in a row.
        """
        outcome = self._step()
        self.step_number += 1
        self.images_sampled += outcome.images
        self.images_scored += outcome.images_scored
        self._unscored_steps = 0 if outcome.images_scored else self._unscored_steps + 1
        metrics = {**outcome.metrics, "images_sampled": float(self.images_sampled)}
        return StepRecord(self.step_number, metrics, outcome.scored, outcome.targets)

    # -- the run -------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run to `steps`.

        Ctrl-C and SIGTERM finish the step, save and return; a second Ctrl-C interrupts at once. SIGUSR1 saves.

        An error (of the reward, of a callback, a loss that stays non-finite) ends the run with a saved checkpoint.
        FloatingPointError where the weights, or the log-probs that they give, are not finite, which are not saved, or
        where no image got a score.
        ValueError where another process trains in the folder.
        """
        rounds = self.iterate()
        with on_interrupt(self._interrupt), on_save_request(self.request_save):
            for _ in rounds:
                pass

    def iterate(self) -> Iterator[StepRecord]:
        """Run to `steps` and yield each step's record when it is logged. Signals are the caller's affair.

        After `stop(reason)` the next round saves the present step and ends. A loop that is left in its middle saves
        nothing more.
        """
        self._stop_reason = self.interrupted_by = None
        return self._locked_rounds()

    def _locked_rounds(self) -> Iterator[StepRecord]:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with locked(self.output_dir, remedy=IN_USE):
            yield from self._rounds()

    def _rounds(self) -> Iterator[StepRecord]:
        if self.tracker is not None:
            yield from self._run(self.tracker)
            return
        if not self._begun:
            check_unused(self.output_dir)
        with Tracker(
            self.output_dir,
            steps=self.steps,
            start_step=self.step_number,
            config=self.config,
            logging=LoggingConfig(tensorboard=False),
        ) as self.tracker:
            try:
                yield from self._run(self.tracker)
            finally:
                self.tracker = None

    def _run(self, tracker: Tracker) -> Iterator[StepRecord]:
        self._begun = True
        checkpoints.clean(self.output_dir)
        (self.output_dir / checkpoints.FOLDER).mkdir(
            exist_ok=True
        )  # a run whose folder of checkpoints is missing has lost them
        while self.step_number < self.steps and self._stop_reason is None:
            before = self._position()
            try:
                record = self.step()
                self._finish(record, tracker)
                self._check_scores()
            except Exception as error:
                self._rescue(error, before, tracker)
                raise
            yield record
        if self.step_number and not self.images_scored:
            raise FloatingPointError("no image of the run has a score, and nothing was learnt; mend the scorer")
        if self._stop_reason and self._saved_step != self.step_number:
            self.save()
        if self._stop_reason:
            tracker.say(
                f"stopped after step {self.step_number} of {self.steps}: {self._stop_reason}. {self._how_to_go_on()}"
            )

    def _finish(self, record: StepRecord, tracker: Tracker) -> None:
        """Do what follows a step: callbacks, the log, a checkpoint where one is due."""
        kl = record.metrics.get("kl", 0.0)
        limit = self.loop.kl_stop
        if limit is not None and kl > limit:
            self.stop(f"the KL to the reference is {kl:.4g} nats a token, above kl_stop = {limit:g}")
        try:
            for callback in self.callbacks:
                callback(self, record)
        finally:
            tracker.log(record.step, record.metrics)
        self._validation = record.metrics.get("validation/overall")
        plan, best, score = self.checkpoint, checkpoints.best(self.output_dir), self._validation
        is_best = plan.keep_best and score is not None and (best is None or score > best[1])
        due = bool(plan.every) and record.step % plan.every == 0
        if due or is_best or record.step == self.steps or self._stop_reason or self._save_requested:
            self._save_requested = False
            self.save()
            self._keep_best()
            checkpoints.prune(self.output_dir, plan.keep, keep_best=plan.keep_best, step=record.step)

    def _check_scores(self) -> None:
        """Warn of a step without any score. FloatingPointError after too many of them in a row."""
        if self._unscored_steps == 1:
            warnings.warn(f"no image of step {self.step_number} has a score: nothing is learnt from it", stacklevel=2)
        if self._unscored_steps >= self.loop.max_nonfinite:
            raise FloatingPointError(
                f"no image of the last {self._unscored_steps} steps has a score, and nothing was learnt from them; "
                "mend the scorer"
            )

    def _keep_best(self) -> None:
        if self.checkpoint.keep_best and self._validation is not None:
            checkpoints.record_best(self.output_dir, self.step_number, self._validation)

    def stop(self, reason: str) -> None:
        """Save and end the run after the present step."""
        self._stop_reason = self._stop_reason or reason

    @property
    def stopped(self) -> str | None:
        """Return why the last `train` ended before `steps`, or None."""
        return self._stop_reason

    @property
    def interrupted(self) -> bool:
        """Return whether Ctrl-C or SIGTERM ended the last `train`."""
        return self.interrupted_by is not None

    def request_save(self) -> None:
        """Save a checkpoint after the present step, and go on."""
        self._save_requested = True

    def _interrupt(self, by: str = CTRL_C) -> None:
        if self.tracker is not None and by == CTRL_C:
            self.tracker.say("Ctrl-C: the step is finished and saved first; press it again to stop at once")
        elif self.tracker is not None and self.interrupted_by is None:
            self.tracker.say(f"{by}: the step is finished and saved first")
        self.interrupted_by = self.interrupted_by or by
        self.stop(f"interrupted ({by})")

    def _rescue(self, error: Exception, before: dict[str, Any], tracker: Tracker) -> None:
        """Save what was trained before an error ends the run."""
        stopped = f"stopped by an error after step {self.step_number} of {self.steps}."
        if isinstance(error, FloatingPointError):
            self.updater.guard.in_a_row = 0  # the resumed run draws other images, and may try as often
        elif self.step_number == 0:
            return  # nothing to lose
        elif self.step_number == before["step"] and not self.updater.incomplete:
            self._set_position(before)  # nothing was learnt from this step: the resumed run repeats it
        try:
            if self._saved_step != self.step_number or isinstance(error, FloatingPointError):
                self.save()
        except FloatingPointError as useless:
            what = str(useless).partition(";")[0]
            tracker.say(f"{stopped} Its weights were not saved ({what}); the checkpoints before it are as they were")
        except Exception as second:  # it must not hide the first error
            if str(second) != str(error):
                tracker.say(f"{stopped} {second}")
        else:
            tracker.say(f"{stopped} {self._how_to_go_on()}")

    def _how_to_go_on(self) -> str:
        return f"The checkpoint is saved; go on with: {resume_command(self.output_dir)}"

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _position(self) -> dict[str, Any]:
        """Return where the run is, but for the weights: what a step changes before it updates them."""
        return {
            "step": self.step_number,
            "images_sampled": self.images_sampled,
            "images_scored": self.images_scored,
            "rng": self.rng.get_state(),
            "prompts": self.prompt_sampler.state_dict(),
        }

    def _set_position(self, state: dict[str, Any]) -> None:
        self.step_number, self.images_sampled = state["step"], state["images_sampled"]
        self.images_scored = state["images_scored"]
        self.rng.set_state(state["rng"])
        self.prompt_sampler.load_state_dict(state["prompts"])

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        state = {**self._position(), "updater": self.updater.state_dict(), "validation": self._validation}
        return {**state, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        """Return what a resumed run must share with the run that it goes on from."""
        scorer: dict[str, Any] | None = None if self._scorer is None else {**self._scorer}
        built = built_options(self.config)
        return {"options": self._options(), "config": built, "generator": self._began_with, "scorer": scorer}

    def _options(self) -> dict[str, Any]:
        """Return the options that decide what is trained on what, nested."""
        names = ("distribution", "prompts_per_step", "epochs", "minibatches", "seed")
        groups = {"algorithm": asdict(self.algorithm), "sampling": asdict(self.sampling), "optim": asdict(self.optim)}
        own = {"negative_prompt": self.negative_prompt, "balanced": self.balanced}
        return {**groups, **own, **{name: vars(self.loop)[name] for name in names}}

    def save(self) -> Path:
        """Write the checkpoint of the present step: a folder that `--checkpoint` takes, and that `resume` goes on from.

        FloatingPointError, with nothing written, where the weights, or the log-probs that they give, are not finite.
        """
        self.updater.check_usable()
        path = checkpoints.save(
            self.output_dir, self.step_number, state=self.state_dict(), save_model=self.generator.save
        )
        self._saved_step = self.step_number
        return path

    def resume(self, path: str | Path | None = None) -> int:
        """Load a checkpoint (None: the newest whole one) and return its step.

        The generator must be as it was at the start of the run: it is the reference. ValueError: there is no
        checkpoint, or it is that of a run with other options, another generator or another scorer, or of more steps
        than `steps`.
        """
        state = self._newest_state() if path is None else checkpoints.load(path)
        problem = state_problem(state)
        if problem:
            raise ValueError(f"{path} cannot be resumed from: {problem}")
        check_same_run(state, self._identity(), self.steps)
        self.updater.load_state_dict(state["updater"])
        self._set_position(state)
        self._validation, self._begun = state["validation"], True
        if path is None:
            self._saved_step = self.step_number
            self._keep_best()  # the run may have been killed before it noted its best score
        return self.step_number

    def _newest_state(self) -> dict[str, Any]:
        found = checkpoints.newest_state(self.output_dir, state_problem)
        if found is None:
            raise ValueError(
                f"{self.output_dir} holds no whole checkpoint to resume from; start the run anew in another folder"
            )
        return found[1]


Callback = Callable[[Trainer, StepRecord], None]


def resume_command(run_dir: str | Path) -> str:
    """Return the command that goes on with a run, quoted for a shell."""
    return shlex.join(["t2i-gcpo", "train", "--output-dir", str(run_dir), "--resume"])


def _training_sampling(options: SamplingOptions) -> SamplingConfig:
    """Return the group of a training from any group of sampling options."""
    if isinstance(options, SamplingConfig):
        return options
    return SamplingConfig(**{field.name: vars(options)[field.name] for field in fields(SamplingOptions)})
