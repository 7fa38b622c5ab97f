"""Measure what a step of `GCPOTrainer` costs over one of TRL's `GRPOTrainer`.

A step is sampling, scoring, loss, backward pass and optimiser, on the same completions.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from t2i_gcpo.bench import positive
from t2i_gcpo.bench.measure import Report, cost, interleave, warm_up
from t2i_gcpo.text.trl_version import require_trl

BASELINE = "a step of TRL's GRPOTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=positive, default=10, help="rounds that are measured")
    parser.add_argument("--model", default="text-mini", help="text-mini, a folder, or a repository of the hub")
    parser.add_argument("--data", default="arithmetic:train", help="questions, as in t2i-gcpo text train")
    parser.add_argument("--prompts", type=positive, default=16, help="questions of a step")
    parser.add_argument("--group", type=positive, default=8, help="completions of a question, at least 2")
    parser.add_argument("--length", type=positive, default=48, help="tokens of a completion at most")


class Step:
    """Makes one training step at learning rate 0: the policy, and with the seed the completions, stay the same."""

    def __init__(self, trainer: Any, rows: list[dict[str, Any]]) -> None:
        self.trainer, self.rows, self.number = trainer, rows, 0
        trainer.train()  # one step, which makes the optimiser

    def seed(self) -> None:
        """Seed the sampling of the next call; the same for all sides in each round."""
        torch.manual_seed(self.number)
        self.number += 1

    def __call__(self) -> None:
        run = self.trainer
        run.model.train()
        run.training_step(run.model_wrapped, self.rows, None)
        run.optimizer.step()
        run.optimizer.zero_grad()

    def forwards(self) -> int:
        """Count the passes over whole sequences of one step: what is not a draw of the next token."""
        from t2i_gcpo.text.checks import base_model

        passes = 0

        def count(module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            nonlocal passes
            passes += not options.get("use_cache")

        handle = base_model(self.trainer.model).base_model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            self()
        finally:
            handle.remove()
        return passes

    @property
    def completions(self) -> list[Any]:
        """Return the completions that the last call sampled."""
        return list(self.trainer._logs["completion"])


def make(options: argparse.Namespace, folder: Path, kind: str) -> Step:
    """Make the step of `grpo`, `gcpo` or `exact_kl`."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    from t2i_gcpo.text.config import GCPOConfig
    from t2i_gcpo.text.data import read_rows
    from t2i_gcpo.text.models import load
    from t2i_gcpo.text.rewards_by_name import load_reward
    from t2i_gcpo.text.trainer import GCPOTrainer

    rows = read_rows(options.data, limit=options.prompts, seed=options.seed)
    model, tokenizer = load(options.model, device=options.device)
    shared: dict[str, Any] = {
        "output_dir": str(folder / kind), "max_steps": 1, "learning_rate": 0.0, "num_generations": options.group,
        "per_device_train_batch_size": options.prompts * options.group, "max_completion_length": options.length,
        "report_to": "none", "save_strategy": "no", "logging_steps": 10**6, "disable_tqdm": True, "seed": options.seed,
        "use_cpu": options.device == "cpu", "bf16": options.device != "cpu", "gradient_checkpointing": False,
    }  # fmt: skip
    reward = load_reward("arithmetic")
    data = datasets.Dataset.from_list(rows)
    if kind == "grpo":
        trainer = GRPOTrainer(model, reward, GRPOConfig(**shared), data, processing_class=tokenizer)
    else:
        config = GCPOConfig(**shared, divergence="kl" if kind == "gcpo" else "exact_kl")
        trainer = GCPOTrainer(model, reward, config, data, processing_class=tokenizer)
    return Step(trainer, [row for row in rows for _ in range(options.group)])


def check_same_completions(steps: dict[str, Step]) -> None:
    """Raise a RuntimeError where the sides sampled other completions: a ratio of their times would mean nothing."""
    texts = {name: step.completions for name, step in steps.items()}
    first = next(iter(texts.values()))
    different = [name for name, found in texts.items() if found != first]
    if different or not first:
        raise RuntimeError(f"{', '.join(different) or 'every side'} sampled other completions than GRPO, or none")


def check_forwards(forwards: dict[str, int]) -> None:
    """Raise a RuntimeError where GCPO took other than one pass more than GRPO: the ratio is about that pass."""
    if forwards["gcpo"] != forwards["grpo"] + 1:
        raise RuntimeError(
            f"a step of GCPO took {forwards['gcpo']} passes over whole sequences and one of GRPO {forwards['grpo']}; "
            "one more is expected"
        )


def run(options: argparse.Namespace, console: Console) -> Report:
    """Time the steps in turns. ValueError: a group of one. RuntimeError: the sides differ."""
    require_trl()
    if options.group < 2:
        raise ValueError(
            f"--group is {options.group}; it must be at least 2, as a completion is compared with its siblings"
        )
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        steps = {kind: make(options, Path(folder), kind) for kind in ("grpo", "gcpo", "exact_kl")}
        sides: dict[str, Callable[[], None]] = dict(steps)
        forwards = {}
        for kind, step in steps.items():
            step.seed()
            forwards[kind] = step.forwards()
        check_same_completions(steps)
        check_forwards(forwards)
        counts = ", ".join(f"{kind} {count}" for kind, count in forwards.items())
        console.print(f"checked: same completions; passes over whole sequences: {counts}", highlight=False)
        warmup = warm_up(sides, device, console)
        times = interleave(sides, options.pairs, device, before=lambda name: steps[name].seed())
    lines = (
        cost("step", times["gcpo"], times["grpo"], unit="s", seed=options.seed),
        cost("step_exact_kl", times["exact_kl"], times["grpo"], unit="s", seed=options.seed),
    )
    settings = {name: vars(options)[name] for name in ("model", "data", "prompts", "group", "length", "seed")}
    settings |= {"forwards": forwards, "seconds": times}
    return Report("text", lines, BASELINE, warmup, device, settings)
