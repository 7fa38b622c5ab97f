"""Credit on hand-made batches: padding on both sides, tool masks, an end token in the middle.

The KL over the whole vocabulary; the KL's weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.text_models import TOKENIZER, GCPOTrainer, distributions, drawn, tiny_model, trainer
from t2i_gcpo import credit
from t2i_gcpo.losses import kl_weights
from t2i_gcpo.text.batch_credit import NEGATIVE_IDS, NEGATIVE_MASK, BatchCredit
from t2i_gcpo.text.scoring import PaddedPrompts, exact_kl, pad_prompts

PAD, END = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id
PROMPTS = [[7, 40, 41], [7, 50, 51, 52, 53], [7, 60]]
NEGATIVES = [[7, 90, 40, 41], [7, 90, 50], [7, 90, 91, 60]]
#: The second has an end token in the middle, as between the turns of a chat with tools.
COMPLETIONS = [[100, 101, 102, 103, 104, 105], [110, 111, END, 113, 114, 115, 116, END], [120, 121, 122]]
TOOL = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1, 1], [1, 1, 1]]


def batch() -> dict[str, Any]:
    """The completions as TRL gives them to the loss."""
    width = max(map(len, COMPLETIONS))
    positive, negative = pad_prompts(PROMPTS, PAD), pad_prompts(NEGATIVES, PAD)
    return {
        "prompt_ids": positive.ids,
        "prompt_mask": positive.mask,
        NEGATIVE_IDS: negative.ids,
        NEGATIVE_MASK: negative.mask,
        "completion_ids": torch.tensor([row + [PAD] * (width - len(row)) for row in COMPLETIONS]),
        "completion_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in COMPLETIONS]),
        "tool_mask": torch.tensor([row + [1] * (width - len(row)) for row in TOOL]),
        "advantages": torch.tensor([1.0, -2.0, 0.5]),
        "num_items_in_batch": torch.tensor(15),
    }


@pytest.mark.parametrize("divergence", ["kl", "js", "exact_kl"])
def test_weights_of_a_hand_made_batch(tmp_path: Path, divergence: str) -> None:
    run = trainer(GCPOTrainer, tmp_path, divergence=divergence, normalization="none")
    made = BatchCredit(run, batch(), rows=2)
    made.positive = run.score(PaddedPrompts(made.batch["prompt_ids"], made.batch["prompt_mask"]), made.batch)[0]
    for row, completion in enumerate(COMPLETIONS):
        tables = [distributions(run.model, prompts[row], completion) for prompts in (PROMPTS, NEGATIVES)]
        own = torch.tensor(TOOL[row]).bool()
        if divergence == "exact_kl":
            values = (tables[0].exp() * (tables[0] - tables[1])).sum(-1)
        else:
            values = credit.divergence(drawn(tables[0], completion), drawn(tables[1], completion), divergence)
        expected = torch.where(own, values, 0.0) / values[own].mean()
        assert expected.max() > 1.2
        padded = torch.zeros(8)
        padded[: len(completion)] = expected
        assert (made.weights[row] - padded).abs().max() <= 1e-4
        assert torch.equal(made.advantages()[row], made.batch["advantages"][row] * made.weights[row])


def test_exact_kl_is_the_same_in_chunks() -> None:
    model, given = tiny_model(), batch()
    prompts = (
        PaddedPrompts(given["prompt_ids"], given["prompt_mask"]),
        PaddedPrompts(given[NEGATIVE_IDS], given[NEGATIVE_MASK]),
    )
    rest = given["completion_ids"], given["completion_mask"]
    whole = exact_kl(model, *prompts, *rest)
    torch.testing.assert_close(exact_kl(model, *prompts, *rest, rows=1, chunk=3), whole)
    assert whole.max() > 0.1 and (whole[given["completion_mask"] == 0] == 0).all()
    tables = [distributions(model, row[1], COMPLETIONS[1]) / 2.0 for row in (PROMPTS, NEGATIVES)]
    p, q = (table.log_softmax(-1) for table in tables)
    tempered = exact_kl(model, *prompts, *rest, temperature=2.0)
    torch.testing.assert_close(tempered[1], (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=1e-5)


def test_no_contrast_gives_uniform_weights(tmp_path: Path) -> None:
    run = trainer(GCPOTrainer, tmp_path)
    given = batch()
    given[NEGATIVE_IDS], given[NEGATIVE_MASK] = given["prompt_ids"], given["prompt_mask"]
    made = BatchCredit(run, given)
    made.positive = run.score(PaddedPrompts(given["prompt_ids"], given["prompt_mask"]), given)[0]
    assert torch.equal(made.weights, (given["completion_mask"] * given["tool_mask"]).float())


def test_the_kl_is_weighted_by_token(tmp_path: Path) -> None:
    """Advantages of 0 leave the KL alone in the loss: beta times the tokens' mean of factor times k3."""
    run = trainer(GCPOTrainer, tmp_path, beta=0.5, loss_type="bnpo")
    given = batch()
    reference = run.score(PaddedPrompts(given["prompt_ids"], given["prompt_mask"]), given)[0] + 0.3 * torch.randn(
        3, 8, generator=torch.Generator().manual_seed(0)
    )
    given |= {"ref_per_token_logps": reference, "advantages": torch.zeros(3)}
    positive = run.score(PaddedPrompts(given["prompt_ids"], given["prompt_mask"]), given)[0]
    negative = run.score(PaddedPrompts(given[NEGATIVE_IDS], given[NEGATIVE_MASK]), given)[0]
    mask = given["completion_mask"] * given["tool_mask"]
    factors = kl_weights(credit.token_weights(positive, negative, mask=mask))
    k3 = torch.expm1(reference - positive) - (reference - positive)
    run.current_gradient_accumulation_steps = 1
    loss = run._compute_loss(run.model, given).detach()
    assert float(loss) == pytest.approx(0.5 * float((factors * k3 * mask).sum() / mask.sum()), rel=1e-4)
    assert run.beta == 0.5 and type(run.beta) is float
    assert abs(float(loss) - 0.5 * float((k3 * mask).sum() / mask.sum())) > 0.003


@pytest.mark.parametrize("name", ["random", "shuffled"])
def test_controls_have_the_same_weights_elsewhere(tmp_path: Path, name: str) -> None:
    given, weights = batch(), {}
    for rule in ("contrast", name):
        run = trainer(GCPOTrainer, tmp_path, credit=rule)
        made = BatchCredit(run, given)
        made.positive = run.score(PaddedPrompts(given["prompt_ids"], given["prompt_mask"]), given)[0]
        weights[rule] = made.weights
    assert not torch.allclose(weights["contrast"], weights[name])
    torch.testing.assert_close(weights["contrast"].sort(-1).values, weights[name].sort(-1).values)
