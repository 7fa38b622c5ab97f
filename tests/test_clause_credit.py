"""Credit by clause: which tokens each clause of a prompt is judged by, and what that does to the advantages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny
from rewards.base import Reward, RewardOutput
from t2i_gcpo import credit, generators
from t2i_gcpo.advantages import group_advantages
from t2i_gcpo.algorithms import loss, resolve, token_advantages, token_weights
from t2i_gcpo.data.clauses import without_clauses
from t2i_gcpo.data.shapes.grammar import row
from t2i_gcpo.records import Prompt, Rollout, Sampling
from t2i_gcpo.training.credit_inputs import clause_logprobs

GCPO = resolve("gcpo", group_size=2)
CLAUSES = resolve("gcpo_clauses", group_size=2)


def make_rollout(positive: Tensor, negative: Tensor) -> Rollout:
    rows, length = positive.shape
    return Rollout(
        tokens=torch.zeros(rows, length, dtype=torch.int64),
        logprob_positive=positive,
        logprob_negative=negative,
        logprob_behaviour=positive,
        commit_step=torch.arange(length).expand(rows, length),
        prompts=tuple(Prompt("") for _ in range(rows // 2)),
        grid=(1, length),
        sampling=Sampling(group_size=2),
    )


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the prompt without a clause --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        ("a photo of a star", (None,)),
        ("a photo of a red star", (None,)),
        ("a photo of three stars", (None, None)),  # include three, exclude four
        ("a photo of a red circle and a blue star", ("a photo of a blue star", "a photo of a red circle")),
        # The row of a relation has the second object first.
        ("a photo of a red circle left of a star", ("a photo of a red circle", "a photo of a star")),
    ],
)
def test_the_text_without_each_clause(text: str, shorter: tuple[str | None, ...]) -> None:
    assert without_clauses(row(text)) == shorter


def test_a_natural_prompt_of_geneval() -> None:
    include = [{"class": "dog", "count": 1, "color": "red"}, {"class": "hot dog", "count": 1}]
    prompt = Prompt("a photo of a red dog and a hot dog", {"tag": "two_object", "include": include})
    assert without_clauses(prompt) == ("a photo of a hot dog", "a photo of a red dog")


def test_prompts_that_cannot_be_taken_apart() -> None:
    with pytest.raises(ValueError, match="'a dog' has no GenEval metadata"):
        without_clauses(Prompt("a dog"))
    include = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]
    with pytest.raises(ValueError, match=r"no part for its clause 'cat' \(its parts: a dog, a bird\)"):
        without_clauses(Prompt("a photo of a dog and a bird", {"include": include}))


# --- advantages -------------------------------------------------------------------------------------------------------

POSITIVE = torch.tensor([[0.5, 0.6, 0.8, 0.2]]).log()
NEGATIVE = torch.tensor([[0.5, 0.3, 0.1, 0.4]]).log()


def test_two_clauses_by_hand() -> None:
    # The first image has what clause 0 asks for and lacks the other, its sibling the reverse. Clause 0 drives the
    # tokens as in the worked example of docs/method.md, clause 1 those of the opposite order.
    without = torch.stack([NEGATIVE, NEGATIVE.flip(-1) - POSITIVE.flip(-1) + POSITIVE]).expand(2, 2, 4)
    parts = {"clause/0": torch.tensor([1.0, 0.0]), "clause/1": torch.tensor([0.0, 1.0])}
    found = token_advantages(
        CLAUSES,
        make_rollout(POSITIVE.expand(2, 4), NEGATIVE.expand(2, 4)),
        torch.zeros(2),  # by the strict score both failed, and GRPO would learn nothing
        parts=parts,
        clause_logprobs=without,
    )
    weights = [0.1118, 0.4964, 2.2044, 1.1874]
    expected = [0.7070 * (one - other) / 2 for one, other in zip(weights, weights[::-1], strict=True)]
    assert found.advantages[0].tolist() == pytest.approx(expected, abs=2e-4)
    assert found.advantages[1].tolist() == pytest.approx([-value for value in expected], abs=2e-4)
    assert found.sequence_advantages.tolist() == pytest.approx([0.0, 0.0])
    means = [(one + other) / 2 for one, other in zip(weights, weights[::-1], strict=True)]
    assert found.weights[0].tolist() == pytest.approx(means, abs=2e-4)


def test_advantages_against_a_slow_loop() -> None:
    positive, negative, without = random(6, 5, seed=0), random(6, 5, seed=1), random(2, 6, 5, seed=2)
    without[1, 2:4] = torch.nan  # the second prompt has one clause
    parts = {
        "clause/0": torch.tensor([1.0, 0, 1, 0, 0, 1]),
        "clause/1": torch.tensor([0.0, 1, torch.nan, torch.nan, 1, 1]),
    }
    rewards = torch.tensor([0.0, 0.0, 1.0, 0.0, torch.nan, 1.0])  # the fifth image has no score
    found = token_advantages(CLAUSES, make_rollout(positive, negative), rewards, parts=parts, clause_logprobs=without)
    for b in range(6):
        mates = [b - b % 2, b - b % 2 + 1]
        total, count = torch.zeros(5), 0
        for k in range(2):
            if without[k, b].isnan().any():
                continue
            count += 1
            scores = [float(parts[f"clause/{k}"][i]) for i in mates if rewards[i].isfinite()]
            if rewards[b].isnan() or len(scores) < 2:
                continue
            advantage = group_advantages(torch.tensor(scores), 2)[b % 2]
            total += advantage * credit.token_weights(positive[b : b + 1], without[k, b : b + 1])[0]
        assert found.advantages[b].tolist() == pytest.approx((total / count).tolist(), abs=1e-6), b
    assert found.advantages[4:].abs().max() == 0 and not found.mask[4].any()


def test_one_clause_without_which_nothing_is_left_is_gcpo() -> None:
    rollout, rewards = make_rollout(random(4, 6, seed=3), random(4, 6, seed=4)), torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert rollout.logprob_negative is not None
    given: dict[str, Any] = {"parts": {"clause/0": rewards}, "clause_logprobs": rollout.logprob_negative[None]}
    found, gcpo = token_advantages(CLAUSES, rollout, rewards, **given), token_advantages(GCPO, rollout, rewards)
    for name in ("advantages", "weights", "kl_weights", "sequence_advantages"):
        assert torch.equal(vars(found)[name], vars(gcpo)[name]), name
    assert torch.equal(token_weights(CLAUSES, rollout, clause_logprobs=given["clause_logprobs"]), gcpo.weights)


def test_a_step_raises_the_tokens_of_a_clause_that_holds_and_lowers_those_of_one_that_does_not() -> None:
    positive = torch.full((2, 4), -2.0)
    without = torch.stack([positive.clone(), positive.clone()])
    without[0, :, :2] -= 3.0  # clause 0 drives the first half of the tokens, clause 1 the second
    without[1, :, 2:] -= 3.0
    parts = {"clause/0": torch.tensor([1.0, 0.0]), "clause/1": torch.tensor([0.0, 1.0])}
    targets = token_advantages(
        CLAUSES, make_rollout(positive, positive), torch.zeros(2), parts=parts, clause_logprobs=without
    )
    own = positive.clone().requires_grad_()
    output = loss(CLAUSES, own, own.detach(), targets, logprob_reference=own.detach())
    (gradient,) = torch.autograd.grad(output.loss, own)
    assert (gradient[0, :2] < 0).all() and (gradient[0, 2:] > 0).all()
    assert (gradient[1, :2] > 0).all() and (gradient[1, 2:] < 0).all()


def test_what_is_missing_or_contradicts_is_named() -> None:
    rollout, rewards = make_rollout(random(2, 3, seed=0), random(2, 3, seed=1)), torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="pass clause_logprobs"):
        token_advantages(CLAUSES, rollout, rewards)
    with pytest.raises(
        ValueError, match="parts clause/0, and it has none named clause/0; use the reward geneval, alone"
    ):
        token_advantages(CLAUSES, rollout, rewards, clause_logprobs=random(1, 2, 3, seed=2))
    for option in ({"normalize_parts": True}, {"entropy_reward_coef": 0.4}, {"normalization": "none", "cap": 2.0}):
        with pytest.raises(ValueError, match="with credit clauses each clause has its own advantage"):
            resolve("gcpo_clauses", **option)
    with pytest.raises(ValueError, match="divergence is exact_kl, a sum over the codebook"):
        resolve("gcpo_clauses", divergence="exact_kl")


# --- with a generator -------------------------------------------------------------------------------------------------

TEXTS = ["a photo of a red circle and a blue star", "a photo of a star", "a photo of a circle left of a star"]


class ClauseReward(Reward):
    """Scores two clauses by the colours of the picture's halves."""

    name = "halves"

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        halves = images.float().mean(dim=(1, 2))
        side = halves.shape[1] // 2
        parts = {"clause/0": halves[:, :side].mean(dim=1), "clause/1": halves[:, side:].mean(dim=1)}
        return RewardOutput(parts["clause/0"] + parts["clause/1"], parts)


