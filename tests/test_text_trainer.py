"""The text trainer against TRL's own, and its weights against an un-batched, un-padded computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.text_models import TOKENIZER, GCPOTrainer, GRPOTrainer, tiny_model, trained, trainer
from t2i_gcpo import credit
from t2i_gcpo.text.config import TOKEN_LOSSES
from t2i_gcpo.text.negatives import WRONG_INSTRUCTION

REUSE = {"steps_per_generation": 2, "num_iterations": 2, "per_device_train_batch_size": 4}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loss_type", TOKEN_LOSSES)
def test_uniform_weights_are_bitwise_grpo(tmp_path: Path, loss_type: str) -> None:
    plain = trained(GRPOTrainer, tmp_path, loss_type=loss_type)
    assert not equal(plain, dict(tiny_model().named_parameters()))
    assert equal(plain, trained(GCPOTrainer, tmp_path, loss_type=loss_type, credit="uniform"))
    # Through the negative prompts and the floor, which finds no contrast large enough.
    assert equal(plain, trained(GCPOTrainer, tmp_path, loss_type=loss_type, floor=1e9))
    assert not equal(plain, trained(GCPOTrainer, tmp_path, loss_type=loss_type))


@pytest.mark.parametrize(
    "changes",
    [
        {**REUSE, "beta": 0.1, "epsilon_high": 0.28, "delta": 3.0, "kl_weighting": False},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "mask_truncated_completions": True},
    ],
    ids=["reuse", "accumulation"],
)
def test_uniform_weights_are_bitwise_grpo_with_other_options(tmp_path: Path, changes: dict[str, Any]) -> None:
    ours = {name: value for name, value in changes.items() if name != "kl_weighting"}
    plain = trained(GRPOTrainer, tmp_path, **ours)
    assert not equal(plain, dict(tiny_model().named_parameters()))
    assert equal(plain, trained(GCPOTrainer, tmp_path, **changes, floor=1e9))


class Recorder(GCPOTrainer):
    """Keeps what the loss was given: the batch, its advantages [B, T], and the policy of that moment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        copy = tiny_model()
        copy.load_state_dict(model.state_dict())
        self.seen.append({"policy": copy, "batch": inputs})
        return super()._compute_loss(model, inputs)


def logprobs(model: Any, text: str, completion: list[int]) -> torch.Tensor:
    """Log-probs of one completion after one prompt, without padding or batching: [T]."""
    prompt = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]


def expected_weights(model: Any, batch: dict[str, Any], row: int) -> torch.Tensor:
    """GCPO's weights of one row, from its text alone."""
    shown = TOKENIZER.decode(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()])
    negative = shown.replace("<|user|>", "<|user|>" + WRONG_INSTRUCTION)
    completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
    positive_logps, negative_logps = (logprobs(model, text, completion) for text in (shown, negative))
    return credit.token_weights(positive_logps[None], negative_logps[None])[0]


@pytest.mark.parametrize("reuse", [False, True], ids=["one-update", "reuse"])
@pytest.mark.parametrize("refresh", [False, True], ids=["rollout", "current"])
def test_weights_equal_unbatched_ones_after_shuffling_and_splitting(
    tmp_path: Path, reuse: bool, refresh: bool, monkeypatch: Any
) -> None:
    given: list[torch.Tensor] = []
    from t2i_gcpo.text import batch_credit as module

    plain = module.token_weights

    def remember(*args: Any, **more: Any) -> torch.Tensor:
        given.append(plain(*args, **more))
        return given[-1]

    monkeypatch.setattr(module, "token_weights", remember)
    changes = REUSE if reuse else {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    run = trainer(Recorder, tmp_path, **changes, max_steps=4 if reuse else 2, refresh_weights=refresh)
    run.train()
    assert len(run.seen) == 4
    frozen = reuse and not refresh
    for place, (seen, weights) in enumerate(zip(run.seen, given * 4 if frozen else given, strict=False)):
        batch = seen["batch"]
        used = batch["credit_weights"] if frozen else weights
        policy = run.seen[0]["policy"] if frozen else seen["policy"]
        spread = 0.0
        for row in range(len(batch["completion_ids"])):
            valid = batch["completion_mask"][row].bool()
            right = expected_weights(policy, batch, row)
            assert (used[row][valid] - right).abs().max() <= 1e-5, (place, row)
            assert (used[row][~valid] == 0).all()
            spread = max(spread, float(right.max() - right.min()))
        assert spread > 1
    assert len(given) == (1 if frozen else 4)
