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
import yaml

from helpers import tiny
from rewards import registry, weighted_sum
from rewards.base import RewardOutput
from rewards.function import as_reward
from t2i_gcpo.algorithms import resolve
from t2i_gcpo.commands.options.arguments import dump, load, parse, to_mapping
from t2i_gcpo.commands.options.build import build_trainer
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.data import prompts
from t2i_gcpo.utils.nested import flatten

FOLDER = Path(__file__).parent.parent / "configs" / "as_published"
RECIPES = sorted(FOLDER.glob("*.yaml"))
#: The recipe of GCPO's paper for three algorithms; they hold what differs from our defaults, and name each default.
COMPARED = sorted(FOLDER.parent.glob("janus_pro_7b_geneval_*.yaml"))
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

PAPERS |= {path.stem: "2605.29198" for path in COMPARED}

each = pytest.mark.parametrize("path", [*RECIPES, *COMPARED], ids=lambda path: path.stem)


def test_the_recipes_that_there_are() -> None:
    assert sorted(path.stem for path in (*RECIPES, *COMPARED)) == sorted(PAPERS)
    assert [path.stem.rpartition("_")[2] for path in COMPARED] == ["dapo", "gcpo", "grpo"]


@pytest.mark.parametrize("path", COMPARED, ids=lambda path: path.stem)
def test_each_line_names_the_default_that_it_differs_from(path: Path) -> None:
    own, default = (flatten(to_mapping(config)) for config in (load(path), TrainConfig()))
    lines, group = {}, ""
    for line in path.read_text().split("output_dir:", 1)[1].splitlines()[1:]:
        name, _, rest = line.strip().partition(":")
        group = f"{name}." if not line.startswith(" ") and not rest else group if line.startswith(" ") else ""
        if rest:
            lines[f"{group if line.startswith(' ') else ''}{name}"] = rest
    for name, rest in lines.items():
        said = re.search(r"\(default (.+)\)$", rest)
        if said is None:
            assert rest.endswith("(no default with the shapes detector)") and name not in default, name
            continue
        assert yaml.safe_load(said[1]) == default[name], name
        assert own[name] != default[name] or name in ("reward.name", "algorithm.name"), f"{name} is the default"
    # What a row of the table of algorithms sets is the algorithm.
    row = {f"algorithm.{name}" for name in vars(resolve(own["algorithm.name"]))}
    differing = {name for name in own if own[name] != default.get(name)}
    assert differing - row <= {*lines, "output_dir"}


def test_the_three_differ_in_the_algorithm_alone() -> None:
    first, *others = ({**to_mapping(load(path)), "output_dir": "", "algorithm": {}} for path in COMPARED)
    assert all(other == first for other in others)


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


@pytest.mark.parametrize(
    "path", [path for path in (*RECIPES, *COMPARED) if "dapo" not in path.stem], ids=lambda p: p.stem
)
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
    assert {load(path).reward.options.get("score") for path in COMPARED} == {"graded"}
    assert scores == {
        "critical_tokens_geneval": "strict",
        "flow_grpo_geneval": "graded",
        "gcpo_geneval": "graded",
        "stage_geneval": "graded",
        "t2i_r1": None,
    }
