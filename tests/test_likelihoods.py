"""What the rows of the masked policies score: states, targets and factors by hand, and against slow loops."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from helpers.messages import names
from t2i_gcpo.commands.options.config import GeneratorConfig
from t2i_gcpo.generators.amused.likelihoods import (
    LIKELIHOODS,
    Plan,
    folded,
    log_remainder,
    passes,
    plan,
    remask_counts,
    remasked,
    resolve,
    step_gain,
    trajectory,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "likelihoods.md").read_text(encoding="utf-8")


def test_the_option_names_the_rows() -> None:
    assert get_args(get_type_hints(GeneratorConfig)["masked_policy"]) == tuple(LIKELIHOODS)
    assert all(row.name == name and row.exact for name, row in LIKELIHOODS.items())
    with pytest.raises(
        ValueError, match=names("'commit'", "commit_step", "transition", "transition_remask", "remask", "key_steps")
    ):
        resolve("commit")


def test_the_page_has_a_row_a_policy() -> None:
    definitions = re.findall(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|", PAGE.split("## What is exact")[0], re.MULTILINE)
    assert [name for name, _, _ in definitions] == list(LIKELIHOODS)
    for name, paper, exact in definitions:
        assert paper.strip() == LIKELIHOODS[name].paper
        assert (exact.strip() == "no") == (LIKELIHOODS[name].exact == "no")


def test_the_page_compares_them_by_what_the_study_and_the_benchmark_found() -> None:
    found = json.loads((DOCS / "results" / "masked_policies" / "results.json").read_text(encoding="utf-8"))
    costs = json.loads((DOCS / "results" / "bench" / "masked_policies.json").read_text(encoding="utf-8"))
    compared = PAGE.split("## The five compared")[1]
    for row in found["groups"]:
        name = row["arm"].removesuffix("_grpo")
        title = f"| `{name}`, GRPO |" if row["arm"].endswith("_grpo") else f"| `{name}` |"
        (line,) = [line for line in compared.splitlines() if line.startswith(title)]
        gain, (low, high) = row["difference"]["overall"], row["difference"]["ci95"]
        scores = (
            f"| {row['before']['overall']:.3f} | {row['after']['overall']:.3f} | "
            f"{gain:+.3f} [{low:+.3f}, {high:+.3f}] |"
        )
        assert f"| {row['seeds']} | {row['images']:,} {scores} {row['lowest_seed']['difference']:+.3f} |" in line
        if row["arm"] in costs:
            low, high = costs[row["arm"]]["ratio_ci95"]
            assert line.endswith(f"| {costs[row['arm']]['ratio']:.2f} [{low:.2f}, {high:.2f}] |")
    assert {row["arm"] for row in found["groups"]} == {*LIKELIHOODS, "commit_step_grpo"}


def test_how_many_passes_an_update_has() -> None:
    assert [passes(LIKELIHOODS[name], 0, 12, "confidence") for name in LIKELIHOODS] == [12, 12, 12, 12, 6]
    assert [passes(LIKELIHOODS[name], 3, 12, "confidence") for name in LIKELIHOODS] == [3] * 5
    assert passes(LIKELIHOODS["key_steps"], 0, 4, "random") == 4
    assert passes(LIKELIHOODS["remask"], 20, 12, "random") == 20, "re-maskings are no steps to choose from"
    with pytest.raises(ValueError, match="masked_passes is 13, but there are 12 sampling steps"):
        passes(LIKELIHOODS["commit_step"], 13, 12, "confidence")
    with pytest.raises(ValueError, match=names("'random'", "sampling.unmasking.order", "confidence", "transition")):
        passes(LIKELIHOODS["transition_remask"], 0, 12, "random")  # fmt: skip


# -- the steps of the trajectory -------------------------------------------------------------------------------------

COMMIT = torch.tensor([[1, 0, 2, 1, 1, 2], [0, 1, 1, 2, 1, 2]])


def test_steps_by_hand() -> None:
    found = trajectory(COMMIT, [0, 1, 2], steps=3, by_step=False)
    assert [item.visible[0].int().tolist() for item in found.passes] == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0],
    ]
    assert [item.target[0].nonzero().flatten().tolist() for item in found.passes] == [[1], [0, 3, 4], [2, 5]]
    assert all(torch.equal(item.share, item.target.float()) for item in found.passes)
    assert found.scale.tolist() == [[1.0] * 6] * 2
    one = trajectory(COMMIT, [1], steps=3, by_step=False)
    assert one.scale[0].tolist() == [3, 0, 0, 3, 3, 0], "one of three steps stands for all"


def test_each_step_counts_the_same_by_step() -> None:
    found = trajectory(COMMIT, [0, 1, 2], steps=3, by_step=True)
    # 6 tokens, 3 steps of 1, 3 and 2 tokens: 6 / (3 * 1), 6 / (3 * 3), 6 / (3 * 2)
    assert found.scale[0].tolist() == pytest.approx([2 / 3, 2.0, 1.0, 2 / 3, 2 / 3, 1.0])
    for step in range(3):
        assert float(found.scale[1][COMMIT[1] == step].sum()) == pytest.approx(2.0)


@pytest.mark.parametrize("by_step", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_random_steps_have_all_steps_factors_on_average(by_step: bool, count: int) -> None:
    subsets = list(itertools.combinations(range(3), count))
    scales = [trajectory(COMMIT, chosen, steps=3, by_step=by_step).scale for chosen in subsets]
    everything = trajectory(COMMIT, [0, 1, 2], steps=3, by_step=by_step).scale
    assert torch.allclose(torch.stack(scales).mean(dim=0), everything)


def test_steps_are_drawn_uniformly_and_for_all_rows_alike() -> None:
    chosen = []
    for seed in range(300):
        found = plan(LIKELIHOODS["commit_step"], COMMIT, steps=3, count=2, generator=rng(seed))
        steps = [int(COMMIT[0][item.target[0]][0]) for item in found.passes]
        assert [int(COMMIT[1][item.target[1]][0]) for item in found.passes] == steps == sorted(steps)
        chosen.append(tuple(steps))
    counts = [chosen.count(pair) for pair in ((0, 1), (0, 2), (1, 2))]
    assert sum(counts) == 300 and all(abs(count - 100) < 5 * math.sqrt(300 * 2 / 9) for count in counts)


# -- the final image, masked again -----------------------------------------------------------------------------------


def test_rates_of_masking_by_hand() -> None:
    # 0.6 + 0.4 m / 4 = 0.7, 0.8, 0.9, and 0.999 instead of 1
    assert remask_counts(4, 1000) == [700, 800, 900, 999]
    assert remask_counts(2, 10) == [8, 9]
    assert remask_counts(1, 1) == [1]


def test_remasked_by_hand() -> None:
    ranks = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    found = remasked(ranks, torch.tensor([[1], [2]]))
    assert [item.target.tolist() for item in found.passes] == [
        [[True, False, False, False]],
        [[False, False, True, True]],
    ]
    # The one token of the first pass has 1/2 of the objective, those of the second 1/4 each; the mean over 4 tokens
    # divides by 4.
    assert found.scale.tolist() == [[2.0, 0.0, 1.0, 1.0]]
    both = remasked(ranks, torch.tensor([[1], [4]]))
    # The first token: 1 in the first pass, 1/4 in the second.
    assert both.passes[0].share[0].tolist() == pytest.approx([0.8, 0.0, 0.0, 0.0])
    assert both.passes[1].share[0].tolist() == pytest.approx([0.2, 1.0, 1.0, 1.0])
    assert both.scale[0].tolist() == pytest.approx([2.5, 0.5, 0.5, 0.5])


def objective(found: Plan, values: Tensor) -> Tensor:
    """[B]: what a plan makes of values [M, B, T] of its passes."""
    summed = sum(item.share * value for item, value in zip(found.passes, values, strict=True))
    return (found.scale * summed).mean(dim=1)


def test_remasked_is_the_mean_of_the_passes_means() -> None:
    ranks = torch.rand(5, 12, generator=rng()).argsort(dim=1).argsort(dim=1)
    counts = torch.randint(1, 13, (5, 3), generator=rng(1))
    found, values = remasked(ranks, counts), torch.randn(5, 3, 12, generator=rng(2))
    for row in range(3):
        means = []
        for m in range(5):
            masked = [t for t in range(12) if int(ranks[m, t]) < int(counts[m, row])]
            assert [bool(x) for x in found.passes[m].visible[row]] == [t not in masked for t in range(12)]
            means.append(sum(float(values[m, row, t]) for t in masked) / len(masked))
        assert float(objective(found, values)[row]) == pytest.approx(sum(means) / 5, abs=1e-6)


def test_passes_of_remask_and_of_key_steps() -> None:
    found = plan(LIKELIHOODS["remask"], COMMIT, steps=3, count=4, generator=rng())
    assert [item.target.sum(dim=1).tolist() for item in found.passes] == [[4, 4], [4, 4], [5, 5], [5, 5]]
    assert all(torch.equal(item.target[0], item.target[1]) for item in found.passes), "rows are masked alike"
    again = plan(LIKELIHOODS["remask"], COMMIT[:1], steps=3, count=4, generator=rng())
    assert all(torch.equal(a.target[:1], b.target) for a, b in zip(found.passes, again.passes, strict=True))
    # Steps 0 and 2 of the first image, 1 and 2 of the second: 6 and 2 tokens were masked then; 5 and 2.
    gain = torch.tensor([[0.3, 0.1, 0.2], [0.0, 0.5, 0.4]])
    key = plan(LIKELIHOODS["key_steps"], COMMIT, steps=3, count=2, generator=rng(), gain=gain)
    assert [item.target.sum(dim=1).tolist() for item in key.passes] == [[6, 5], [2, 2]]
    one = folded(key.passes)
    assert torch.equal(one.target, torch.cat([item.target for item in key.passes])) and len(one.share) == 4


def test_gain_by_hand() -> None:
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # Two tokens; the final image is (0, 1). Cosines: of (0, 0): (1 + 0) / 2; of (2, 1): (-1 + 1) / 2; of (0, 1): 1.
    predictions = torch.tensor([[[0, 0]], [[2, 1]], [[0, 1]], [[0, 1]]])
    assert step_gain(predictions, codebook)[0].tolist() == pytest.approx([0.5, 1.0, 0.0, 0.0], abs=1e-6)


# -- the remainder ---------------------------------------------------------------------------------------------------


def test_remainder_by_hand_and_by_a_slow_loop() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert float(log_remainder(logits, torch.tensor(0.4).log(), 1e-20)) == pytest.approx(math.log(0.5), abs=1e-6)
    assert float(log_remainder(logits, torch.tensor(0.9).log(), 1e-20)) == pytest.approx(0.0, abs=1e-6)
    assert float(log_remainder(logits, torch.tensor(0.1).log(), 1e-20)) == pytest.approx(math.log(1e-20), rel=1e-6)
    many, least = 2 * torch.randn(4, 5, 8, generator=rng()), torch.log(0.3 * torch.rand(4, 5, generator=rng(1)))
    found = log_remainder(many, least, 1e-20)
    for b, t in itertools.product(range(4), range(5)):
        p = many[b, t].double().softmax(0)
        below = sum(float(x) for x in p if float(x) < math.exp(float(least[b, t])))
        assert float(found[b, t]) == pytest.approx(math.log(max(below, 1e-20)), abs=1e-4)


def test_remainder_rises_with_what_is_less_likely() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().requires_grad_()
    least = torch.tensor(0.4).log().requires_grad_()
    log_remainder(logits, least, 1e-20).backward()
    assert logits.grad is not None and least.grad is None
    assert logits.grad[0] < 0 < logits.grad[1] and logits.grad[2] > 0
    # d log(p1 + p2) / d logits = (p_k / (p1 + p2) where k is below) - p_k
    assert logits.grad.tolist() == pytest.approx([-0.5, 0.3, 0.2], abs=1e-6)
    nothing = torch.tensor([0.5, 0.3, 0.2]).log().requires_grad_()
    log_remainder(nothing, torch.tensor(0.1).log(), 1e-20).backward()
    assert nothing.grad is not None and nothing.grad.abs().max() == 0, "bounded, not NaN"
