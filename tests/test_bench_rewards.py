"""The benchmarks of the scorers: their reports, and that each refuses sides that differ.

Nothing here depends on speed.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import served, tiny
from t2i_gcpo import cli
from t2i_gcpo.bench import geneval, measure, remote, rewards

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Benchmark -> as little work as there can be; a tiny generator's pictures show nothing that is asked for."""
    folder = tmp_path_factory.mktemp("bench")
    tiny.checkpoint(folder / "tiny")
    row = {"prompt": "a red circle", "tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}
    (folder / "prompts.jsonl").write_text(json.dumps(row), encoding="utf-8")
    model = ["--checkpoint", str(folder / "tiny"), "--prompts", str(folder / "prompts.jsonl"), "--no-compile"]
    return {
        "rewards": ["--pairs", "2", "--batch", "6"],
        "geneval": [*model, "--num-prompts", "1", "--group-size", "3", "--pairs", "2"],
        "remote": ["--pairs", "2", "--batch", "4", "--milliseconds", "1", "--size", "8", "--request", "2"],
    }


@pytest.fixture(autouse=True)
def server_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process would import torch first; test_the_server_is_a_process_of_its_own starts one."""

    @contextmanager
    def here(scorer: remote.Scorer) -> Iterator[str]:
        with served.serve(scorer) as server:
            yield server.url

    monkeypatch.setattr(remote, "served", here)


@pytest.mark.parametrize(
    ("name", "better", "unit", "lines"),
    [
        ("rewards", "higher", "images/s", ["known_texts", "new_texts"]),
        ("geneval", "lower", "s", ["verdict"]),
        ("remote", "lower", "s", ["computing", "waiting"]),
    ],
)
def test_each_benchmark_writes_its_numbers(
    name: str,
    better: str,
    unit: str,
    lines: list[str],
    options: dict[str, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["bench", name, *options[name], "--out", str(tmp_path / "x.json")]) == 0
    found, shown = json.loads((tmp_path / "x.json").read_text()), capsys.readouterr().out
    assert (found["name"], found["better"], found["unit"], found["headline"]) == (name, better, unit, lines[0])
    for line in lines:
        low, high = found[line]["ratio_ci95"]
        assert 0 < low <= found[line]["ratio"] <= high < math.inf and line in shown
        assert found[line]["ours"] > 0 and found[line]["baseline"] > 0
    assert "warm-up" in shown and "checked" in shown
    if name == "rewards":
        assert "6 texts encoded in the first pass, 0 in the second" in shown


def refused(name: str, options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        cli.main(["bench", name, *options[name]])


def test_rewards_refuses_other_scores(options: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    original = rewards.one_by_one

    def swapped(scorer: Any, images: Tensor, prompts: list[str], **more: Any) -> Tensor:
        return original(scorer, images, prompts[::-1], **more)

    monkeypatch.setattr(rewards, "one_by_one", swapped)
    refused("rewards", options, "do not compute the same scores")


def test_rewards_refuses_a_second_pass_that_encodes_texts(
    options: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = rewards.whole

    def forgetful(scorer: Any, images: Tensor, prompts: list[str]) -> Tensor:
        scorer.forget()
        return original(scorer, images, prompts)

    monkeypatch.setattr(rewards, "whole", forgetful)
    refused("rewards", options, "6 distinct prompts encoded 6 and 6 texts; each should be encoded once")


def test_geneval_refuses_scores_that_depend_on_the_batch(
    options: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geneval, "judge", lambda reward, images, owners: torch.full((len(images),), len(images) / 2))
    refused("geneval", options, "all at once and one by one")


def test_remote_refuses_other_scores(options: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    original = remote.RemoteReward.__call__

    def shifted(self: Any, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        return original(self, images.roll(1, dims=0), prompts, metadata)

    monkeypatch.setattr(remote.RemoteReward, "__call__", shifted)
    refused("remote", options, "do not compute the same scores")


@pytest.mark.parametrize("kind", remote.KINDS)
def test_the_made_up_scorer_works_an_image_and_leaves_the_threads_alone(kind: remote.Kind) -> None:
    scorer = remote.Scorer(kind, 10, remote.calibrate(10))
    images, threads = torch.full((3, 3, 2, 2), 51, dtype=torch.uint8), torch.get_num_threads()
    spent = min(measure.seconds(lambda: scorer(images, [""] * 3, [{}] * 3), CPU) for _ in range(3))
    assert spent > 0.5 * 0.030, "half: the machine may have been slower while it was calibrated"
    torch.testing.assert_close(scorer(images, [""] * 3, [{}] * 3).scores, torch.full((3,), 0.2))
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_the_server_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with remote.served(remote.Scorer("waiting", 1, 0)) as url:
        reward = remote.RemoteReward(url=url)
        images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
        torch.testing.assert_close(reward(images, ["a", "b"], [{}, {}]).scores, torch.full((2,), 0.2))
        assert not [thread for thread in threading.enumerate() if thread.name == "scorer"], "it scores elsewhere"
    with pytest.raises(ConnectionError):
        remote.RemoteReward(url=url, retries=0)
