"""Runs that one process or several do alike, for the tests of several processes.

As a program, for torchrun: argv is the output folder and the names of the cases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import tiny, tiny_amused
from helpers.training import PROMPTS, generator, trainer, weights
from rewards.function import as_reward
from t2i_gcpo import generators
from t2i_gcpo.evaluation.evaluate import evaluate
from t2i_gcpo.records import Prompt, Sampling, Unmasking
from t2i_gcpo.training.options import CheckpointPlan, Schedule
from t2i_gcpo.training.ranks import torchrun
from t2i_gcpo.training.trainer import StepRecord, Trainer
from t2i_gcpo.utils.processes import ALONE, Processes

#: Gradients that are 0 but for rounding have another value, and often another sign, when they are added up in another
#: order. AdamW's first step divides a gradient by its own size, so such a weight moves by up to `lr` in any direction.
#: An eps above the rounding noise (5e-8 here) leaves it where it is.
OPTIM = Schedule(lr=1e-3, warmup_steps=3, schedule="cosine", weight_decay=0.1, eps=1e-5)
STEPS = 5
TESTS = Path(__file__).parents[1]


@dataclass
class Result:
    """Holds what a case is compared by."""

    tokens: list[list[Tensor]]
    """Process -> step -> [b, T], the tokens that were trained on."""
    weights: list[Tensor]
    own_bytes: list[int]
    """Process -> bytes of its masters and moments."""
    scores: list[float]
    """The scores of an evaluation after the run."""


def above(red: float) -> Callable[..., Tensor]:
    """Make a reward of 1 or 0: some groups have no spread, and dynamic sampling discards them."""

    def score(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return (images[:, 0].float().mean(dim=(1, 2)) > red).float()

    return score


#: Some groups of a tiny Janus, and of a tiny aMUSEd, have images on both sides of these.
halves, masked_halves = above(123.4), above(14.7)


def failing(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    """Every image of a circle fails: on two processes of two prompts each, one may have none that counts."""
    red = images[:, 0].float().mean(dim=(1, 2)) / 255
    return torch.where(torch.tensor(["circle" in prompt for prompt in prompts]), torch.nan, red)


CASES: dict[str, dict[str, Any]] = {
    "grpo": {"name": "grpo"},
    "gcpo": {"name": "gcpo"},
    "dapo": {"name": "dapo", "reward": halves},
    "random": {"name": "gcpo_random"},
    "shuffled": {"name": "gcpo_shuffled"},
    "variance": {"name": "gcpo_variance"},
    "failing": {"name": "gcpo", "reward": as_reward(failing, failure="mark")},
    "passes": {"name": "gcpo", "epochs": 2, "minibatches": 2, "micro_batch": 3},
    "uneven": {"name": "gcpo_dapo", "reward": halves, "minibatches": 4, "epochs": 2},
    "each_pass": {
        "name": "gcpo_dapo",
        "reward": halves,
        "minibatches": 4,
        "micro_batch": 2,
        "reduce_gradients": "micro_batch",
    },
    "lora": {"name": "gcpo", "lora": True},
    "lora_dapo": {"name": "dapo", "lora": True, "reward": halves},
    "lora_passes": {"name": "gcpo_random", "lora": True, "epochs": 2, "minibatches": 2, "micro_batch": 3},
    "masked_grpo": {"name": "grpo", "masked": True},
    # With seed 5 a draw of this one's 2,160 is 3e-6 from the boundary between two tokens, and falls on either side.
    "masked_gcpo": {"name": "gcpo", "masked": True, "seed": 8},
    "masked_random": {"name": "gcpo_random", "masked": True},
    "masked_dapo": {"name": "dapo", "masked": True, "reward": masked_halves},
    "masked_passes": {"name": "gcpo_shuffled", "masked": True, "epochs": 2, "minibatches": 2},
    "masked_lora": {"name": "gcpo", "masked": True, "lora": True},
    "bfloat16": {"name": "gcpo", "bfloat16": True},
}


def policy_of(folder: Path, processes: Processes, *, masked: bool, lora: bool) -> Any:
    """Return a tiny Janus, or aMUSEd (masked), and with `lora` one from files, as its adapters need."""
    if not lora:
        return tiny_amused.generator(compile=False) if masked else generator()
    if processes.is_main:  # transformers writes weights on the main process alone
        (tiny_amused if masked else tiny).checkpoint(folder / "model")
    processes.wait()
    policy = generators.load(str(folder / "model"), compile=False)
    policy.add_lora(rank=4, alpha=8.0, seed=1)
    return policy


def make(name: str, folder: Path, processes: Processes = ALONE, **changes: Any) -> Trainer:
    options = {**CASES[name], **changes}
    masked = options.pop("masked", False)
    policy = policy_of(folder, processes, masked=masked, lora=options.pop("lora", False))
    if options.pop("bfloat16", False):
        policy.model.to(torch.bfloat16)
    if masked:
        options["sampling"] = Sampling(guidance=2.0, unmasking=Unmasking(steps=2))
    options = {"steps": STEPS, "prompts_per_step": 4, "optim": OPTIM, "checkpoint": CheckpointPlan(every=0), **options}
    return trainer(folder / "run", policy=policy, processes=processes, **options)


def run(name: str, folder: Path, processes: Processes = ALONE) -> Result:
    target = make(name, folder, processes)
    tokens: list[Tensor] = []

    def note(run: Trainer, record: StepRecord) -> None:
        empty = torch.zeros(0, 16, dtype=torch.int64)
        tokens.append(empty if record.scored is None else record.scored.rollout.tokens)

    target.callbacks = [note]
    target.train()
    states = [tensor for state in target.updater.optimizer.state.values() for tensor in state.values()]
    own = [*target.updater.weights.values(), *(state for state in states if state.numel() > 1)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in own)
    rows = [Prompt(f"a {word} square") for word in ("red", "green", "blue")]
    table = evaluate(
        target.generator, rows, target.reward, sampling=Sampling(guidance=2.0), seed=3, processes=processes,
        images_per_prompt=2, held_out={"again": target.reward}
    )  # fmt: skip
    scores = [row.score for row in table.rows] + [*table.held_out["again"]]
    return Result(processes.gather(tokens), weights(target.generator), processes.gather(size), scores)  # type: ignore[arg-type]


def torchrun_command(count: int, script: Path, *arguments: str | Path, more: Sequence[str] = ()) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *more]
    return [*start, str(script), *map(str, arguments)]


def together(count: int, script: Path, *arguments: str | Path, timeout: float = 900, **changes: Any) -> Any:
    """Run a script with torchrun, and return the finished process with its output."""
    return subprocess.run(
        torchrun_command(count, script, *arguments, **changes),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "time/" not in k and k != "tokens_per_s"} for line in lines]


assert len(PROMPTS) == 8, "two rounds of four prompts are all of them"

if __name__ == "__main__":
    torch.set_num_threads(1)
    with torchrun(timeout=60) as ranks:
        for case in sys.argv[2:]:
            result = run(case, Path(sys.argv[1]) / case, ranks)
            if ranks.is_main:
                torch.save(vars(result), Path(sys.argv[1]) / f"{case}.pt")
