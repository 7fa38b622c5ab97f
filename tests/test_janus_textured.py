"""The embedded generator of textured scenes: its files, its scores, and that its tokens are undecided by the prompt."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from t2i_gcpo import generators
from t2i_gcpo.data.shapes.prompts import TASKS
from t2i_gcpo.generators.checkpoints import ASSETS
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.records import Sampling

FOLDER = ASSETS / "janus-textured"
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


def scores(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((FOLDER / "training" / name).read_text(encoding="utf-8"))
    return result


@pytest.fixture(scope="module")
def generator() -> Janus:
    loaded = generators.load("janus-textured", compile=False)
    assert isinstance(loaded, Janus)
    return loaded


def test_it_is_small_and_its_card_is_that_of_its_files() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 30e6
    test, train = scores("eval.json"), scores("eval_train.json")
    assert test["n"] == train["n"] == 600 and set(test["by_task"]) == set(TASKS)
    for name, score in {**test["by_task"], "overall": test["overall"]}.items():
        assert f"| {name} | {score:.3f} | " in CARD
    assert f"(`--prompts shapes:train`, the same options, n = 600) the score is {train['overall']:.3f}" in CARD
    for stage in ("vq", "language"):
        log = (FOLDER / "training" / f"{stage}_log.jsonl").read_text(encoding="utf-8").splitlines()
        settings = json.loads((FOLDER / "training" / f"{stage}_settings.json").read_text(encoding="utf-8"))
        steps = settings["steps"] if stage == "language" else settings["crop_steps"] + settings["full_steps"]
        assert json.loads(log[-1])["step"] == steps


def test_training_prompts_leave_room_and_every_task_can_be_learnt() -> None:
    test, train = scores("eval.json"), scores("eval_train.json")
    assert 0.40 <= train["overall"] <= 0.65 and 0.35 <= test["overall"] <= 0.70
    assert min(test["by_task"].values()) >= 0.08


def test_its_tokens_are_undecided_and_the_prompt_decides_some(generator: Janus) -> None:
    rollout = generator.sample(["a photo of a red circle"], Sampling(group_size=8, guidance=2.0, seed=1))
    entropy = rollout.stats["entropy"]
    assert 1 < float(entropy.mean()) < 4 and float((entropy > 1).float().mean()) > 0.5
    stated = re.search(r"has ([0-9.]+) nats of entropy a token", CARD)
    assert stated is not None and 1 <= float(stated[1]) <= 4
    with torch.no_grad():
        again = generator.token_logprobs(rollout)
    torch.testing.assert_close(again, rollout.logprob_positive, atol=1e-4, rtol=0)
    assert rollout.logprob_negative is not None
    assert float((rollout.logprob_positive - rollout.logprob_negative).abs().max()) > 1, "the prompt does nothing"
