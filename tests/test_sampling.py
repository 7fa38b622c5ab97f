"""Guidance, truncation, drawing and noise, by hand and against slow references."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from t2i_gcpo.generators.tokens import sampling


def log(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def test_mix_by_hand() -> None:
    mixed = sampling.mix(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]), 3.0)
    assert mixed.tolist() == [3.0, -2.0]


def test_guidance_1_is_the_conditional_bit_for_bit_and_needs_no_second_branch() -> None:
    conditional = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sampling.behaviour_logits(conditional), conditional)
    assert torch.equal(sampling.behaviour_logits(conditional, torch.full_like(conditional, 9.0)), conditional)
    with pytest.raises(ValueError, match=r"guidance is 2.*unconditional"):
        sampling.behaviour_logits(conditional, guidance=2.0)


def test_behaviour_logits_divides_the_guided_logits_by_the_temperature() -> None:
    logits = sampling.behaviour_logits(
        torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]), guidance=3.0, temperature=0.5
    )
    assert logits.tolist() == [6.0, -4.0]


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, {0, 1, 2, 3}),
        (2, 1.0, {0, 2}),
        (9, 1.0, {0, 1, 2, 3}),
        (0, 0.45, {2}),  # the most likely token alone has 0.5
        (0, 0.55, {0, 2}),
        (0, 1e-9, {2}),  # one token always stays
        (2, 0.6, {2}),  # renormalised over the two: 0.5 / 0.8 = 0.625 is enough
        (2, 0.63, {0, 2}),
    ],
)
def test_truncate_by_hand(top_k: int, top_p: float, kept: set[int]) -> None:
    cut = sampling.truncate(log(0.3, 0.05, 0.5, 0.15), top_k=top_k, top_p=top_p)
    assert set(torch.isfinite(cut).nonzero().flatten().tolist()) == kept
    assert torch.equal(cut[sorted(kept)], log(0.3, 0.05, 0.5, 0.15)[sorted(kept)])


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.1}, {"top_k": 2, "top_p": 0.3}])
def test_the_kept_token_stays_and_nothing_else_joins_it(options: dict[str, float]) -> None:
    logits = log(0.3, 0.05, 0.5, 0.15).repeat(2, 1)
    cut = sampling.truncate(logits, keep=torch.tensor([1, 2]), **options)  # type: ignore[arg-type]
    assert torch.isfinite(cut).nonzero().tolist() == [[0, 1], [0, 2], [1, 2]]


def test_no_gradient_through_what_was_cut() -> None:
    logits = log(0.3, 0.05, 0.5, 0.15).requires_grad_()
    sampling.truncate(logits, top_k=2).log_softmax(-1)[2].backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([-0.375, 0.0, 0.375, 0.0]))


def test_temperature_0_is_greedy_and_takes_one_token_of_a_tie() -> None:
    logits = sampling.behaviour_logits(torch.tensor([[1.0, 3.0, 3.0]]), temperature=0.0)
    assert logits.softmax(-1).tolist() == [[0.0, 1.0, 0.0]]
    assert sampling.draw(logits, torch.tensor([0.999])).tolist() == [1]


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="top_p"):
        sampling.truncate(torch.zeros(3), top_p=0.0)
    with pytest.raises(ValueError, match="top_k"):
        sampling.truncate(torch.zeros(3), top_k=-1)
    with pytest.raises(ValueError, match="temperature"):
        sampling.behaviour_logits(torch.zeros(3), temperature=-1.0)


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = log(0.25, 0.0, 0.5, 0.25)
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 0.9999])
    assert sampling.draw(logits.expand(6, 4), uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_never_takes_an_impossible_token() -> None:
    """First and last tokens impossible, uniform at and near both ends.

    Over codebooks whose sum of probabilities rounds differently.
    """
    generator = torch.Generator().manual_seed(1)
    edges = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-23, sampling.LARGEST_UNIFORM, 1.0])
    for vocabulary in (5, 1000, 16384):
        logits = torch.randn(len(edges), vocabulary, generator=generator) * 3
        logits[:, :2] = logits[:, -2:] = -torch.inf
        logits[:, vocabulary // 2 : -1] -= 200.0  # underflows to probability 0 in fp32
        drawn = sampling.draw(logits, edges)
        assert (logits.softmax(-1).gather(-1, drawn[:, None]) > 0).all()


def test_draw_follows_the_distribution() -> None:
    logits = torch.randn(64, generator=torch.Generator().manual_seed(2)) * 1.5
    uniform = sampling.row_noise(3, [(0, 0)], 40_000)[0]
    counts = sampling.draw(logits.expand(len(uniform), -1), uniform).bincount(minlength=64)
    expected = logits.double().softmax(-1) * len(uniform)
    assert chisquare(counts.double().numpy(), expected.numpy()).pvalue > 1e-3
    shifted = expected.roll(1)  # the test has the power to see a distribution that is off by one token
    assert chisquare(counts.double().numpy(), shifted.numpy()).pvalue < 1e-6


def test_noise_of_a_row_does_not_depend_on_its_batch() -> None:
    rows = [(p, i) for p in range(3) for i in range(4)]
    together = sampling.row_noise(7, rows, 32)
    alone = torch.cat([sampling.row_noise(7, [row], 32) for row in reversed(rows)]).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(sampling.row_noise(7, rows[5:6], 48)[0, :32], together[5])
    assert len(together.unique()) > 0.99 * together.numel()  # neither rows nor columns repeat
    assert not torch.equal(together, sampling.row_noise(8, rows, 32))
    assert ((together >= 0) & (together < 1)).all()
    assert abs(sampling.row_noise(0, rows * 1, 4000).mean().item() - 0.5) < 0.01


def test_noise_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    sampling.row_noise(0, [(0, 0)], 8)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_exact_kl_and_js_by_hand() -> None:
    positive, negative = log(0.5, 0.5), log(0.9, 0.1)
    kl = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    js = 0.5 * (
        0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3) + 0.9 * math.log(0.9 / 0.7) + 0.1 * math.log(0.1 / 0.3)
    )
    assert sampling.exact_kl(positive, negative).item() == pytest.approx(kl, rel=1e-5)
    assert sampling.js(positive, negative).item() == pytest.approx(js, rel=1e-5)
    assert sampling.js(negative, positive).item() == pytest.approx(js, rel=1e-5)
    far = torch.tensor([100.0, 0.0])
    assert sampling.js(far, far.flip(0)).item() == pytest.approx(math.log(2))


def test_exact_kl_of_close_distributions_is_no_rounding_noise() -> None:
    generator = torch.Generator().manual_seed(4)
    positive = torch.randn(4, 4096, generator=generator)
    negative = positive + 1e-3 * torch.randn(4, 4096, generator=generator)
    log_p, log_q = positive.double().log_softmax(-1), negative.double().log_softmax(-1)
    exact = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(sampling.exact_kl(positive, negative).double(), exact, rtol=1e-3, atol=0.0)
    assert sampling.exact_kl(positive, positive).max() < 1e-12


@pytest.mark.slow
def test_functions_on_logits_compile_in_one_graph() -> None:
    def step(conditional: Tensor, unconditional: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        logits = sampling.behaviour_logits(
            conditional, unconditional, guidance=3.0, temperature=0.9, top_k=20, top_p=0.8
        )
        divergences = sampling.exact_kl(conditional, unconditional), sampling.js(conditional, unconditional)
        return sampling.draw(logits, uniform), *divergences

    generator = torch.Generator().manual_seed(5)
    inputs = *(torch.randn(4, 50, generator=generator) for _ in range(2)), torch.rand(4, generator=generator)
    for plain, compiled in zip(
        step(*inputs), torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs), strict=True
    ):
        torch.testing.assert_close(plain, compiled)
