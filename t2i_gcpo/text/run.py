"""A training run of `t2i-gcpo text train`: options -> model, data, reward and trainer; evaluate, train, evaluate again.

The output folder holds config.yaml, metrics.jsonl (one JSON object a logged step), heatmaps/, TRL's checkpoint-N
folders, the finished model in model/, and eval_before.json and eval.json where there is evaluation data.
"""

from __future__ import annotations

from t2i_gcpo.text.config import GCPOConfig  # before all else: it explains TRL's absence and mends torchvision

# isort: split

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from t2i_gcpo.text.data import read_rows
from t2i_gcpo.text.evaluate import TextEvalResult, evaluate
from t2i_gcpo.text.models import load
from t2i_gcpo.text.options import TextRun
from t2i_gcpo.text.rewards_by_name import load_reward
from t2i_gcpo.text.trainer import GCPOTrainer
from t2i_gcpo.utils.files import write_atomically

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
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = [row for row in map(json.loads, lines) if row["step"] <= start_step]
        self.sampled_before = max((int(row.get(SAMPLED, 0)) for row in rows), default=0)
        write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in rows))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        row = {"step": state.global_step, **{name: _plain(value) for name, value in logs.items()}}
        row[SAMPLED] = self.sampled_before + self.trainer.completions_sampled
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class Budget(TrainerCallback):
    """Ends the training once so many completions were sampled."""

    def __init__(self, completions: int, trainer: GCPOTrainer) -> None:
        self.completions, self.trainer = completions, trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.completions_sampled >= self.completions:
            control.should_training_stop = True


def _plain(value: Any) -> Any:
    """A number, or null for what is none."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return value if value is None or math.isfinite(value) else None


def train(run: TextRun, config: GCPOConfig, as_yaml: str = "") -> GCPOTrainer:
    """Train one model. as_yaml: what config.yaml will hold.

    ValueError for what cannot be trained, and where the folder holds another run or, with `resume`, no checkpoint.
    """
    folder = Path(str(config.output_dir))
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if run.resume and checkpoint is None:
        raise ValueError(
            f"{folder} holds no checkpoint to resume from; save some with save_strategy and save_steps, or leave "
            "resume out"
        )
    if not run.resume and (folder / METRICS).exists():
        raise ValueError(
            f"{folder} holds a run already; go on with it (--resume), or name another folder (--output-dir)"
        )
    trainer = build(run, config)
    questions = _questions(run)
    main = trainer.accelerator.is_main_process
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG, as_yaml)
        start = int(str(checkpoint).rpartition("-")[2]) if run.resume else 0
        trainer.add_callback(MetricsFile(folder / METRICS, start, trainer))
    if run.max_completions:
        trainer.add_callback(Budget(run.max_completions, trainer))
    if questions and main and run.eval_before and not run.resume:
        _judge_policy(trainer, questions, run, name=run.model).save(folder / BEFORE)
    trainer.train(resume_from_checkpoint=checkpoint if run.resume else None)
    trainer.save_model(str(folder / MODEL))
    if questions and main:
        _judge_policy(trainer, questions, run, name=str(folder / MODEL)).save(folder / AFTER)
    return trainer


def build(run: TextRun, config: GCPOConfig) -> GCPOTrainer:
    """The trainer that the options describe."""
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
    """The evaluation that `train` does before the training, alone."""
    model, tokenizer = load(run.model)
    return _judge(model, tokenizer, _questions(run), run, config, name=run.model)


def _questions(run: TextRun) -> list[dict[str, Any]]:
    """The evaluation's questions; none where none are wanted."""
    return read_rows(run.eval_data, limit=run.eval_limit, system=run.system or None) if run.eval_data else []


def _judge_policy(trainer: GCPOTrainer, questions: list[dict[str, Any]], run: TextRun, *, name: str) -> TextEvalResult:
    """The policy as it is, in evaluation mode, on the evaluation's questions."""
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
