"""The recipes of papers: every value names its source, and each runs on a tiny model with stand-ins for its scorers."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny
from rewards import registry, weighted_sum
from rewards.base import RewardOutput
from rewards.function import as_reward
from t2i_gcpo.commands.options.arguments import dump, load, parse
from t2i_gcpo.commands.options.build import build_trainer
from t2i_gcpo.data import prompts

FOLDER = Path(__file__).parent.parent / "configs" / "as_published"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PAPERS = {
    "critical_tokens_geneval": "2509.22485",
    "flow_grpo_geneval": "2505.05470",
    "gcpo_geneval": "2605.29198",
    "stage_geneval": "2509.25027",
    "t2i_r1": "2505.00703",
}
ROW = {
    "tag": "two_object",
    "include": [{"class": "bench", "count": 1}, {"class": "cow", "count": 1}],
    "task_type": "spatial",
    "nouns": ["bench", "cow"],
}

each = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def test_the_recipes_that_there_are() -> None:
    assert [path.stem for path in RECIPES] == sorted(PAPERS)


@each
def test_every_value_says_where_it_is_from(path: Path) -> None:
    head, body = path.read_text().split("output_dir:", 1)
    assert PAPERS[path.stem] in head and "\n# Not here:" in head
    named = {match.lower() for match in re.findall(r"(\w+):", head)} | {"readme", "paper", "ours"}
    lines = [line for line in f"output_dir:{body}".splitlines() if line.strip()]
    for line in lines:
        if re.fullmatch(r"\s*\w+:", line):
            continue  # a group
        setting, mark, source = line.partition("  #")
        assert mark and ":" in setting, f"no source: {line}"
        known = source.split(":")[0].strip().lower()
        assert known in named or known.startswith(("its ", "...", "flow_grpo/")), f"an unknown source: {line}"


@each
def test_it_loads_and_is_written_back(path: Path, tmp_path: Path) -> None:
    config = load(path)
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(tmp_path / "again.yaml") == config
    assert config.distribution == "conditional" and config.sampling.guidance == 5 and config.optim.betas == (0.9, 0.999)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Record name and options of every scorer that is built; the brightness is scored instead."""
    calls: list[tuple[str, dict[str, Any]]] = []
    real = registry.find

    def find(name: str) -> Any:
        builder = real(name)
        if name == "composite":
            return builder

        def stand_in(**options: Any) -> Any:
            calls.append((name, options))
            return as_reward(lambda images, prompts, metadata: RewardOutput(images.float().mean(dim=(1, 2, 3)) / 255))

        stand_in.__signature__ = inspect.signature(builder)  # type: ignore[attr-defined]
        return stand_in

    monkeypatch.setattr(registry, "find", find)
    monkeypatch.setattr(weighted_sum, "find", find)
    return calls


@each
def test_a_step_of_it_on_a_tiny_model(path: Path, tmp_path: Path, scored: Any) -> None:
    """The recipe as it stands, but for the checkpoint, the device, the prompt files and the number of prompts."""
    file = tmp_path / "prompts.jsonl"
    texts = ["a photo of one red circle", "a photo of two blue square", "a green star"]
    file.write_text("\n".join(json.dumps({**ROW, "prompt": text}) for text in texts))
    tiny.checkpoint(tmp_path / "tiny", grid=2)
    with_stand_ins = {
        "generator.checkpoint": tmp_path / "tiny",
        "generator.device": "cpu",
        "prompts.train": file,
        "prompts.validation": file,
        "output-dir": tmp_path / "run",
        "prompts-per-step": 2,
        "steps": 2,
    }
    argv = [f"--{key}={value}" for key, value in with_stand_ins.items()]
    config = parse(["--config", str(path), *argv]).settings
    published = load(path)
    assert (config.algorithm, config.optim, config.reward) == (published.algorithm, published.optim, published.reward)
    trainer = build_trainer(config, prompts.read(file), prompts.read(file))
    before = [parameter.detach().clone() for parameter in trainer.generator.trainable_parameters()]
    record = trainer.step()
    assert trainer.images_sampled == 2 * published.algorithm.group_size
    assert (
        all(math.isfinite(value) for value in record.metrics.values()) and {"loss", "kl_loss"} <= record.metrics.keys()
    )
    after = list(trainer.generator.trainable_parameters())
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    names = [name for name, _ in scored]
    assert names == (["hps", "git_vqa", "grounding_dino"] if path.stem == "t2i_r1" else ["geneval"])


def test_what_the_recipes_of_geneval_train() -> None:
    scores = {path.stem: load(path).reward.options.get("score") for path in RECIPES}
    assert scores == {
        "critical_tokens_geneval": "strict",
        "flow_grpo_geneval": "graded",
        "gcpo_geneval": "graded",
        "stage_geneval": "graded",
        "t2i_r1": None,
    }
