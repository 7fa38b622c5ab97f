"""Token weights by hand, against slow loops, and where they must not react."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from t2i_gcpo import credit

ALPHA = math.log(0.2) / math.log(0.6) - 1
KINDS = ["kl", "abs", "js", "information_gain"]
NORMALIZATIONS = ["rank", "softmax", "minmax", "none"]


def make_logprobs(rows: int = 4, tokens: int = 50, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    positive = -5 * torch.rand(rows, tokens, generator=generator)
    return positive, positive - spread * torch.randn(rows, tokens, generator=generator)


def make_mask(rows: int = 4, tokens: int = 50) -> Tensor:
    mask = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(9)) < 0.6
    mask[1] = True
    mask[2] = False
    return mask


# --- divergences ----------------------------------------------------------------------------------------------------


def test_divergences_by_hand() -> None:
    positive, negative = torch.tensor([[0.4, 0.1]]).log(), torch.tensor([[0.1, 0.4]]).log()

    def values(kind: str) -> list[float]:
        return credit.divergence(positive, negative, kind)[0].tolist()  # type: ignore[arg-type]

    ln4 = math.log(4)
    assert values("abs") == pytest.approx([ln4, ln4])
    assert values("information_gain") == pytest.approx([ln4, 0.0])
    assert values("kl") == pytest.approx([0.25 - 1 + ln4, 4 - 1 - ln4])
    # p = 0.4, q = 0.1, mean 0.25: (log(0.4 / 0.25) + 0.25 log(0.1 / 0.25)) / 2, and the other way round
    js = [(math.log(1.6) + 0.25 * math.log(0.4)) / 2, (math.log(0.4) + 4 * math.log(1.6)) / 2]
    assert values("js") == pytest.approx(js, rel=1e-5)


def test_kl_and_js_are_unbiased_estimates_over_the_vocabulary() -> None:
    generator = torch.Generator().manual_seed(1)
    log_p, log_q = (0.7 * torch.randn(1, 12, generator=generator) for _ in range(2))  # below the cap of 10
    log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    js = 0.5 * (log_p.exp() * (log_p - middle) + log_q.exp() * (log_q - middle)).sum()
    assert (log_p.exp() * credit.divergence(log_p, log_q, "kl")).sum().item() == pytest.approx(kl.item(), rel=1e-5)
    assert (log_p.exp() * credit.divergence(log_p, log_q, "js")).sum().item() == pytest.approx(js.item(), rel=1e-5)


@pytest.mark.parametrize(("kind", "curvature"), [("kl", 2.0), ("js", 8.0)])
def test_small_contrasts_are_not_rounded_away(kind: str, curvature: float) -> None:
    d = torch.tensor([[1e-5, -1e-5, 1e-4, -3e-4]])
    torch.testing.assert_close(
        credit.divergence(torch.zeros_like(d), d, kind),  # type: ignore[arg-type]
        d.square() / curvature,
        rtol=1e-3,
        atol=0.0,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_stay_finite_and_at_least_0(kind: str) -> None:
    d = torch.tensor([[-100.0, -20.0, -3.0, 0.0, 3.0, 20.0, 100.0]])
    values = credit.divergence(torch.zeros_like(d), d, kind)  # type: ignore[arg-type]
    assert values.isfinite().all() and (values >= 0).all()
    assert values[0, 3] == 0
    if kind in ("kl", "js"):  # bounded above at d = 20; below, k3 is 20 + expm1(-20) > 10 and js half of ln 2
        lowest = 10.0 if kind == "kl" else math.log(2) / 2
        assert values[0, [0, 1, 5, 6]].tolist() == pytest.approx([lowest, lowest, 10.0, 10.0])


# --- normalisation --------------------------------------------------------------------------------------------------


def test_rank_weights_by_hand() -> None:
    weights = credit.normalize(torch.tensor([[0.3, 0.1, 0.9, 0.5]]), floor=0.0)
    raw = [(rank / 4) ** ALPHA for rank in (2, 1, 4, 3)]
    assert weights[0].tolist() == pytest.approx([4 * value / sum(raw) for value in raw])
    assert pytest.approx(2.1507, abs=1e-4) == ALPHA


def test_top_40_percent_carry_80_percent() -> None:
    weights = credit.normalize(torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0)))
    assert credit.statistics(weights)["top_share"] == pytest.approx(0.8, abs=1e-3)
    other = credit.normalize(torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0)), top=0.1, mass=0.5)
    assert credit.statistics(other, top=0.1)["top_share"] == pytest.approx(0.5, abs=1e-3)
    flat = credit.normalize(torch.rand(1, 100), top=0.3, mass=0.3)
    torch.testing.assert_close(flat, torch.ones(1, 100))


def slow_rank_weights(values: list[float], mask: list[bool]) -> list[float]:
    valid = [value for value, keep in zip(values, mask, strict=True) if keep]
    raw = []
    for value, keep in zip(values, mask, strict=True):
        below, equal = sum(other < value for other in valid), sum(other == value for other in valid)
        raw.append(((below + (equal + 1) / 2) / len(valid)) ** ALPHA if keep else 0.0)
    return [value * len(valid) / sum(raw) if valid else 0.0 for value in raw]


def test_rank_weights_with_ties_and_masks_against_a_loop() -> None:
    values = torch.randint(0, 12, (4, 50), generator=torch.Generator().manual_seed(2)).float()
    mask = make_mask()
    weights = credit.normalize(values, floor=0.0, mask=mask)
    for row in range(4):
        assert weights[row].tolist() == pytest.approx(
            slow_rank_weights(values[row].tolist(), mask[row].tolist()), abs=1e-5
        )


def test_other_normalisations_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]])
    total = math.e + math.e**2 + math.e**3
    expected = {
        "softmax": [3 * math.e / total, 3 * math.e**2 / total, 3 * math.e**3 / total],
        "minmax": [0.0, 1.0, 2.0],
        "none": [0.5, 1.0, 1.5],
    }
    for name, numbers in expected.items():
        assert credit.normalize(values, normalization=name)[0].tolist() == pytest.approx(numbers)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_mean_1_and_masked_tokens_out_of_everything(kind: str, normalization: str) -> None:
    positive, negative = make_logprobs()
    mask = make_mask()
    options: dict[str, Any] = {"divergence": kind, "normalization": normalization}
    weights = credit.token_weights(positive, negative, **options, mask=mask)
    assert (weights[~mask] == 0).all() and (weights >= 0).all()
    means = weights.sum(-1) / mask.sum(-1)
    assert means[[0, 1, 3]].tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    # what is masked may be anything
    garbage = torch.where(mask, negative, torch.nan)
    torch.testing.assert_close(credit.token_weights(positive, garbage, **options, mask=mask), weights)
    # a row alone, without its masked tokens, is the same row
    alone = credit.token_weights(positive[:1, mask[0]], negative[:1, mask[0]], **options)
    torch.testing.assert_close(alone[0], weights[0, mask[0]])
    torch.testing.assert_close(
        credit.token_weights(positive[1:2], negative[1:2], **options), weights[1:2]
    )  # no mask = all valid


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_more_contrast_is_never_less_credit(kind: str, normalization: str) -> None:
    gain = torch.linspace(0.0, 3.0, 20)[None]
    weights = credit.token_weights(
        torch.zeros_like(gain),
        -gain,
        divergence=kind,  # type: ignore[arg-type]
        normalization=normalization,  # type: ignore[arg-type]
    )
    assert (weights.diff() >= 0).all() and weights[0, -1] > 1.1 and weights[0, 0] < 1


# --- the noise floor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_no_contrast_is_weight_1(normalization: str) -> None:
    positive, _ = make_logprobs()
    noise = 1e-6 * torch.randn(4, 50, generator=torch.Generator().manual_seed(3))
    for negative in (positive, positive + noise):
        weights = credit.token_weights(positive, negative, normalization=normalization)  # type: ignore[arg-type]
        assert torch.equal(weights, torch.ones_like(positive))
    mask = make_mask()
    assert torch.equal(credit.token_weights(positive, positive + noise, mask=mask), mask.float())


def test_without_a_floor_a_rank_spreads_rounding_noise() -> None:
    positive, _ = make_logprobs()
    noise = 1e-6 * torch.randn(4, 50, generator=torch.Generator().manual_seed(3))
    assert credit.token_weights(positive, positive + noise, floor=0.0).max() > 2.5


def test_the_floor_is_a_mean_absolute_difference_per_image() -> None:
    positive = torch.zeros(3, 4)
    negative = torch.tensor([[0.0, 0.0, 0.0, -0.5], [0.0, 0.0, 0.0, -0.3], [0.1, -0.1, 0.1, -0.2]])
    assert credit.contrast(positive, negative).tolist() == pytest.approx([0.125, 0.075, 0.125])
    weights = credit.token_weights(positive, negative, floor=0.1)
    assert torch.equal(weights[1], torch.ones(4))
    assert weights[0, 3] > 1.5 and weights[2, 3] > 1.5  # signs do not cancel in the mean
    mask = torch.tensor([True, True, True, False]).expand(3, 4)
    assert credit.contrast(positive, negative, mask=mask).tolist() == pytest.approx([0.0, 0.0, 0.1])


def test_the_default_floor_is_well_above_the_rounding_of_fp32_logprobs() -> None:
    logits = 5 * torch.randn(32, 16_384, generator=torch.Generator().manual_seed(4))
    error = (logits.log_softmax(-1) - logits.double().log_softmax(-1)).abs().mean()
    assert 20 * error < credit.DEFAULT_FLOOR


def test_floor_of_ready_made_divergences() -> None:
    values = torch.tensor([[1e-9, 2e-9, 3e-9], [1e-3, 2e-3, 3e-3]])
    weights = credit.normalize(values)
    assert torch.equal(weights[0], torch.ones(3)) and weights[1, 2] > 1.5
    assert credit.normalize(values, floor=0.0)[0, 2] > 1.5


def test_nan_is_not_hidden_by_a_rank() -> None:
    values = torch.tensor([[1.0, torch.nan, 2.0], [1.0, 2.0, 3.0]])
    weights = credit.normalize(values)
    assert weights[0].isnan().any() and weights[1].isfinite().all()


def test_weights_carry_no_gradient() -> None:
    positive, negative = make_logprobs()
    assert not credit.token_weights(positive.requires_grad_(), negative.requires_grad_()).requires_grad


# --- controls and statistics ----------------------------------------------------------------------------------------


def test_random_weights_have_gcpos_values_at_random_places() -> None:
    mask = make_mask()
    weights = credit.random_weights((4, 50), mask=mask, generator=torch.Generator().manual_seed(0))
    again = credit.random_weights((4, 50), mask=mask, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weights, again) and (weights[~mask] == 0).all()
    ordered = credit.normalize(torch.arange(50.0)[None])[0]
    torch.testing.assert_close(weights[1].sort().values, ordered)
    other = credit.random_weights((4, 50), mask=mask, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(other[1], weights[1])


def test_shuffled_weights_are_a_permutation_of_each_rows_valid_tokens() -> None:
    mask = make_mask()
    weights = credit.token_weights(*make_logprobs(), mask=mask)
    mixed = credit.shuffled(weights, mask=mask, generator=torch.Generator().manual_seed(0))
    assert (mixed[~mask] == 0).all()
    torch.testing.assert_close(mixed.sort(dim=-1).values, weights.sort(dim=-1).values)
    assert not torch.equal(mixed, weights)
    same_rows = credit.shuffled(torch.arange(50.0).expand(3, 50), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(same_rows[0], same_rows[1])  # each row has a permutation of its own
    many = credit.shuffled(torch.eye(5)[0].expand(20_000, 5), generator=torch.Generator().manual_seed(1))
    assert many.mean(dim=0).tolist() == pytest.approx([0.2] * 5, abs=0.02)  # every place is equally likely


def test_controls_leave_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    credit.random_weights((2, 3), generator=torch.Generator().manual_seed(0))
    credit.shuffled(torch.ones(2, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_statistics_by_hand() -> None:
    uniform = credit.statistics(torch.ones(2, 10))
    assert uniform == pytest.approx({"effective_tokens": 1.0, "top_share": 0.4})
    one_token = credit.statistics(torch.tensor([[4.0, 0.0, 0.0, 0.0]]))
    assert one_token == pytest.approx({"effective_tokens": 0.25, "top_share": 1.0})
    # 3 valid tokens with 2.0, 1.0, 0.0: 3^2 / 5 / 3; the top 1.2 tokens hold 2 + 0.2
    masked = torch.tensor([[True, True, True, False], [False] * 4])
    ragged = credit.statistics(torch.tensor([[1.0, 2.0, 0.0, 7.0], [9.0] * 4]), mask=masked)
    assert ragged == pytest.approx({"effective_tokens": 0.6, "top_share": 2.2 / 3})


# --- errors and compilation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"divergence": "chi2"}, "kl, abs, js, information_gain"),
        ({"normalization": "zscore"}, "rank, softmax, minmax, none"),
        ({"top": 0.0}, r"in \(0, 1\)"),
        ({"mass": 1.0}, r"in \(0, 1\)"),
        ({"top": 0.5, "mass": 0.4}, "mass at least top"),
        ({"mask": torch.ones(4, 49, dtype=torch.bool)}, r"\(4, 49\).*\(4, 50\)"),
    ],
)
def test_what_is_not_allowed(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        credit.token_weights(*make_logprobs(), **options)


def test_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        credit.token_weights(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.slow
def test_token_weights_compile_in_one_graph() -> None:
    positive, negative = make_logprobs()
    compiled = torch.compile(credit.token_weights, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(positive, negative, mask=make_mask()), credit.token_weights(positive, negative, mask=make_mask())
    )
