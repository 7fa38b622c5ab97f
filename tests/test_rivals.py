"""STAGE's similarity weights and critical tokens: by hand, against slow loops, and in the loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny
from t2i_gcpo import generators, losses
from t2i_gcpo.algorithms import loss, resolve, rivals, token_advantages, token_weights
from t2i_gcpo.records import Prompt, Rollout, Sampling
from t2i_gcpo.training.credit_inputs import credit_inputs

P, G, ROWS, COLUMNS, D, V = 2, 4, 5, 6, 3, 7
B, T = P * G, ROWS * COLUMNS
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_rollout() -> Rollout:
    return Rollout(
        tokens=torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1)),
        logprob_positive=-random(B, T).abs(),
        logprob_negative=None,
        logprob_behaviour=-random(B, T).abs(),
        commit_step=torch.arange(T).expand(B, T),
        prompts=(Prompt("a"), Prompt("b")),
        grid=(ROWS, COLUMNS),
        sampling=Sampling(group_size=G),
        stats={"entropy": random(B, T, seed=2).abs(), "behaviour_entropy": random(B, T, seed=3).abs()},
    )


def cosine(left: Tensor, right: Tensor) -> float:
    return float(left @ right / (left.norm() * right.norm()))


# --- STAGE ----------------------------------------------------------------------------------------------------------


def test_similarity_by_hand() -> None:
    # Image 0 (+) has the siblings 1 and 2 (-): cosines 1 and 0. Image 3 has advantage 0, so all count, itself as 0.
    vectors = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 3.0]], [[-1.0, 0.0]]])
    advantages = torch.tensor([1.0, -1.0, -2.0, 0.0])
    similarity = rivals.opposite_similarity(vectors, advantages, 4)
    # 0: images 1, 2, 3: (1 + 0 - 1) / 3;  1: images 0, 3: (1 - 1) / 2;  2: images 0, 3: 0;  3: 0, 1, 2, itself: -2 / 4
    assert similarity[:, 0].tolist() == pytest.approx([0.0, 0.0, 0.0, -0.5])
    weights = rivals.dissimilarity(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]))
    assert (0.4375 * weights).flatten().tolist() == pytest.approx([0.0, 0.5, 1.0, 0.25])
    assert rivals.similarity_kl_weights(torch.tensor([-1.0, -0.5, 0.0, 1.0])).tolist() == [0.5, 0.75, 1.0, 1.0]
    assert rivals.dissimilarity(torch.ones(2, 2)).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_similarity_is_that_of_a_slow_loop() -> None:
    vectors, advantages = random(B, T, D), random(B)
    advantages[2] = 0.0
    found = rivals.opposite_similarity(vectors, advantages, G)
    for i in range(B):
        group = range(i // G * G, i // G * G + G)
        opposite = [j for j in group if advantages[i] * advantages[j] <= 0]
        for t in range(T):
            each = [0.0 if j == i else cosine(vectors[i, t], vectors[j, t]) for j in opposite]
            assert float(found[i, t]) == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_tokens_that_all_images_share_teach_less_than_those_that_differ() -> None:
    vectors = random(B, T, D)
    vectors[:, 5] = vectors[0, 5]
    vectors[:, 9] = REWARDS[:, None].where(REWARDS[:, None] > 0, torch.tensor(-1.0)) * vectors[0, 9]
    similarity = rivals.opposite_similarity(vectors, 2 * REWARDS - 1, G)
    weights = rivals.dissimilarity(similarity)
    assert float(weights[:, 5].max()) < 1e-6 and torch.equal(weights.argmax(dim=1), torch.full((B,), 9))
    assert float(weights.mean()) == pytest.approx(1.0)


# --- critical tokens -------------------------------------------------------------------------------------------------


def test_the_entropy_gradient_is_that_of_a_slow_loop() -> None:
    entropy = random(1, T).abs()
    image = entropy.view(ROWS, COLUMNS)
    mean = torch.zeros(ROWS, COLUMNS)
    for i in range(ROWS):
        for j in range(COLUMNS):
            near = [(i, j), (i, j - 1), (i - 1, j - 1), (i - 1, j), (i - 1, j + 1)]
            inside = [float(image[a, b]) for a, b in near if a >= 0 and 0 <= b < COLUMNS]
            mean[i, j] = sum(inside) / len(inside)
    for i in range(ROWS):
        for j in range(COLUMNS):
            up, down = max(i - 1, 0), min(i + 1, ROWS - 1)
            left, right = max(j - 1, 0), min(j + 1, COLUMNS - 1)
            dy, dx = (mean[down, j] - mean[up, j]) / (down - up), (mean[i, right] - mean[i, left]) / (right - left)
            found = float(rivals.entropy_gradient(entropy, (ROWS, COLUMNS))[0, i * COLUMNS + j])
            assert found == pytest.approx(math.hypot(dx, dy), abs=1e-5)


def test_a_grid_of_one_row_changes_along_it_alone() -> None:
    found = rivals.entropy_gradient(torch.tensor([[0.0, 2.0, 6.0]]), (1, 3))
    assert found[0].tolist() == pytest.approx([1.0, 2.0, 3.0])  # means with the left neighbour: 0, 1, 4
    assert rivals.entropy_gradient(torch.tensor([[3.0]]), (1, 1)).tolist() == [[0.0]]


def test_the_critical_tokens_by_hand() -> None:
    entropy, vectors = torch.zeros(B, T), torch.ones(B, T, D)
    entropy[:, 14] = 5.0  # row 2, column 2: the mean of its neighbourhood jumps around it
    vectors[1::2, 20:23] *= -1  # siblings differ there; 20 and 21 come before 22 in a tie of three
    vectors[1::2, 1] *= -1  # among the first, which are chosen anyway
    chosen = rivals.critical_tokens(entropy, vectors, G, (ROWS, COLUMNS), share=0.1)
    assert torch.equal(chosen, chosen[:1].expand(B, -1)) and chosen[0].sum() == 9
    places = set(chosen[0].nonzero().flatten().tolist())
    assert {0, 1, 2} <= places and places & {20, 21, 22} == {20, 21, 22}
    change = rivals.entropy_gradient(entropy[:1], (ROWS, COLUMNS))[0]
    steep = places - {0, 1, 2, 20, 21, 22}
    assert min(float(change[t]) for t in steep) == float(change[3:27].topk(3).values.min()) > 0


def test_sibling_similarity_is_that_of_a_slow_loop() -> None:
    vectors = random(B, T, D, seed=5)
    found = rivals.sibling_similarity(vectors, G)
    for p in range(P):
        for t in range(0, T, 7):
            rows = range(p * G, p * G + G)
            each = [cosine(vectors[i, t], vectors[j, t]) for i in rows for j in rows if i != j]
            assert found[p * G : p * G + G, t].tolist() == pytest.approx([sum(each) / len(each)] * G, abs=1e-5)


def test_the_running_ratio_by_hand_lets_the_gradient_through() -> None:
    own = torch.tensor([[0.0, 0.1, -2.0]], requires_grad=True)
    ratio = rivals.running_ratio(own, torch.zeros(1, 3), 0.5)
    steps = [1.0, math.exp(0.1), math.exp(-0.5)]
    assert ratio[0].tolist() == pytest.approx([steps[0], sum(steps[:2]) / 2, sum(steps) / 3])
    (gradient,) = torch.autograd.grad(ratio[0, 2], own)
    assert gradient[0].tolist() == pytest.approx([1 / 3, math.exp(0.1) / 3, 0.0])


# --- in the loss -----------------------------------------------------------------------------------------------------


def targets(name: str, **overrides: Any) -> Any:
    algorithm = resolve(name, group_size=G, entropy_reward_coef=0.0, **overrides)
    return algorithm, token_advantages(algorithm, make_rollout(), REWARDS, code_vectors=random(V, D, seed=6))


def test_rows_take_weights_and_the_factor_of_their_kl() -> None:
    rollout, vectors = make_rollout(), random(V, D, seed=6)
    _, stage = targets("stage")
    similarity = rivals.opposite_similarity(vectors[rollout.tokens], stage.sequence_advantages, G)
    assert torch.allclose(stage.weights, rivals.dissimilarity(similarity))
    assert torch.allclose(stage.kl_weights, rivals.similarity_kl_weights(similarity))
    _, critical = targets("critical_tokens")
    assert torch.equal(critical.kl_weights, critical.weights)
    assert critical.weights.sum(dim=1).tolist() == pytest.approx([T] * B)
    assert sorted(critical.weights[0].unique().tolist()) == pytest.approx([0.0, T / 9])
    _, gcpo = targets("grpo")
    assert torch.equal(gcpo.kl_weights, losses.kl_weights(gcpo.weights))


@pytest.mark.parametrize("name", ["stage", "critical_tokens"])
def test_a_step_makes_tokens_of_good_images_more_likely_where_they_have_weight(name: str) -> None:
    algorithm, found = targets(name)
    own = make_rollout().logprob_positive.clone().requires_grad_()
    output = loss(algorithm, own, own.detach(), found, logprob_reference=own.detach())
    (gradient,) = torch.autograd.grad(output.loss, own)
    ratio_gradient = torch.zeros_like(own)
    if algorithm.ratio_bound:  # at ratio 1, A_t * d(mean of ratios before t) adds A_s w_s / (s + 1) for all s >= t
        later = (found.advantages / torch.arange(1, T + 1)).flip(-1).cumsum(-1).flip(-1)
        ratio_gradient = -later / (B * T)
    assert torch.allclose(gradient, -found.advantages / (B * T) + ratio_gradient, atol=1e-7)
    with pytest.raises(ValueError, match="pass logprob_reference"):
        loss(algorithm, own, own.detach(), found)


def test_what_is_missing_is_named() -> None:
    rollout = make_rollout()
    for name in ("stage", "critical_tokens"):
        algorithm = resolve(name, group_size=G, entropy_reward_coef=0.0)
        with pytest.raises(ValueError, match=r"pass code_vectors, generator.code_vectors"):
            token_advantages(algorithm, rollout, REWARDS)
    with pytest.raises(ValueError, match="follow from the rewards"):
        token_weights(resolve("stage", group_size=G), rollout)


def test_a_generator_gives_the_vectors_and_both_rows_train(tmp_path: Path) -> None:
    from t2i_gcpo.training.trainer import Trainer

    tiny.checkpoint(tmp_path / "model")
    generator = generators.load(str(tmp_path / "model"), compile=False)
    rollout = generator.sample(["a red circle"], Sampling(group_size=2))
    assert credit_inputs(generator, resolve("gcpo"), rollout) == {"code_vectors": None, "clause_logprobs": None}
    quantised = generator.code_vectors("codebook")
    assert len(quantised) == generator.codebook_size == len(generator.code_vectors("inputs"))
    assert not torch.equal(quantised[0], quantised[1])

    def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return images[:, 0].float().mean(dim=(1, 2))

    for name in ("stage", "critical_tokens"):
        trainer = Trainer(
            generator, reward, ["a red circle"], tmp_path / name, algorithm=name, steps=2, group_size=3, lr=1e-3,
            prompts_per_step=2,
        )  # fmt: skip
        trainer.train()
        assert trainer.step_number == 2
