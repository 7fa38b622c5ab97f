"""Make a training run of `t2i-gcpo text train`: build the trainer from options, evaluate, train, evaluate again.

The output folder holds config.yaml, metrics.jsonl (one JSON object a logged step), heatmaps/, TRL's checkpoint-N
folders, the finished model in model/, and eval_before.json and eval.json where there is evaluation data.
"""

from __future__ import annotations

from t2i_gcpo.text.config import GCPOConfig  # before all else: it explains TRL's absence and mends torchvision

# isort: split

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from t2i_gcpo.text.checkpoints import newest_checkpoint, step_of
from t2i_gcpo.text.data import read_rows
from t2i_gcpo.text.evaluate import TextEvalResult, evaluate
from t2i_gcpo.text.models import load
from t2i_gcpo.text.options import TextRun
from t2i_gcpo.text.rewards_by_name import load_reward
from t2i_gcpo.text.trainer import GCPOTrainer
from t2i_gcpo.utils.files import disk_errors, write_atomically
from t2i_gcpo.utils.interrupt import on_interrupt, on_save_request
from t2i_gcpo.utils.json_files import read_json_lines
from t2i_gcpo.utils.lock import locked

#: What to do where another process trains in the same folder.
IN_USE = "wait for its end or stop it, or name another folder (--output-dir)"
#: Tokens of an evaluated completion where the training has no limit.
DEFAULT_LENGTH = 1024
SAMPLED = "completions_sampled"
CONFIG, METRICS, MODEL, BEFORE, AFTER = "config.yaml", "metrics.jsonl", "model", "eval_before.json", "eval.json"


class MetricsFile(TrainerCallback):
    """Appends each logged step to metrics.jsonl; a number that is not finite is null.

    `completions_sampled` counts from the run's first step, over all processes and over a resumed run's parts.
    """

    def __init__(self, path: Path, start_step: int, trainer: GCPOTrainer) -> None:
        self.path, self.trainer = path, trainer
        known = read_json_lines(path, {"step": int}) if path.is_file() else []
        rows = [row for row in known if row["step"] <= start_step]
        self.sampled_before = max((int(row.get(SAMPLED, 0)) for row in rows), default=0)
        write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in rows))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        row = {"step": state.global_step, **{name: _plain(value) for name, value in logs.items()}}
        row[SAMPLED] = self.sampled_before + self.trainer.completions_sampled
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class Budget(TrainerCallback):
    """Ends the training once so many completions were sampled."""

    def __init__(self, completions: int, trainer: GCPOTrainer) -> None:
        self.completions, self.trainer = completions, trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.completions_sampled >= self.completions:
            control.should_training_stop = True


class Signals(TrainerCallback):
    """Ends the training with a checkpoint where Ctrl-C, SIGTERM or SIGHUP asks for it; saves one where SIGUSR1 does."""

    def __init__(self) -> None:
        self.by: str | None = None
        self._save = False

    def stop(self, by: str) -> None:
        """Save after the present step, and end."""
        self.by = self.by or by

    def save(self) -> None:
        """Save after the present step, and go on."""
        self._save = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.by is not None or self._save:
            control.should_save, self._save = True, False
        if self.by is not None:
            control.should_training_stop = True


