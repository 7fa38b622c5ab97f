"""Influence of a token on the reward: the estimator, the places that are drawn anew, the file, and the rules' table."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import pages, tiny
from helpers.fake_generator import FakeGenerator
from rewards.base import RewardOutput
from t2i_gcpo import cli, generators
from t2i_gcpo.algorithms import ALL_STATS, resolve
from t2i_gcpo.evaluation import causal_agreement
from t2i_gcpo.evaluation.causal_agreement import agreement, half_of, rank_correlation
from t2i_gcpo.evaluation.causal_file import Truth
from t2i_gcpo.evaluation.causal_influence import Influence, Plan, between_variance, measure
from t2i_gcpo.generators.tokens.sampling import draw, draw_coupled, gumbel_noise
from t2i_gcpo.records import Rollout, Sampling
from t2i_gcpo.reports.tables import agreement_note, number, with_interval


def test_the_variance_between_alternatives_by_hand() -> None:
    # Row means 0.75 and 0.25: their variance is 0.125. Residuals of rewards - row - column + mean (0.5):
    # columns' means .5, 0, 1, .5 give +.25, -.25, -.25, +.25 and the negatives: 8 x 0.0625 = 0.5, over 3 degrees of
    # freedom and 4 completions: 0.5 / 3 / 4.
    rewards = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    assert between_variance(rewards).item() == pytest.approx(0.125 - 0.5 / 12)


def test_noise_that_all_alternatives_share_cancels_and_the_estimate_is_unbiased() -> None:
    rng = torch.Generator().manual_seed(0)
    shared = 10 * torch.randn(20_000, 1, 4, generator=rng)
    expected = 0.5 * torch.randn(20_000, 3, 1, generator=rng)
    own = torch.randn(20_000, 3, 4, generator=rng)
    alone = between_variance(shared.expand(-1, 3, -1))
    assert float(alone.abs().max()) < 1e-4
    estimates = between_variance(shared + expected + own)
    assert float(estimates.mean()) == pytest.approx(0.25, abs=5 * float(estimates.std()) / 20_000**0.5)
    assert float((estimates < 0).float().mean()) > 0.1  # it is an estimate, not clipped at 0


def test_gumbel_noise_draws_from_the_distribution_and_couples_those_that_are_alike() -> None:
    rng = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(2, 6, generator=rng)
    logits[1] = logits[0] + torch.randn(6, generator=rng)
    logits[:, 2] = -torch.inf
    p, q = logits.softmax(-1)
    noise = gumbel_noise(range(40_000), 5, 6)
    drawn = [draw_coupled(row, noise) for row in logits]
    for tokens, chance in zip(drawn, (p, q), strict=True):
        assert torch.allclose(tokens.bincount(minlength=6) / 40_000, chance, atol=0.012)
    apart = float((p - q).abs().sum() / 2)
    same = float((drawn[0] == drawn[1]).float().mean())
    assert 0.1 < apart and (1 - apart) / (1 + apart) - 0.01 < same < 1 - apart + 0.01  # 1 - TV is the most there is
    uniform = torch.rand(40_000, generator=rng)
    assert float((draw(logits[:1].expand(40_000, -1), uniform) == draw(logits[1:].expand(40_000, -1), uniform))
                 .float().mean()) < same  # fmt: skip
    noise[:3, 2] = torch.inf
    assert draw_coupled(logits[:1].expand(3, -1), noise[:3]).tolist() == [2, 2, 2]


def test_gumbel_noise_depends_on_key_and_step_alone() -> None:
    noise = gumbel_noise([7, 2**61, 3], 4, 9)
    assert torch.equal(gumbel_noise([2**61], 4, 9)[0], noise[1]) and len(noise.unique(dim=0)) == 3
    assert not torch.equal(gumbel_noise([7], 5, 9)[0], noise[0])


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.checkpoint(folder)
    return generators.load(str(folder), compile=False)


def rollout_of(generator: Any, **options: Any) -> Rollout:
    drawn = {"group_size": 2, "stats": ALL_STATS, "seed": 3, **options}
    return generator.sample(["a red circle", "two blue square"], Sampling(**drawn))


@pytest.mark.parametrize("options", [{}, {"guidance": 1.0}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9}])
@pytest.mark.parametrize("max_batch", [None, 2])
def test_images_go_on_from_any_place_as_they_began(
    generator: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], max_batch: int | None
) -> None:
    """Whatever rows share the batch, so also whatever of them goes forward at once."""
    drawn = {"group_size": 2, "stats": ALL_STATS, "seed": 3, **options}
    rollout = generator.sample(["a red circle", "a red circle two blue square two blue circle"], Sampling(**drawn))
    rows, places = torch.tensor([3, 0, 3, 1, 0]), torch.tensor([0, 5, 16, 11, 1])
    begun = rollout.tokens[rows].masked_fill(torch.arange(16) >= places[:, None], -1)
    begun[1, 9] = 3  # behind a place that is drawn: it does not count
    keys = torch.tensor([8, 8, 9, 10, 11])
    monkeypatch.setattr(generator, "max_batch", max_batch)
    tokens = generator.sample_on(rollout, rows, begun, keys)
    for drawn, row, place in zip(tokens, rows, places, strict=True):
        assert torch.equal(drawn[:place], rollout.tokens[row, :place])
    assert torch.equal(tokens[2], rollout.tokens[3])
    for row in range(5):
        alone = generator.sample_on(rollout, rows[row : row + 1], begun[row : row + 1], keys[row : row + 1])
        assert torch.equal(alone[0], tokens[row])
    other = generator.sample_on(rollout, rows, begun, keys + 20)
    assert not torch.equal(tokens[1, 5:], other[1, 5:])


def test_images_that_go_on_are_drawn_from_the_distribution_of_the_rollout(generator: Any) -> None:
    """Token 7 after the same seven tokens: as often as `redraw` draws it, which inverts the distribution."""
    rollout = rollout_of(generator).rows(torch.tensor([1]))
    begun = rollout.tokens.masked_fill(torch.arange(16) >= 7, -1).expand(3000, -1)
    went_on = generator.sample_on(rollout, torch.zeros(3000, dtype=torch.long), begun, torch.arange(3000))[:, 7]
    uniform = torch.rand(1, 16, 3000, generator=torch.Generator().manual_seed(4))
    redrawn = generator.redraw(rollout, uniform)[0, 7]
    most = generator.codebook_size
    counts = [tokens.bincount(minlength=most) / 3000 for tokens in (went_on, redrawn)]
    assert len(went_on.unique()) > 3 and torch.allclose(*counts, atol=0.04)
    others = generator.redraw(rollout_of(generator), uniform[..., :3].expand(4, -1, -1))
    assert others.shape == (4, 16, 3) and bool((others != rollout_of(generator).tokens[..., None]).any())


def test_images_with_one_key_stay_alike_after_a_token_that_differs(generator: Any) -> None:
    rollout = rollout_of(generator)
    begun = rollout.tokens[:1].masked_fill(torch.arange(16) > 2, -1).repeat(200, 1)
    begun[1::2, 2] = (begun[1::2, 2] + 1) % generator.codebook_size
    pairs = torch.arange(100).repeat_interleave(2)
    rows = torch.zeros(200, dtype=torch.long)
    together, apart = (generator.sample_on(rollout, rows, begun, keys)[:, 3:] for keys in (pairs, torch.arange(200)))
    alike = [float((tokens[::2] == tokens[1::2]).float().mean()) for tokens in (together, apart)]
    assert alike[0] > alike[1] + 0.2


class FirstTwo:
    """Scores 1 where token 2 is even, +10 where token 5 is above 15; the rest has no influence."""

    name = "first_two"

    def __init__(self, generator: Any) -> None:
        self.seen: list[Tensor] = []
        self.decode, generator.decode = generator.decode, self.remember
        self.images = 0

    def remember(self, tokens: Tensor) -> Tensor:
        self.seen.append(tokens)
        return self.decode(tokens)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        tokens = self.seen[-1]
        self.images += len(images)
        return RewardOutput((tokens[:, 2] % 2 == 0).float() + 10 * (tokens[:, 5] > 15).float())


def test_tokens_that_decide_the_reward_are_found_and_no_others(generator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "decode", generator.decode)
    reward: Any = FirstTwo(generator)
    rollout = rollout_of(generator, guidance=1.0).groups(torch.tensor([0]))
    influence = measure(generator, reward, rollout, Plan(0, 16, 4), rng=torch.Generator().manual_seed(5))
    others = generator.redraw(rollout, torch.rand(2, 16, 2000, generator=torch.Generator().manual_seed(6)))
    above = (others[:, 5] > 15).float().mean(dim=-1)
    # After token 5 nothing matters: exactly 0. Token 5 itself: a coin of +10 with the probability of a token above 15.
    assert torch.equal(influence.value[:, 6:], torch.zeros(2, 10))
    assert torch.allclose(influence.value[:, 5], 10 * (above * (1 - above)).sqrt(), atol=1.5)
    assert influence.drawn > 0 and influence.variance.shape == (2, 16)


def test_a_token_that_is_decided_costs_nothing(generator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reward: Any = FirstTwo(generator)
    rollout = rollout_of(generator)
    same = rollout.tokens.unsqueeze(-1).expand(-1, -1, 2)
    monkeypatch.setattr(generator, "redraw", lambda *_: same)
    influence = measure(generator, reward, rollout, Plan(0, 2, 4))
    assert influence.drawn == 0 and reward.images == 0 and torch.equal(influence.variance, torch.zeros(4, 16))
    monkeypatch.undo()
    some = measure(generator, reward, rollout, Plan(3, 2, 4), rng=torch.Generator().manual_seed(0))
    assert some.variance.isfinite().sum(dim=1).tolist() == [3] * 4


def test_a_generator_without_a_fixed_order_is_refused() -> None:
    from t2i_gcpo.generators.base import ImageGenerator

    class Masked(FakeGenerator, ImageGenerator):
        """Has the protocol's defaults."""

    Masked.__abstractmethods__ = frozenset()
    generator = Masked()
    with pytest.raises(ValueError, match="Masked draws its tokens in no fixed order"):
        measure(generator, FirstTwo(generator), generator.sample(["a red circle"], Sampling()))  # type: ignore[arg-type]


