"""The estimator of alignment, on a tabular policy whose true gradient is known; and the command that uses it."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rewards
from helpers import pages, tiny, training
from t2i_gcpo import cli
from t2i_gcpo.algorithms import TABLE, loss, resolve, token_advantages
from t2i_gcpo.commands import credit_alignment as command
from t2i_gcpo.evaluation.credit_bias import enumerated_rollout, group_gradients
from t2i_gcpo.evaluation.gradient_alignment import (
    GradientFile,
    Products,
    adamw_scale,
    between,
    gain,
    interval,
    measure,
    products,
    stability,
    statistics,
)
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.reports.tables import number, with_interval
from t2i_gcpo.training.rollout import collect
from t2i_gcpo.training.rule_gradients import rule_gradients

GROUPS = 6
"""Groups of a batch of the tabular policy."""


class Tabular:
    """All groups of the two-token world: each rule's gradient of every group, and what follows exactly from them."""

    def __init__(self) -> None:
        _, _, self.probability = enumerated_rollout()
        rules = {"grpo": TABLE["grpo"], "kl": resolve("gcpo", normalization="none")}
        self.gradients = torch.stack([group_gradients(rule).flatten(1) for rule in rules.values()])  # [R, N, D]
        self.means = torch.einsum("n,rnd->rd", self.probability, self.gradients)
        squares = torch.einsum("n,rnd->r", self.probability, self.gradients.square())
        lengths = self.means.square().sum(dim=1)
        self.single = lengths + (squares - lengths) / GROUPS  # mean squared length of a batch's gradient

    def batches(self, count: int, seed: int) -> Tensor:
        """[R, N, D] fp64: the gradients of `count` batches, drawn by the groups' probabilities."""
        rng = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(self.probability, count * GROUPS, replacement=True, generator=rng)
        return self.gradients[:, drawn].view(2, count, GROUPS, -1).mean(dim=2)

    def true(self, rule: int) -> dict[str, float]:
        mean, truth = self.means[rule], self.means[0]
        product, length, reach = float(mean @ truth), float(mean @ mean), float(truth @ truth)
        return {
            "alignment": product / math.sqrt(reach * float(self.single[rule])),
            "agreement": product / math.sqrt(float(self.single[rule]) * float(self.single[0])),
            "signal_to_noise": length / (float(self.single[rule]) - length),
            "cosine": product / math.sqrt(length * reach),
            "length": math.sqrt(float(self.single[rule]) / float(self.single[0])),
        }


@pytest.fixture(scope="module")
def tabular() -> Tabular:
    return Tabular()


def plain(gradients: Tensor) -> list[Products]:
    return products(iter([gradients]), true=0, rules=len(gradients))["plain"]


def test_products_of_different_batches_are_unbiased_and_those_of_the_mean_are_not(tabular: Tabular) -> None:
    runs = [tabular.batches(4, seed) for seed in range(800)]
    length = np.array([between(plain(run)[0].true) for run in runs])
    cross = np.array([between(plain(run)[1].cross) for run in runs])
    naive = np.array([float(run[0].mean(dim=0).square().sum()) for run in runs])
    expected = float(tabular.means[0] @ tabular.means[0]), float(tabular.means[1] @ tabular.means[0])

    def errors(values: np.ndarray, true: float) -> float:
        return float(abs(values.mean() - true) / (values.std() / len(values) ** 0.5))

    assert errors(length, expected[0]) < 3 and errors(cross, expected[1]) < 3
    assert errors(naive, expected[0]) > 6


def test_many_batches_give_the_exact_statistics(tabular: Tabular) -> None:
    found = plain(tabular.batches(3000, seed=1))
    for rule in range(2):
        for name, value in tabular.true(rule).items():
            assert statistics(found[rule])[name] == pytest.approx(value, rel=0.05)
    assert tabular.true(0)["cosine"] == pytest.approx(1.0)
    assert tabular.true(1)["cosine"] < 0.99  # the rule is biased


