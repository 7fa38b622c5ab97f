"""The benchmarks' reports and, above all, that each refuses to compare sides that differ.

Nothing here depends on speed.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from helpers import bench_options, tiny
from t2i_gcpo import bench, cli
from t2i_gcpo.bench import credit, logprob, measure, rollout, step
from t2i_gcpo.records import Prompt, Sampling

CPU = torch.device("cpu")
KEYS = {
    "name",
    "ratio",
    "ratio_ci95",
    "better",
    "ours",
    "baseline",
    "unit",
    "pairs",
    "warmup_s",
    "machine",
    "versions",
    "settings",
}


@pytest.fixture(scope="module")
def model_options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return bench_options.small(tmp_path_factory.mktemp("bench"), tiny.checkpoint, group_size=3)


SMALL = {
    "rollout": ["--no-compile"],
    "step": ["--micro-batch", "4", "--sample-pairs", "2"],
    "credit": ["--pairs", "2", "--batch", "3", "--tokens", "20"],
    "logprob": ["--pairs", "2", "--tokens", "48", "--vocabulary", "512", "--width", "16", "--chunk", "8"],
}


def run(name: str, model_options: list[str], out: Path, *more: str) -> dict[str, Any]:
    options = [*(model_options if name in ("rollout", "step") else []), *SMALL[name], *more, "--out", str(out)]
    assert cli.main(["bench", name, *options]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


def settings(name: str, model_options: list[str]) -> list[str]:
    return ["bench", name, *(model_options if name in ("rollout", "step") else []), *SMALL[name]]


# -- the reports ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "better", "unit", "lines"),
    [
        ("rollout", "higher", "images/s", ["eager", "with_decode"]),
        ("step", "lower", "s", ["update", "sampling"]),
        ("credit", "higher", "ms", ["weights"]),
        ("logprob", "lower", "MiB", ["memory", "time"]),
    ],
)
def test_each_benchmark_writes_its_numbers(
    name: str,
    better: str,
    unit: str,
    lines: list[str],
    model_options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(name, model_options, tmp_path / "new folder" / "x.json", "--threads", "1")
    shown = capsys.readouterr().out
    assert found.keys() >= KEYS
    assert (found["name"], found["better"], found["unit"], found["headline"]) == (name, better, unit, lines[0])
    assert (
        found["warmup_s"] > 0 and found["machine"]["threads"] == 1 and found["versions"]["torch"] == torch.__version__
    )
    for line in lines:
        numbers = found[line]
        low, high = numbers["ratio_ci95"]
        assert 0 < low <= numbers["ratio"] <= high < math.inf and numbers["ours"] > 0 and numbers["baseline"] > 0
        assert line in shown
    assert {key: found[key] for key in found[lines[0]]} == found[lines[0]], "the headline is the first line"
    assert "warm-up" in shown and "checked" in shown and str(tmp_path.name) in shown.replace("\n", "")


def test_the_thread_count_is_restored(model_options: list[str], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    other = before + 1
    assert run("credit", model_options, tmp_path / "x.json", "--threads", str(other))["machine"]["threads"] == other
    assert torch.get_num_threads() == before


def test_chunks_need_less_memory_than_a_full_log_softmax(model_options: list[str], tmp_path: Path) -> None:
    """An eighth of the tokens at once and a codebook far wider than the hidden states.

    Bytes, so the same everywhere.
    """
    found = run("logprob", model_options, tmp_path / "x.json")
    logits = 48 * 512 * 4 / measure.MIB
    assert found["baseline"] > 2 * logits, "logits and their log-softmax"
    assert found["ours"] < logits and found["ratio"] < 0.5
    assert found["ratio"] == pytest.approx(found["ours"] / found["baseline"], rel=0.01)


def test_ours_and_the_baseline_are_called_as_the_settings_say(
    model_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Sampling] = []
    original = rollout.generate

    def counted(generator: Any, prompts: list[Prompt], sampling: Sampling) -> Tensor:
        calls.append(sampling)
        tokens = original(generator, prompts, sampling)
        assert tokens.shape == (6, 16)
        return tokens

    monkeypatch.setattr(rollout, "generate", counted)
    found = run("rollout", model_options, tmp_path / "x.json", "--guidance", "3")
    assert (
        found["settings"]["images"] == 6 and found["settings"]["guidance"] == 3.0 and not found["settings"]["compiled"]
    )
    assert {sampling.guidance for sampling in calls} == {3.0}
    assert sum(sampling.temperature == 1 for sampling in calls) == 1 + 1 + 2, "warm-up, check, two pairs"


# -- both sides compute the same --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sampling: replace(sampling, guidance=3.5), "greedy tokens of baseline"),
        (lambda sampling: replace(sampling, temperature=0.3 * sampling.temperature), "not samples of one distribution"),
    ],
)
def test_rollout_refuses_a_baseline_that_samples_otherwise(
    change: Any, message: str, model_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = rollout.generate
    monkeypatch.setattr(
        rollout, "generate", lambda generator, prompts, sampling: original(generator, prompts, change(sampling))
    )
    with pytest.raises(RuntimeError, match=message):
        cli.main(settings("rollout", model_options))


def test_generate_truncates_nothing(model_options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' defaults would keep the 50 most likely tokens; the tiny model has 32, so look at what is passed."""
    seen: dict[str, Any] = {}

    class Model:
        def generate(self, **options: Any) -> Tensor:
            seen.update(options)
            return torch.zeros(6, 16, dtype=torch.long)

    class Prompts:
        def encode(self, texts: list[str]) -> Any:
            return Namespace(ids=torch.tensor([[1, 2], [3, 4]]), mask=torch.tensor([[False, True], [True, True]]))

    generator: Any = Namespace(model=Model(), prompts=Prompts(), device=CPU)
    state = torch.get_rng_state()
    rollout.generate(generator, [Prompt("a"), Prompt("b")], Sampling(group_size=3, guidance=2.0))
    assert (seen["top_k"], seen["top_p"], seen["temperature"], seen["guidance_scale"]) == (0, 1.0, 1.0, 2.0)
    assert seen["input_ids"].tolist() == [[1, 2]] * 3 + [[3, 4]] * 3 and seen["attention_mask"][:3, 0].sum() == 0
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"