def test_half_of_the_influence_and_the_correlation_by_hand() -> None:
    value = np.array([[0.0, 3.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, np.nan, 4.0]])
    assert half_of(value).tolist() == [[False, True, False, False], [False] * 4, [False, False, False, True]]
    assert half_of(np.array([[2.0, 3.0, 2.0, 0.0]])).tolist() == [[True, True, False, False]]
    everywhere = np.ones((1, 3), dtype=bool)
    left, right = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 9.0, 2.0]])
    assert rank_correlation(left, right, everywhere)[0] == pytest.approx(0.5)
    assert rank_correlation(left, np.ones((1, 3)), everywhere)[0] == 0.0


def known(generator: Any) -> Truth:
    """Influence that is exactly GCPO's own weights, but for one place that was not measured."""
    rollout = rollout_of(generator)
    value = torch.from_numpy(causal_agreement.weights(resolve("gcpo", group_size=2), rollout)[0]).float()
    variance = value.square()
    variance[:, 3] = torch.nan
    influence = Influence(variance, variance.expand(2, -1, -1), 7)
    scores = torch.tensor([0.0, 1.0, 1.0, 1.0])
    return Truth(rollout, influence, generator.decode(rollout.tokens), scores, {"checkpoint": "tiny"})


def test_a_rule_that_is_the_truth_agrees_wholly_and_others_do_not(generator: Any) -> None:
    truth = known(generator)
    rules = {name: resolve(name, group_size=2) for name in ("grpo", "gcpo", "gcpo_shuffled", "gcpo_sibling")}
    found = agreement(truth, rules)
    assert found.rules["gcpo"]["rank_correlation"].overall == pytest.approx(1.0)
    assert found.rules["gcpo"]["auroc"].overall == pytest.approx(1.0)
    assert found.rules["grpo"]["rank_correlation"].overall == 0 and found.rules["grpo"]["auroc"].overall == 0.5
    assert found.rules["grpo"]["share"].overall == pytest.approx(found.half_tokens)
    assert found.rules["gcpo"]["share"].overall > 0.5 > found.rules["gcpo_shuffled"]["share"].overall
    assert abs(found.rules["gcpo_shuffled"]["rank_correlation"].overall) < 0.3
    assert found.reliability.overall == pytest.approx(1.0) and (found.images, found.without) == (4, 0)
    none = Influence(torch.zeros_like(truth.influence.variance), truth.influence.halves)
    with pytest.raises(ValueError, match="no token of the 4 images has an influence"):
        agreement(replace(truth, influence=none), rules)


