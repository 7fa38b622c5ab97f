"""Score the validation prompts every few steps, with noise of its own, so that the training is not changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rewards.base import Reward
from t2i_gcpo.evaluation.evaluate import evaluate
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.utils.checks import at_least

if TYPE_CHECKING:
    from t2i_gcpo.training.trainer import StepRecord, Trainer


class Validation:
    """Add `validation/overall` and `validation/task/<task>` to the metrics of each `every`-th step and of the last.

    Where the run keeps an average of the weights, `validation_average/...` is of that.
    """

    def __init__(
        self, prompts: Sequence[Prompt], reward: Reward, *, sampling: Sampling, every: int, seed: int, batch: int = 64
    ) -> None:
        at_least(0, "evaluate.", every=every, seed=seed)
        self.prompts, self.reward, self.sampling = list(prompts), reward, sampling
        self.every, self.seed, self.batch = every, seed, batch

    def __call__(self, trainer: Trainer, record: StepRecord) -> None:
        if not self.every or (record.step % self.every and not trainer.finished):
            return
        self._score(trainer, record, "validation")
        average = trainer.updater.average
        if average is not None:
            with average.in_place():
                self._score(trainer, record, "validation_average")

    def _score(self, trainer: Trainer, record: StepRecord, name: str) -> None:
        result = evaluate(
            trainer.generator,
            self.prompts,
            self.reward,
            sampling=self.sampling,
            batch=self.batch,
            seed=self.seed,
            processes=trainer.processes,
        )
        record.metrics[f"{name}/overall"] = result.overall
        for task, score in result.by_task.items():
            record.metrics[f"{name}/task/{task}"] = score
