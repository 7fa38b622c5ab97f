"""Whole runs of the text trainer: resumed, with LoRA, on two processes, with dynamic sampling.

And with each rule of credit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.text_models import GCPOTrainer, digits, tiny_folder, tiny_model, trainer

RULES: list[dict[str, Any]] = [
    {"credit": "contrast"},
    {"credit": "contrast", "divergence": "exact_kl", "normalization": "none"},
    {"credit": "shuffled", "negative_prompt": "empty"},
    {"credit": "random", "loss_type": "grpo"},
    {"credit": "entropy", "refresh_weights": True},
]


def parameters(run: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, rule: dict[str, Any]) -> None:
    changes = {**rule, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "dynamic_sampling_limit": 2}
    whole = trainer(GCPOTrainer, tmp_path, **changes)
    whole.train()
    resumed = trainer(GCPOTrainer, tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for name, value in parameters(whole).items():
        assert torch.equal(value, parameters(resumed)[name]), name
    logged = [row for row in whole.state.log_history if "credit/top_share" in row]
    assert len(logged) == 4 and all(row["credit/top_share"] > 0.4 for row in logged)
    assert all(row["rewards/failed"] == 0 for row in logged)


def test_lora_trains_the_adapter_alone_with_a_reference_and_exact_kl(tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
    run = trainer(GCPOTrainer, tmp_path, beta=0.1, divergence="exact_kl", extra={"peft_config": lora})
    before = parameters(run)
    run.train()
    changed = {name for name, value in parameters(run).items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)


def test_dynamic_sampling_draws_until_groups_have_spread(tmp_path: Path) -> None:
    def spread_on_even_questions(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        even = [int(prompt[-1]["content"].split("+")[1][:-1]) % 2 == 0 for prompt in prompts]
        return [value if flag else 0.5 for value, flag in zip(digits(completions), even, strict=True)]

    seen: list[torch.Tensor] = []

    class Watched(GCPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            seen.append(inputs["advantages"].abs())
            assert inputs["num_items_in_batch"] == inputs["completion_mask"].sum()
            return super()._compute_loss(model, inputs)

    run = trainer(Watched, tmp_path, reward=spread_on_even_questions, dynamic_sampling_limit=20, max_steps=6)
    run.train()
    assert len(seen) == 6 and all((values > 0).all() for values in seen)
    drawn = [row["groups/rollouts"] for row in run.state.log_history if "groups/rollouts" in row]
    assert run.completions_sampled == 8 * sum(drawn)
    assert max(drawn) > 1 and all(
        row["groups/informative"] == 1 for row in run.state.log_history if "groups/rollouts" in row
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_equal_one_at_the_same_global_batch(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    for processes, batch in ((1, 8), (2, 4)):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += [str(tests / "helpers" / "text_two_processes.py"), str(tmp_path), str(batch), "3"]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"parameters_{processes}.pt") for processes in (1, 2))
    start = dict(tiny_model().named_parameters())
    assert max(float((one[name] - start[name]).detach().abs().max()) for name in one) > 1e-3
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=2e-5)


def test_the_model_may_be_given_as_a_folder(tmp_path: Path) -> None:
    run = trainer(GCPOTrainer, tmp_path, model=str(tiny_folder()), max_steps=1)
    run.train()
    assert run.state.global_step == 1