def test_the_mean_weight_of_the_influence_is_a_ratio_of_sums_of_what_was_measured(generator: Any) -> None:
    truth = known(generator)
    rules = {name: resolve(name, group_size=2) for name in ("grpo", "gcpo", "gcpo_shuffled")}
    found = agreement(truth, rules)
    weights, squared = causal_agreement.weights(rules["gcpo"], truth.rollout)[0], truth.influence.variance.numpy()
    above = below = 0.0
    for n in range(4):
        for t in range(16):
            if t != 3:
                above, below = above + weights[n, t] * squared[n, t], below + squared[n, t]
    assert found.rules["gcpo"]["weight"].overall == pytest.approx(above / below) and above / below > 1.5
    assert found.rules["grpo"]["weight"].overall == pytest.approx(1.0)
    assert found.rules["gcpo_shuffled"]["weight"].overall == pytest.approx(1.0, abs=0.25)
    assert found.decided.overall == pytest.approx(np.nansum(squared) / 4 * 16 / 15) and found.told
    assert found.reward_variance.overall == pytest.approx(0.25)  # 0.5 of the first prompt, 0 of the other


def test_the_open_tokens_are_those_whose_estimate_is_not_exactly_nothing(generator: Any) -> None:
    """By hand: a rule that finds where anything could have changed, and not what of it matters."""
    truth = known(generator)
    variance = torch.zeros(4, 16)
    variance[:, :4] = torch.tensor([0.09, -0.01, 0.02, 0.01])  # the first alone holds half
    truth = replace(truth, influence=Influence(variance, truth.influence.halves))
    weights = np.ones((4, 16))
    weights[:, :4] = [2.0, 3.0, 2.0, 1.5]
    found = causal_agreement.compare(truth, {"map": [weights]}).rules["map"]
    assert found["auroc"].overall == pytest.approx((12 + 1 + 0.5) / 15)  # below one, beside one, above 13 others
    assert found["auroc_open"].overall == pytest.approx((1 + 0.5) / 3)
    assert found["weight"].overall == pytest.approx((0.18 - 0.03 + 0.04 + 0.015) / 0.11)