def test_intervals_hold_the_true_value_about_as_often_as_they_say(tabular: Tabular) -> None:
    true, held = tabular.true(1)["alignment"], 0
    for seed in range(200):
        low, high = interval(plain(tabular.batches(16, seed))[1], "alignment")
        held += low <= true <= high
    assert 0.88 <= held / 200 <= 1.0


def test_two_batches_by_hand() -> None:
    # u: (2, 0), (1, 1); m: (0, 1), (2, 1). m.u of different batches: (0,1).(1,1) = 1, (2,1).(2,0) = 4, mean 2.5.
    rule, true = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).double(), torch.tensor([[2.0, 0.0], [1.0, 1.0]]).double()
    values = statistics(Products(rule @ rule.T, rule @ true.T, true @ true.T))
    assert values["alignment"] == pytest.approx(2.5 / math.sqrt(2 * 3))  # u.u = 2, q = (1 + 5) / 2
    assert values["agreement"] == pytest.approx(2.5 / math.sqrt(3 * 3))  # q0 = (4 + 2) / 2
    assert values["signal_to_noise"] == pytest.approx(1 / (3 - 1))  # m.m = (0,1).(2,1) = 1
    assert values["cosine"] == pytest.approx(2.5 / math.sqrt(1 * 2))
    assert values["length"] == pytest.approx(math.sqrt(3 / 3))
    twice = statistics(Products(4 * rule @ rule.T, 2 * rule @ true.T, true @ true.T))
    assert twice["length"] == pytest.approx(2.0) and twice["cosine"] == pytest.approx(values["cosine"])


def test_what_cannot_be_told_from_noise_is_no_number() -> None:
    opposite = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]).double()
    found = Products(*[opposite @ opposite.T] * 3)
    values = statistics(found)
    assert math.isnan(values["alignment"]) and math.isnan(values["cosine"])
    assert values["signal_to_noise"] == pytest.approx(-0.25)  # m.m = -1/3, q = 1
    assert values["agreement"] == pytest.approx(-1 / 3)  # a number in any case
    assert all(math.isnan(bound) for bound in interval(found, "alignment"))


def test_adamw_counts_a_parameter_by_its_own_size() -> None:
    gradients = torch.tensor([[3.0, 0.01], [-4.0, 0.02]]).double()
    assert adamw_scale(gradients).tolist() == pytest.approx([1 / 12.5**0.5, 1 / 0.00025**0.5], rel=1e-4)
    scaled = gradients * torch.tensor([100.0, 0.01]).double()
    one, other = (products(iter([g[None]]), true=0, rules=1)["adamw"][0].own for g in (gradients, scaled))
    weights = torch.tensor([100.0, 0.01]).double()
    parts = gradients.T[:, :, None] * gradients.T[:, None, :] * adamw_scale(gradients)[:, None, None]
    assert torch.allclose(one, parts.sum(dim=0))
    assert torch.allclose(other, (parts * weights[:, None, None]).sum(dim=0), rtol=1e-4)


def test_the_file_gives_back_what_was_written_and_slices_change_nothing(tmp_path: Path) -> None:
    gradients = torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))
    file = GradientFile(tmp_path / "g.tmp", 2, 4, 10)
    for rule in range(2):
        for batch in range(4):
            file.write(rule, batch, [gradients[rule, batch, :6].view(2, 3), gradients[rule, batch, 6:]])
    whole, sliced = (products(file.slices(file.values.shape[1], width), true=0, rules=2) for width in (10, 3))
    assert torch.allclose(whole["plain"][1].cross, gradients[1].double() @ gradients[0].double().T, atol=1e-6)
    for metric, each in whole.items():
        assert all(torch.allclose(a.own, b.own) for a, b in zip(each, sliced[metric], strict=True))
    file.remove()
    assert not (tmp_path / "g.tmp").exists()