def test_step_refuses_updates_that_differ_in_more_than_the_credit(
    model_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = step.resolve
    monkeypatch.setattr(
        step,
        "resolve",
        lambda name, **changes: replace(
            original(name, **changes), kl_weighting=name == "gcpo", kl_coef=1.0 if name == "gcpo" else 0.01
        ),
    )
    # Away from the reference: at it the KL has no gradient.
    monkeypatch.setattr(step.Step, "restore", lambda self: None)
    with pytest.raises(RuntimeError, match="gradients"):
        cli.main(settings("step", model_options))


def test_step_refuses_a_credit_that_does_not_reach_the_loss(
    model_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = step.Step.gradients

    def without_credit(self: step.Step, targets: Any) -> list[Tensor]:
        return original(
            self, replace(targets, advantages=targets.sequence_advantages.unsqueeze(-1).expand_as(targets.advantages))
        )

    monkeypatch.setattr(step.Step, "gradients", without_credit)
    with pytest.raises(RuntimeError, match="does not reach the loss"):
        cli.main(settings("step", model_options))


def test_every_update_starts_from_the_same_weights(model_options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    starts: dict[str, list[Tensor]] = {}
    original = step.Step.__call__

    def watched(self: step.Step) -> None:
        starts.setdefault(self.algorithm.name, []).append(
            torch.cat([w.flatten() for w in self.updater.weights.values()]).clone()
        )
        original(self)
        assert not torch.equal(
            starts[self.algorithm.name][-1], torch.cat([w.flatten() for w in self.updater.weights.values()])
        )

    monkeypatch.setattr(step.Step, "__call__", watched)
    assert cli.main(settings("step", model_options)) == 0
    measured = [weights for each in starts.values() for weights in each[1:]]  # the first is the warm-up
    assert len(measured) == 4 and all(torch.equal(weights, starts["gcpo"][0]) for weights in measured)


def test_credit_refuses_other_weights(model_options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = credit.one_by_one
    monkeypatch.setattr(credit, "one_by_one", lambda a, b: original(b, a))
    with pytest.raises(RuntimeError, match="weights"):
        cli.main(settings("credit", model_options))


def test_the_credit_baseline_by_hand() -> None:
    """Three tokens; ranks 2, 3, 1 of 3, to the power 2.1507, of mean 1."""
    weights = credit.one_by_one(torch.zeros(1, 3), torch.tensor([[-0.5, 1.0, 0.1]]))
    powers = [(rank / 3) ** (math.log(0.2) / math.log(0.6) - 1) for rank in (2, 3, 1)]
    torch.testing.assert_close(weights, torch.tensor([[3 * p / sum(powers) for p in powers]]))


def test_the_credit_inputs_have_no_ties() -> None:
    positive, negative = credit.logprobs(4, 576, torch.Generator().manual_seed(0))
    d = negative.double() - positive.double()
    divergence = (d.expm1() - d).sort(dim=-1).values
    assert divergence.diff(dim=-1).min() > 1e-6, "some rounding steps apart"
    assert (d < 0).any() and (d > 0).any()
    assert not torch.equal(negative[0], negative[1])


def test_logprob_refuses_other_log_probs(model_options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = logprob.full_logprob
    monkeypatch.setattr(logprob, "full_logprob", lambda hidden, head, tokens: original(hidden * 1.01, head, tokens))
    with pytest.raises(RuntimeError, match="log-probs"):
        cli.main(settings("logprob", model_options))


# -- measuring --------------------------------------------------------------------------------------------------------


def test_the_ratio_is_the_median_of_the_pairs() -> None:
    ratio = measure.paired_ratio([2.0, 6.0, 90.0], [1.0, 2.0, 9.0])
    assert ratio.value == 3.0
    assert ratio.ci95 == (2.0, 10.0), "three pairs: the median of a resample is any of them"
    steady = measure.paired_ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    assert (steady.value, steady.ci95) == (2.0, (2.0, 2.0)), "what slows both of a pair does not widen the interval"
    with pytest.raises(ValueError, match="zip"):
        measure.paired_ratio([1.0], [1.0, 2.0])


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    truth, hits, trials = 2.0, 0, 200
    for trial in range(trials):
        noise = torch.randn(30, generator=torch.Generator().manual_seed(trial)).mul(0.1).exp() * truth
        low, high = measure.paired_ratio(noise.tolist(), [1.0] * 30, seed=trial).ci95
        hits += low <= truth <= high
    assert 0.89 <= hits / trials <= 0.99


def test_speed_up_and_cost_point_the_right_way() -> None:
    fast, slow = [1.0, 1.0], [4.0, 4.0]
    faster = measure.speed_up("x", fast, slow, work=8, unit="images/s")
    assert (faster.ratio.value, faster.ours, faster.baseline, faster.better) == (4.0, 8.0, 2.0, "higher")
    dearer = measure.cost("x", slow, fast, unit="ms", scale=1e3)
    assert (dearer.ratio.value, dearer.ours, dearer.baseline, dearer.better) == (4.0, 4000.0, 1000.0, "lower")


def test_sides_are_interleaved_and_the_order_alternates() -> None:
    order: list[str] = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = measure.interleave(sides, 3, CPU, before=lambda name: order.append(f"before {name}"))
    called = [name for name in order if len(name) == 1]
    assert called == ["a", "b", "b", "a", "a", "b"]
    assert all(order[2 * k] == f"before {name}" for k, name in enumerate(called))
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_warm_up_calls_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []
    spent = measure.warm_up({"ours": lambda: calls.append(1)}, CPU, Console(), calls=2)
    assert len(calls) == 2 and spent["ours"] > 0
    assert "warm-up" in capsys.readouterr().out


def test_peak_memory_of_a_known_sequence() -> None:
    """1 MiB, then 2 more, the first released, then 1.5 more: the peak is 3.5, what is left at the end 1.5."""
    kept = torch.zeros(measure.MIB)  # held before: does not count

    def side() -> Tensor:
        first = torch.empty(measure.MIB // 4)
        second = torch.empty(measure.MIB // 2)
        del first
        third = torch.empty(3 * measure.MIB // 8)
        del second
        return third + kept[0]

    assert measure.peak_bytes(side, CPU) / measure.MIB == pytest.approx(3.5, abs=1e-3)


def test_peak_memory_sees_the_backward_pass() -> None:
    values = torch.ones(measure.MIB // 4, requires_grad=True)

    def forward() -> Tensor:
        return values.exp().sum()

    one = measure.peak_bytes(forward, CPU)
    both = measure.peak_bytes(lambda: torch.autograd.grad(forward(), values), CPU)
    assert one / measure.MIB == pytest.approx(1.0, abs=1e-3) and both / measure.MIB == pytest.approx(2.0, abs=1e-3)


# -- a user's mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rolout"], "did you mean rollout?"),
        (["rolout"], "rollout, step, credit, logprob"),
        ([], "rollout, step, credit, logprob"),
        (["--out", "x.json"], "name the benchmark first"),
        (["credit", "--pairs", "1"], "at least 2"),
        (["credit", "--pairs", "0"], "not an integer of at least 1"),
        (["credit", "--tokens", "1"], "a rank needs at least 2"),
        (["credit", "--checkpoint", "janus-mini"], "unrecognized arguments"),
        (["credit", "--device", "nonsense"], "--device nonsense"),
        (["rollout", "--guidance", "1"], "above 1"),
        (
            ["rollout", "--checkpoint", "TINY", "--num-prompts", "1", "--group-size", "1"],
            "raise --num-prompts or --group-size",
        ),
        (["step", "--guidance", "1"], "free under guidance only"),
        (["rollout", "--checkpoint", "no/such/folder"], "no checkpoint"),
    ],
)
def test_mistakes_exit_with_2_and_say_what_to_do(
    arguments: list[str], message: str, model_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [model_options[1] if argument == "TINY" else argument for argument in arguments]
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_as_out_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "credit", "--out", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_help_lists_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in bench.BENCHMARKS)
    assert cli.main(["bench", "logprob", "--help"]) == 0
    assert "--vocabulary" in capsys.readouterr().out