def test_a_truth_that_is_all_noise_says_so_and_gives_no_number_of_it(generator: Any) -> None:
    """Estimates around 0, of which the largest look like a truth."""
    truth = known(generator)
    noise = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    variance = noise - noise.mean()
    found = agreement(
        replace(truth, influence=Influence(variance, truth.influence.halves)), {"gcpo": resolve("gcpo", group_size=2)}
    )
    assert not found.told and all(map(math.isnan, found.rules["gcpo"]["weight"].ci95))
    assert "THE FORMER IS NOT TOLD FROM 0" in agreement_note(found)
    assert "NOT TOLD" not in agreement_note(agreement(truth, {"gcpo": resolve("gcpo", group_size=2)}))


def test_the_file_gives_back_what_was_measured_and_refuses_others(generator: Any, tmp_path: Path) -> None:
    truth = known(generator)
    influence, rollout = truth.influence, truth.rollout
    again = Truth.load(truth.save(tmp_path / "truth.safetensors"))
    assert again.about == truth.about and again.influence.drawn == 7
    for name in ("tokens", "logprob_positive", "logprob_negative", "logprob_behaviour", "commit_step"):
        assert torch.equal(vars(again.rollout)[name], vars(rollout)[name])
    assert torch.equal(again.influence.variance.nan_to_num(-1), influence.variance.nan_to_num(-1))
    assert torch.equal(again.images, truth.images) and again.rollout.prompts == rollout.prompts
    assert sorted(again.rollout.stats) == sorted(ALL_STATS)
    (tmp_path / "other.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is no measured influence"):
        Truth.load(tmp_path / "other.safetensors")
    cut = replace(truth, influence=Influence(influence.variance[:, :5], influence.halves, 0))
    with pytest.raises(ValueError, match="do not fit"):
        Truth.load(cut.save(tmp_path / "cut.safetensors"))