def test_a_generator_is_asked_under_the_prompt_without_each_clause_and_trains(tmp_path: Path) -> None:
    from t2i_gcpo.training.trainer import Trainer

    tiny.checkpoint(tmp_path / "model")
    generator = generators.load(str(tmp_path / "model"), compile=False)
    prompts = [row(text) for text in TEXTS]
    rollout = generator.sample(prompts, Sampling(group_size=2))
    assert rollout.logprob_negative is not None
    found = clause_logprobs(generator, rollout, micro_batch=3)
    assert found.shape == (2, 6, 16)
    with torch.no_grad():
        for k, p, text in ((0, 0, "a photo of a blue star"), (1, 0, "a photo of a red circle"),
                           (0, 2, "a photo of a circle"), (1, 2, "a photo of a star")):  # fmt: skip
            rows = torch.arange(2 * p, 2 * p + 2)
            expected = generator.token_logprobs(rollout.rows(rows), prompt=[text, text])
            assert torch.allclose(found[k, rows], expected, atol=1e-5)
    assert torch.equal(found[0, 2:4], rollout.logprob_negative[2:4]) and found[1, 2:4].isnan().all()
    trainer = Trainer(
        generator, ClauseReward(), prompts, tmp_path / "run", algorithm="gcpo_clauses", steps=2, group_size=3, lr=1e-3,
        prompts_per_step=2,
    )  # fmt: skip
    trainer.train()
    assert trainer.step_number == 2
    with pytest.raises(ValueError, match="'a red circle' has no GenEval metadata"):
        Trainer(generator, ClauseReward(), ["a red circle"], tmp_path / "other", algorithm="gcpo_clauses", steps=2)