def _plain(value: Any) -> Any:
    """Return a number, or None for one that is not finite."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return value if value is None or math.isfinite(value) else None


def train(run: TextRun, config: GCPOConfig, as_yaml: str = "") -> tuple[GCPOTrainer, str | None]:
    """Train one model. Returns the trainer, and what ended it before its time: "Ctrl-C", "SIGTERM", "SIGHUP" or None.

    as_yaml: what config.yaml will hold. ValueError for what cannot be trained, and where the folder is in use, holds
    another run or, with `resume`, no whole checkpoint.
    """
    folder = Path(str(config.output_dir))
    checkpoint = newest_checkpoint(folder) if run.resume else None
    if run.resume and checkpoint is None:
        raise ValueError(
            f"{folder} holds no checkpoint to resume from; save some with save_strategy "
            "and save_steps, or leave resume out"
        )
    _check_unused(run, folder)
    trainer = build(run, config)
    questions = _questions(run)
    with contextlib.ExitStack() as stack:
        if trainer.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder, remedy=IN_USE))
            _check_unused(run, folder)
            write_atomically(folder / CONFIG, as_yaml)
            start = 0 if checkpoint is None else step_of(checkpoint)
            trainer.add_callback(MetricsFile(folder / METRICS, start, trainer))
        return trainer, _run(trainer, run, folder, checkpoint, questions)


def _check_unused(run: TextRun, folder: Path) -> None:
    if not run.resume and (folder / METRICS).exists():
        raise ValueError(
            f"{folder} holds a run already; go on with it (--resume), or name another folder (--output-dir)"
        )


def _run(
    trainer: GCPOTrainer, run: TextRun, folder: Path, checkpoint: Path | None, questions: list[dict[str, Any]]
) -> str | None:
    """Evaluate, train and evaluate again. Returns what ended the training before its time, or None."""
    main = trainer.accelerator.is_main_process
    if run.max_completions:
        trainer.add_callback(Budget(run.max_completions, trainer))
    if questions and main and run.eval_before and not run.resume:
        _judge_policy(trainer, questions, run, name=run.model).save(folder / BEFORE)
    signals = Signals()
    with contextlib.ExitStack() as stack:
        if trainer.accelerator.num_processes == 1:  # several would have to agree on the step
            trainer.add_callback(signals)
            stack.enter_context(on_interrupt(signals.stop))
            stack.enter_context(on_save_request(signals.save))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if signals.by is not None:
        return signals.by
    trainer.save_model(str(folder / MODEL))
    if questions and main:
        _judge_policy(trainer, questions, run, name=str(folder / MODEL)).save(folder / AFTER)
    return None


def build(run: TextRun, config: GCPOConfig) -> GCPOTrainer:
    """Build the trainer that the options describe."""
    import datasets

    rows = read_rows(run.data, limit=run.data_limit, seed=config.seed, system=run.system or None)
    model, tokenizer = load(run.model)
    options: dict[str, Any] = {}
    if run.lora_rank:
        from peft import LoraConfig

        options["peft_config"] = LoraConfig(
            r=run.lora_rank,
            lora_alpha=run.lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    return GCPOTrainer(
        model, load_reward(run.reward), config, datasets.Dataset.from_list(rows), processing_class=tokenizer, **options
    )


def evaluate_start(run: TextRun, config: GCPOConfig) -> TextEvalResult:
    """Evaluate the model that the run would start from, as `train` does before the training."""
    model, tokenizer = load(run.model)
    return _judge(model, tokenizer, _questions(run), run, config, name=run.model)


def _questions(run: TextRun) -> list[dict[str, Any]]:
    """Read the evaluation's questions; there are none where no data is named."""
    return read_rows(run.eval_data, limit=run.eval_limit, system=run.system or None) if run.eval_data else []


def _judge_policy(trainer: GCPOTrainer, questions: list[dict[str, Any]], run: TextRun, *, name: str) -> TextEvalResult:
    """Evaluate the policy as it is, in evaluation mode."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    try:
        return _judge(model, trainer.processing_class, questions, run, trainer.args, name=name)
    finally:
        model.train(was_training)


def _judge(
    model: Any, tokenizer: Any, questions: list[dict[str, Any]], run: TextRun, config: GCPOConfig, *, name: str
) -> TextEvalResult:
    return evaluate(
        model, tokenizer, questions, load_reward(run.reward), seed=run.eval_seed, batch=run.eval_batch,
        max_new_tokens=config.max_completion_length or DEFAULT_LENGTH, progress=True, model_name=name,
        data=run.eval_data, reward_name=run.reward,
    )  # fmt: skip
