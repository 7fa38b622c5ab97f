"""The examples in the docstrings of the functions that people call first are run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.base import Reward
from t2i_gcpo import Sampling, generators, heatmap, prompts, resolve
from t2i_gcpo.algorithms import token_advantages
from t2i_gcpo.generators.base import ImageGenerator
from t2i_gcpo.records import ScoredRollout

#: Module and name of what has an example.
EXAMPLES = {
    "token_weights": "t2i_gcpo.credit:token_weights",
    "group_advantages": "t2i_gcpo.advantages:group_advantages",
    "policy_loss": "t2i_gcpo.losses:policy_loss",
    "generators.load": "t2i_gcpo.generators:load",
    "sample": "t2i_gcpo.generators.base:ImageGenerator.sample",
    "rewards.load": "rewards.registry:load",
    "Trainer": "t2i_gcpo.training.trainer:Trainer",
    "Trainer with a run folder": "t2i_gcpo.reports.trainer:Trainer",
    "evaluate": "t2i_gcpo.evaluation.evaluate:evaluate",
    "heatmap.save": "t2i_gcpo.heatmap.files:save",
    "heatmap.draw": "t2i_gcpo.heatmap.drawing:draw",
    "prompts.read": "t2i_gcpo.data.prompts:read",
    "prompts.row": "t2i_gcpo.data.prompts:row",
    "images": "t2i_gcpo.generators.base:ImageGenerator.images",
    "rewards.composite": "rewards:composite",
}


@pytest.fixture(scope="module")
def generator() -> ImageGenerator:
    return generators.load("janus-mini", compile=False)


@pytest.fixture
def names(generator: ImageGenerator, tmp_path: Path) -> dict[str, Any]:
    """What the examples may take as given."""
    import rewards

    reward: Reward = rewards.load("geneval")
    (prompt,) = prompts.read("shapes:val")[:1]
    rollout = generator.sample([prompt], Sampling(group_size=2, contrast=True))
    scored = ScoredRollout(rollout, generator.decode(rollout.tokens), torch.tensor([1.0, 0.0]))
    return {
        "generator": generator,
        "reward": reward,
        "prompts": prompts,
        "rollout": rollout,
        "scored": scored,
        "folder": tmp_path,
        "heatmap": heatmap,
        "torch": torch,
        "Sampling": Sampling,
        "resolve": resolve,
        "token_advantages": token_advantages,
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_prints_what_it_says(name: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(names["folder"])
    path, _, attributes = EXAMPLES[name].partition(":")
    module = importlib.import_module(path)
    owner: Any = module
    for attribute in attributes.split("."):
        owner = getattr(owner, attribute)
    example = doctest.DocTestParser().get_doctest(owner.__doc__, {**vars(module), **names}, name, None, 0)
    assert example.examples, f"{name} has no example"
    told: list[str] = []
    write: Callable[[str], Any] = told.append
    result = doctest.DocTestRunner(verbose=False).run(example, out=write)
    assert not result.failed, "".join(told)