def test_stability_compares_the_order_in_two_halves() -> None:
    rng = torch.Generator().manual_seed(0)
    signal = torch.randn(50, generator=rng).double()
    noise = torch.randn(8, 50, generator=rng).double()
    found = products(iter([torch.stack([signal + size * noise for size in (0.1, 1.0, 3.0)])]), true=0, rules=3)
    assert stability(found["plain"]) == pytest.approx(1.0)
    assert math.isnan(stability([each.of(range(7)) for each in found["plain"]]))
    assert measure(found, ["a", "b", "c"]).stability["plain"] == pytest.approx(1.0)


def test_rules_have_an_order_where_the_true_gradients_length_cannot_be_told_from_0() -> None:
    def products_of(cross: float) -> Products:
        own, true = torch.eye(8).double() * 3, torch.full((8, 8), -0.1).double()
        return Products(own, torch.full((8, 8), cross).double(), true + torch.eye(8).double())

    found = [products_of(cross) for cross in (0.1, 0.3, 0.2)]
    assert math.isnan(statistics(found[0])["alignment"])
    assert stability(found, "agreement") == pytest.approx(1.0) and math.isnan(stability(found))
    assert measure({"plain": found, "adamw": found}, ["a", "b", "c"]).stability["plain"] == pytest.approx(1.0)


def test_what_is_chance_in_both_cancels_in_the_difference_from_the_true_rule() -> None:
    rng = torch.Generator().manual_seed(0)
    true = torch.randn(50, generator=rng).double() + 2 * torch.randn(12, 50, generator=rng).double()
    noisier = true + 0.5 * torch.randn(12, 50, generator=rng).double()
    found = products(iter([torch.stack([true, noisier])]), true=0, rules=2)["plain"]
    alike, other = (gain(each, found[0]) for each in found)
    assert alike.value == 0 and alike.interval == (0, 0)
    assert other.value == statistics(found[1])["agreement"] - statistics(found[0])["agreement"] < 0
    low, high = interval(found[1], "agreement")
    assert 0 < other.interval[1] - other.interval[0] < (high - low) / 2
    result = measure({"plain": found, "adamw": found}, ["grpo", "other"])
    assert result.rules[1].gain["plain"] == other


