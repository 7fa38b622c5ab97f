"""The benchmarks on a masked generator: they run, and refuse a baseline that does something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import bench_options, tiny, tiny_amused
from helpers.messages import names
from t2i_gcpo import cli
from t2i_gcpo.bench import rollout_masked
from t2i_gcpo.generators.amused.likelihoods import LIKELIHOODS
from t2i_gcpo.generators.compilation import can_compile
from t2i_gcpo.records import Prompt, Sampling, Unmasking


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return bench_options.small(tmp_path_factory.mktemp("bench"), tiny_amused.checkpoint, group_size=4)


def test_sampling_against_the_pipeline_writes_its_numbers(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "rollout.json"
    assert cli.main(["bench", "rollout", *options, "--no-compile", "--steps", "3", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["baseline_is"] == "diffusers' AmusedPipeline" and found["headline"] == "eager"
    assert found["better"] == "higher" and found["ratio"] > 0 and found["with_decode"]["pairs"] == 2
    assert (found["settings"]["steps"], found["settings"]["images"], found["settings"]["tokens"]) == (3, 8, 16)
    assert found["versions"]["diffusers"][0].isdigit()


@pytest.mark.slow
def test_the_compiled_sampler_is_measured_beside_it(options: list[str], tmp_path: Path) -> None:
    if not can_compile(torch.device("cpu")):
        pytest.skip("torch.compile has no compiler here")
    out = tmp_path / "rollout.json"
    assert cli.main(["bench", "rollout", *options, "--compile", "--steps", "3", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["headline"] == "compiled" and found["ratio"] > 0 and found["eager"]["pairs"] == 2


def test_the_cost_of_gcpo_over_grpo_writes_its_numbers(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    how = ["--micro-batch", "4", "--sample-pairs", "2"]
    assert cli.main(["bench", "step", *options, *how, "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["headline"] == "update" and found["ratio"] > 0 and found["sampling"]["pairs"] == 2


def test_memory_step_by_step_is_that_of_about_one_step(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    assert cli.main(["bench", "memory", *options, "--steps", "8", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["headline"] == "step_by_step" and found["baseline_is"] == "one sampling step"
    assert 0.5 < found["ratio"] < 1.6 and 4 < found["at_once"]["ratio"] < 10


def test_the_cost_of_each_policy_writes_its_numbers(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "policies.json"
    assert cli.main(["bench", "policies", *options, "--steps", "8", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["baseline_is"] == "commit_step"
    for name in set(LIKELIHOODS) - {"commit_step"}:
        assert found[name]["ratio"] > 0 and found[name]["baseline"] > 0


def test_other_generators_have_no_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = bench_options.small(tmp_path, tiny.checkpoint, group_size=2)
    assert cli.main(["bench", "policies", *options]) == 2
    assert "is a janus checkpoint; this benchmark is of masked ones (amused)" in capsys.readouterr().err


def test_both_sides_do_the_same_work() -> None:
    generator = tiny_amused.generator()
    prompts = [Prompt("a red circle"), Prompt("two blue star")]
    how = Sampling(group_size=3, guidance=2.0, unmasking=Unmasking(steps=4))
    ours = generator.sample(prompts, how)
    calls: list[int] = []
    forward = generator.parts.transformer.forward

    def counted(states: Any, **more: Any) -> Any:
        calls.append(len(states))
        return forward(states, **more)

    generator.parts.transformer.forward = counted
    theirs = rollout_masked.Pipeline(generator, prompts, how).rollout(ours)
    assert calls == [12] * 4, "both branches of 6 images, 4 steps"
    calls.clear()
    generator.sample(prompts, how)
    assert calls == [12] * 4
    generator.parts.transformer.forward = forward
    for step in range(4):
        assert torch.equal((theirs.commit_step == step).sum(dim=1), (ours.commit_step == step).sum(dim=1))
    assert int(theirs.tokens.max()) < 32, "no mask is left"
    assert not torch.equal(theirs.tokens[0], theirs.tokens[1])


def test_a_baseline_that_samples_otherwise_is_refused(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = rollout_masked.Pipeline.__init__

    def other(self: rollout_masked.Pipeline, generator: Any, prompts: list[Prompt], how: Sampling) -> None:
        original(self, generator, prompts, how)
        self.null = self.texts  # no guidance at all

    monkeypatch.setattr(rollout_masked.Pipeline, "__init__", other)
    with pytest.raises(RuntimeError, match="not samples of one distribution"):
        cli.main(
            ["bench", "rollout", *options, "--no-compile", "--steps", "16", "--group-size", "16", "--guidance", "4"]
        )


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=names("'cosine'", "confidence", "'random'")):
        rollout_masked.Pipeline(tiny_amused.generator(), [Prompt("a")], Sampling(unmasking=Unmasking(order="random")))