def brightness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    return images[:, 0, :4].float().mean(dim=(1, 2)) / 255


def test_the_command_measures_once_and_compares_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.checkpoint(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    given = ["--checkpoint", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts.txt"), "--compile", "off"]
    more = ["--reward", f"{__name__}:brightness", "--alternatives", "2", "--completions", "4", "--places", "2"]
    out = tmp_path / "out"
    assert cli.main(["credit-truth", *given, *more, "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["truth.json", "truth.png", "truth.safetensors"]
    first = json.loads((out / "truth.json").read_text())
    assert first["images"] + first["images_without_influence"] == 4 and first["images_finished"] > 0
    assert {"grpo", "gcpo", "gcpo_sibling"} <= set(first["rules"])
    assert "gcpo_shuffled" in capsys.readouterr().out
    measured = ["--measured", str(out / "truth.safetensors"), "--rules", "gcpo", "--out", str(tmp_path / "again")]
    assert cli.main(["credit-truth", *measured]) == 0
    again = json.loads((tmp_path / "again/truth.json").read_text())
    assert again["rules"] == {"gcpo": first["rules"]["gcpo"]}
    assert not (tmp_path / "again/truth.safetensors").exists()


@pytest.mark.parametrize("world", ["janus_mini", "janus_textured"])
def test_the_page_shows_what_the_committed_images_say(world: str) -> None:
    folder = pages.ROOT / "docs" / "results" / f"truth_{world}"
    committed, page = json.loads((folder / "truth.json").read_text()), (pages.ROOT / "docs" / "truth.md").read_text()
    for rule, measures in committed["rules"].items():
        cells = [
            number(one["mean"]) if None in one["ci95"] else with_interval(one["mean"], one["ci95"])
            for one in measures.values()
        ]
        assert f"| {' | '.join([rule.replace(',', ', '), *cells])} |" in page
    truth = Truth.load(folder / "truth.safetensors")
    some = {name: resolve(name, group_size=2) for name in ("gcpo", "gcpo_variance")}
    again = agreement(truth, some).to_json()
    assert again["rules"] == {name: committed["rules"][name] for name in some}
    assert again["images_finished"] == committed["images_finished"] and f"{again['images_finished']:,} images" in page


def interrupting(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    if len(images) == 2:  # the images themselves, before any is finished anew
        os.kill(os.getpid(), signal.SIGTERM)
    return images[:, 0, :4].float().mean(dim=(1, 2)) / 255


def test_sigterm_ends_after_the_prompt_and_keeps_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.checkpoint(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    given = ["--checkpoint", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts.txt"), "--compile", "off"]
    more = ["--reward", f"{__name__}:interrupting", "--alternatives", "2", "--completions", "4", "--places", "2"]
    assert cli.main(["credit-truth", *given, *more, "--rules", "gcpo", "--out", str(tmp_path / "out")]) == 0
    assert "SIGTERM: 1 of 2 prompts are measured" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/truth.json").read_text())["prompts_measured"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--completions", "5"], "completions is 5; it must be even"),
        (["--alternatives", "1"], "alternatives is 1; it must be at least 2"),
        ([], "give --checkpoint and --prompts to measure, or --measured FILE"),
        (["--measured", "nowhere.safetensors"], "nowhere.safetensors is no measured influence"),
        (["--rules", "gcpa"], "unknown algorithm 'gcpa'"),
        (["--rules", "gcpo", "gcpo_events"], "gcpo_events: events change what of a token is trained"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli.main(["credit-truth", *more, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
