"""The run around the steps: callbacks, the log, checkpoints, and going on after any interruption.

What one step does is in `step.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rewards.base import Reward
from rewards.function import as_reward
from t2i_gcpo.algorithms import Algorithm
from t2i_gcpo.data.options import PromptsConfig
from t2i_gcpo.data.sampler import PromptSampler
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import Prompt, SamplingOptions
from t2i_gcpo.training import checkpoint as checkpoints
from t2i_gcpo.training.ending import Ending
from t2i_gcpo.training.identity import RunIdentity
from t2i_gcpo.training.options import (
    DEFAULT_ALGORITHM,
    CheckpointPlan,
    LoggingConfig,
    LoopOptions,
    SamplingConfig,
    Schedule,
)
from t2i_gcpo.training.progress import Progress
from t2i_gcpo.training.same_run import check_alike, check_share
from t2i_gcpo.training.saving import Saving
from t2i_gcpo.training.settings import RunSettings
from t2i_gcpo.training.shared_folder import check_shared
from t2i_gcpo.training.step import Step, StepRecord
from t2i_gcpo.training.tracker import SilentTracker, Tracker, check_unused
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils.interrupt import CTRL_C, on_interrupt, on_save_request
from t2i_gcpo.utils.lock import locked
from t2i_gcpo.utils.processes import ALONE, Processes

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
        processes: Processes = ALONE,
        **options: Any,
    ) -> None:
        """Set up a run; nothing is written or sampled before `train`.

        reward: a reward, or a function `(images [B, 3, H, W] uint8, prompts, metadata) -> B numbers`. prompts: what
        `prompts.read` reads (a file, or shapes:train), or the prompts themselves. algorithm: a row's name, or
        `resolve(name, ...)`. sampling: of a `Sampling`, the group size, contrast and statistics are replaced by those
        that the algorithm needs, and the seed by one drawn for each rollout. balanced: draw the prompts' tasks in equal
        parts. callbacks: called after each step with the trainer and a `StepRecord`. tracker: who passes one closes it;
        without one `train` makes one, with metrics.jsonl and a progress bar. config: what the trainer's own tracker
        shows of the run's options. processes: those of `ranks.torchrun()`, which share each rollout; every one of them
        makes this trainer, with the same arguments, and the callbacks are called on all.

        options: any option of `algorithm`, `loop`, `sampling`, `optim` and `checkpoint` by its own name, e.g. steps=50,
        group_size=16, guidance=3.0, lr=1e-4. ValueError for an option or a value that is not allowed.
        """
        settings = RunSettings.settle(
            algorithm, loop=loop, sampling=sampling, optim=optim, checkpoint=checkpoint, options=options
        )
        self.generator = generator
        self.reward: Reward = as_reward(reward)
        self.output_dir = Path(output_dir).expanduser()
        self.algorithm, self.loop, self.sampling = settings.algorithm, settings.loop, settings.sampling
        self.optim, self.checkpoint = settings.optim, settings.checkpoint
        self.negative_prompt = settings.negative_prompt
        self.balanced, self.callbacks, self.tracker, self.config = balanced, callbacks, tracker, config
        self.processes = processes
        check_share(self.loop.prompts_per_step, processes)
        rows = settings.read_prompts(prompts, self.generator, self.reward)
        self.prompt_sampler = PromptSampler(rows, seed=self.loop.seed, balanced=balanced)
        self.rng = torch.Generator().manual_seed(self.loop.seed)
        self.has_reference = settings.keep_reference(self.generator)
        """Whether `generator.reference()` can be used."""
        own_rows = self.loop.prompts_per_step * self.algorithm.group_size // processes.count
        self.generator.prepare(rollouts_ahead=self.steps, rows=own_rows)
        # A plain function has no identity but its name, which says nothing of what it does.
        scorer = self.reward.identity() if self.reward is reward else None
        self._identity = RunIdentity(self.generator.policy, scorer, settings, balanced=balanced)
        self.updater = Updater(self.generator, self.algorithm, self.loop, self.optim, processes)
        self.progress = Progress(self.rng, self.prompt_sampler)
        identity = self._identity
        self._saving = Saving(
            self.output_dir,
            self.checkpoint,
            self.updater,
            self.progress,
            lambda: identity.state(self.config),
            processes,
        )
        self._ending = Ending()
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
            self.progress.credit_mean,
            processes,
        )
        self._begun = False
        drawn = self.prompt_sampler.state_dict()["prompts"]
        options = {**identity.options, "scorer": identity.scorer}
        seen = {"options": options, "prompts": drawn, "weights": identity.generator, "rewards": self.reward.own_code()}
        check_alike(processes, seen)

    @property
    def step_number(self) -> int:
        """Return the number of steps that are done."""
        return self.progress.step

    @property
    def images_sampled(self) -> int:
        """Return the number of images that were sampled, discarded ones included."""
        return self.progress.images_sampled

    @property
    def images_scored(self) -> int:
        """Return the number of sampled images that have a score."""
        return self.progress.images_scored

    @property
    def steps(self) -> int:
        """Return the step that the run ends at.

        Setting it makes the run longer or shorter, and with it the learning rate's course.
        """
        return self.loop.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self.loop = self.updater.loop = replace(self.loop, steps=steps)

    @property
    def finished(self) -> bool:
        """Return whether the run has done its `steps`, or sampled its `max_images`."""
        return self.step_number >= self.steps or 0 < self.loop.max_images <= self.images_sampled

    def step(self) -> StepRecord:
        """Sample, score, spread the credit, update.

        FloatingPointError after `max_nonfinite` non-finite updates in a row.
        """
        outcome, progress = self._step(), self.progress
        progress.step += 1
        progress.images_sampled += outcome.images
        progress.images_scored += outcome.images_scored
        self._ending.count_scores(outcome.images_scored)
        metrics = {**outcome.metrics, "images_sampled": float(progress.images_sampled)}
        return StepRecord(progress.step, metrics, outcome.scored, outcome.targets)

    # -- the run -------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run to `steps`, or until `max_images` are sampled.

        Ctrl-C, SIGTERM and SIGHUP finish the step, save and return; a second Ctrl-C interrupts at once. SIGUSR1 saves.

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
        nothing more; on several processes a checkpoint that is still being written is dropped then, unless `save`
        follows.
        """
        self._ending.begin()
        return self._locked_rounds()

    def _locked_rounds(self) -> Iterator[StepRecord]:
        if not self.processes.is_main:
            yield from self._rounds()
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with locked(self.output_dir, remedy=IN_USE):
            yield from self._rounds()

    def _rounds(self) -> Iterator[StepRecord]:
        if self.tracker is not None:
            yield from self._run(self.tracker)
            return
        if not self._begun and self.processes.is_main:
            check_unused(self.output_dir)
        with self._own_tracker() as self.tracker:
            try:
                yield from self._run(self.tracker)
            finally:
                self.tracker = None

    def _own_tracker(self) -> Tracker:
        if not self.processes.is_main:
            return SilentTracker(self.output_dir)
        return Tracker(
            self.output_dir,
            steps=self.steps,
            start_step=self.step_number,
            config=self.config,
            logging=LoggingConfig(tensorboard=False),
        )

    def _run(self, tracker: Tracker) -> Iterator[StepRecord]:
        self._begun = True
        self._saving.finish()  # what an interruption left
        if self.processes.is_main:
            checkpoints.clean(self.output_dir)
            # A run whose folder of checkpoints is missing has lost them.
            (self.output_dir / checkpoints.FOLDER).mkdir(exist_ok=True)
        check_shared(self.output_dir, self.processes)  # here what failed on the main process ends the others
        while not self.finished and self.stopped is None:
            before = self.progress.state()
            try:
                record = self.step()
                self._finish(record, tracker)
                self._ending.check_scores(self.step_number, self.loop)
            except Exception as own:
                error = self.processes.failed(own)
                news = self._saving.rescue(error, before)
                if news is not None:
                    tracker.say(f"stopped by an error after step {self.step_number} of {self.steps}. {news}")
                if error is own:
                    raise
                raise error from own
            try:
                yield record
            except GeneratorExit:
                self._saving.leave()
                raise
        self._saving.finish()
        if self.step_number and not self.images_scored:
            raise FloatingPointError("no image of the run has a score, and nothing was learnt; mend the scorer")
        if self.stopped is not None:
            if self._saving.saved_step != self.step_number:
                self.save()
            how = self._saving.how_to_go_on()
            tracker.say(f"stopped after step {self.step_number} of {self.steps}: {self.stopped}. {how}")

    def _finish(self, record: StepRecord, tracker: Tracker) -> None:
        """Do what follows a step: callbacks, the log, a checkpoint where one is due."""
        self._ending.check_kl(record.metrics.get("kl", 0.0), self.loop.kl_stop)
        try:
            for callback in self.callbacks:
                callback(self, record)
        finally:
            tracker.log(record.step, record.metrics)
        wanted = self._ending.agree(self.processes, written=self._saving.written) or self.finished
        last, validation = self.finished or self.stopped is not None, record.metrics.get("validation/overall")
        self._saving.after_step(validation, wanted=wanted, written=self._ending.all_written, last=last)

    def stop(self, reason: str) -> None:
        """Save and end the run after the present step."""
        self._ending.stop(reason)

    @property
    def stopped(self) -> str | None:
        """Return why the last `train` ended before `steps`, or None."""
        return self._ending.reason

    @property
    def interrupted_by(self) -> str | None:
        """Return what ended the last `train` before its time, "Ctrl-C", "SIGTERM" or "SIGHUP", or None."""
        return self._ending.interrupted_by

    @interrupted_by.setter
    def interrupted_by(self, by: str | None) -> None:
        self._ending.interrupted_by = by

    @property
    def interrupted(self) -> bool:
        """Return whether Ctrl-C, SIGTERM or SIGHUP ended the last `train`."""
        return self.interrupted_by is not None

    def request_save(self) -> None:
        """Save a checkpoint after the present step, and go on."""
        self._ending.save_requested = True

    def _interrupt(self, by: str = CTRL_C) -> None:
        news = self._ending.interrupt(by)
        if news is not None and self.tracker is not None:
            self.tracker.say(news)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        return self._saving.state()

    def save(self) -> Path:
        """Write the checkpoint of the present step: a folder that `--checkpoint` takes, and that `resume` goes on from.

        FloatingPointError, with nothing written, where the weights, or the log-probs that they give, are not finite.
        """
        return self._saving.save()

    def resume(self, path: str | Path | None = None) -> int:
        """Load a checkpoint (None: the newest whole one) and return its step.

        The generator must be as it was at the start of the run: it is the reference. ValueError: there is no
        checkpoint, or it is that of a run with other options, another generator or another scorer, or of more steps
        than `steps`.
        """
        self._saving.resume(path, self.steps)
        self._begun = True
        return self.step_number


Callback = Callable[[Trainer, StepRecord], None]