@pytest.mark.parametrize("lora", [False, True])
def test_one_pass_gives_each_rule_the_gradient_of_its_own_loss(lora: bool) -> None:
    generator = training.generator()
    if lora:
        generator.add_lora(rank=2, seed=1)
        with torch.no_grad():
            for k, parameter in enumerate(generator.trainable_parameters()):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)))
    rules = {name: resolve(name, group_size=3, kl_coef=0.0) for name in ("grpo", "gcpo", "dr_grpo")}
    reward, sampling = rewards.load(f"{__name__}:redness"), Sampling(group_size=3)
    scored = collect(generator, reward, [Prompt("a red circle"), Prompt("a blue square")], sampling)
    found = rule_gradients(generator, scored, rules, micro_batch=4)
    parameters = generator.trainable_parameters()
    for name, rule in rules.items():
        targets = token_advantages(rule, scored.rollout, scored.scores)
        scores = generator.training_scores(scored.rollout, distribution="guided")
        whole = loss(rule, scores.logprob, scores.logprob.detach(), targets).loss
        for a, b in zip(found[name], torch.autograd.grad(whole, parameters), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(found["gcpo"][0], found["grpo"][0])


def redness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    return images[:, 0].float().mean(dim=(1, 2)) / 255


def constant(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    return torch.ones(len(images))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("alignment")
    tiny.checkpoint(folder / "model")
    (folder / "prompts.txt").write_text("a red circle\na blue square\na green star\n")
    return [
        *("--checkpoint", str(folder / "model"), "--prompts", str(folder / "prompts.txt"), "--compile", "off"),
        *("--prompts-per-batch", "2", "--group-size", "3"),
    ]


def test_the_command_writes_a_table_and_a_plot_and_leaves_no_gradients(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = ["gcpo", "gcpo:normalization=none,divergence=abs", "gcpo_shuffled"]
    given = [*arguments, "--reward", f"{__name__}:redness", "--batches", "4", "--out", str(tmp_path), "--rules", *rules]
    assert cli.main(["credit-alignment", *given]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alignment.json", "alignment.png"]
    found = json.loads((tmp_path / "alignment.json").read_text())
    assert [rule["rule"] for rule in found["rules"]] == ["grpo", *rules]
    assert set(found["rules"][1]["values"]) == {"plain", "adamw"}
    assert found["about"]["batches"] == 4 and 0 < found["about"]["informative_groups"] <= 1
    assert "gcpo:normalization=none,divergence=abs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batches", "3"], "--batches is 3; it must be at least 4"),
        (["--rules", "gcpo", "gcpo"], "names gcpo twice"),
        (["--rules", "gcpa"], "unknown algorithm 'gcpa'"),
        (["--rules", "gcpo:normalization"], "is not ROW or ROW:option=value"),
        (["--rules", "gcpo:normalization=ranks"], "normalization"),
        (["--batches", "4", "--reward", f"{__name__}:constant"], "in none of the 8 groups do the rewards differ"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_and_leaves_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    given = [*arguments, "--reward", f"{__name__}:redness", *more, "--out", str(tmp_path)]
    assert cli.main(["credit-alignment", *given]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_more_gradients_than_the_disk_holds_are_refused_before_anything_is_drawn(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert cli.main(["credit-alignment", *arguments, "--reward", f"{__name__}:redness", "--out", str(tmp_path)]) == 2
    assert "take 0.0 GB" in capsys.readouterr().err


def test_a_signal_ends_it_with_the_batches_until_then(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, batches: int) -> int:
        given = [*arguments, "--reward", f"{__name__}:redness", "--batches", str(batches)]
        return cli.main(["credit-alignment", *given, "--out", str(tmp_path / name)])

    assert run("whole", 4) == 0
    drawn: list[int] = []
    last = 0

    def counted(*given: Any, **options: Any) -> Any:
        drawn.append(1)
        assert len(drawn) <= last, "a batch after the signal"
        if len(drawn) == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return rule_gradients(*given, **options)

    monkeypatch.setattr(command, "rule_gradients", counted)
    last = 4
    assert run("ended", 9) == 0 and "SIGTERM: 4 of 9 batches are drawn" in capsys.readouterr().out
    whole, ended = (json.loads((tmp_path / name / "alignment.json").read_text()) for name in ("whole", "ended"))
    assert whole == ended
    drawn.clear()
    last = 3
    assert run("early", 9) == 143 and "no result is kept, as it takes 4 batches" in capsys.readouterr().err
    assert not list((tmp_path / "early").iterdir())


@pytest.mark.parametrize("world", ["janus_mini", "janus_textured"])
def test_the_page_shows_the_committed_measurement(world: str) -> None:
    def cell(value: float | None, bounds: list[float | None], *, signed: bool = False) -> str:
        given = [math.nan if bound is None else bound for bound in bounds]
        return number(None) if value is None else with_interval(value, (given[0], given[1]), signed=signed)

    file = pages.ROOT / "docs" / "results" / f"alignment_{world}" / "alignment.json"
    page = (pages.ROOT / "docs" / "alignment.md").read_text(encoding="utf-8")
    for one in json.loads(file.read_text())["rules"]:
        cells = []
        for metric, others in (("plain", ("signal_to_noise", "cosine")), ("adamw", ("signal_to_noise",))):
            value, bounds, gained = (one[key][metric] for key in ("values", "intervals", "gain"))
            cells += [cell(value[name], bounds[name]) for name in ("alignment", "agreement")]
            cells += [cell(gained["value"], gained["interval"], signed=True)]
            cells += [cell(value[name], bounds[name]) for name in others]
        assert f"| `{one['rule']}` | {' | '.join(cells)} |" in page
