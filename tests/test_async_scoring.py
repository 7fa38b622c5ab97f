"""Scoring elsewhere while the next images are decoded: `rollout.score` with a reward server, and a run with one."""

from __future__ import annotations

import math
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.fake_generator import FakeGenerator
from helpers.rogue import rogue
from helpers.served import Scorer, serve
from helpers.training import generator, same, trainer, weights
from rewards.base import AsyncReward, RewardOutput
from rewards.remote import server_pool
from rewards.remote.client import RemoteReward
from rewards.weighted_sum import Composite
from t2i_gcpo.evaluation.evaluate import evaluate
from t2i_gcpo.records import Prompt, Rollout, Sampling, ScoredRollout
from t2i_gcpo.training.rollout import score
from t2i_gcpo.training.tracker import read_metrics

PROMPTS = [Prompt("p" * p, {"bonus": p / 7, "tag": "ab"[p % 2]}) for p in range(5)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "BACKOFF", 0.01)


def sampled() -> Rollout:
    return FakeGenerator().sample(PROMPTS, Sampling(group_size=3, seed=1))


def equal(there: ScoredRollout, here: ScoredRollout) -> bool:
    parts = all(torch.equal(there.parts[name].nan_to_num(-1), here.parts[name].nan_to_num(-1)) for name in here.parts)
    scores = torch.equal(there.scores.nan_to_num(-1), here.scores.nan_to_num(-1))
    return scores and parts and there.parts.keys() == here.parts.keys() and torch.equal(there.images, here.images)


@pytest.mark.parametrize("batch", [1, 4, 15, 64])
def test_a_rollout_is_scored_there_as_it_is_here(batch: int) -> None:
    here = score(FakeGenerator(), Scorer(), sampled())
    assert len(set(here.scores.tolist())) == 15, "each image has a score of its own"
    with serve() as one, serve() as two:
        remote = RemoteReward(url=[one.url, two.url], batch_size=batch)
        assert remote.submit_batch == batch
        assert equal(score(FakeGenerator(), remote, sampled()), here)
        mixture = Composite({"there": remote, "here": Scorer()}, {"there": 0.5})
        summed = score(FakeGenerator(), mixture, sampled())
        assert torch.equal(summed.scores, 0.5 * here.scores + here.scores)
        assert torch.equal(summed.parts["there"], here.scores) and torch.equal(summed.images, here.images)


def test_the_server_scores_while_the_next_images_are_decoded() -> None:
    """The scorer stands still until the last batch is being decoded.

    Without overlap nobody would ever open the gate.
    """
    scorer = Scorer()
    scorer.gate.clear()
    asked_at: list[bool] = []

    class Decoding(FakeGenerator):
        def decode(self, tokens: Tensor) -> Tensor:
            asked_at.append(bool(asked_at) and scorer.entered.wait(10))
            if len(asked_at) == 3:
                scorer.gate.set()
            return super().decode(tokens)

    phases: list[str] = []
    with serve(scorer) as server:
        remote = RemoteReward(url=server.url, batch_size=5)
        scored = score(Decoding(), remote, sampled(), phase=lambda name: phases.append(name) or nullcontext())  # type: ignore[func-returns-value]
    assert asked_at == [False, True, True], "from the second batch on, the server is already at work"
    assert phases == ["decode", "score"] * 3 + ["score"]
    assert equal(scored, score(FakeGenerator(), Scorer(), sampled()))


def test_a_server_that_dies_while_a_rollout_is_scored_is_replaced() -> None:
    def die(connection: socket.socket) -> None:
        """Close the connection without an answer."""

    with rogue(die) as bad, serve() as good:
        remote = RemoteReward(url=[bad.url, good.url], batch_size=4, parallel=1, retries=0)
        assert equal(score(FakeGenerator(), remote, sampled()), score(FakeGenerator(), Scorer(), sampled()))
        assert "/score" in bad.requests


def test_failed_images_are_marked_and_errors_are_raised() -> None:
    rollout = FakeGenerator().sample([Prompt("a", {"bonus": None}), Prompt("b", {})], Sampling(group_size=2))
    with serve() as server:
        marked = score(FakeGenerator(), RemoteReward(url=server.url, batch_size=3, failure="mark"), rollout)
        assert marked.scores.isnan().tolist() == [True, True, False, False]
        with pytest.raises(ValueError, match="gave 1 of 3|gave 2 of 3"):
            score(FakeGenerator(), RemoteReward(url=server.url, batch_size=3), rollout)
        wrong = FakeGenerator().sample([Prompt("a", {"error": "ValueError"})], Sampling())
        with pytest.raises(ValueError, match="no such thing"):
            score(FakeGenerator(), RemoteReward(url=server.url), wrong)


def test_what_is_no_reward_output_and_too_few_scores_are_errors() -> None:
    class Given:
        def __init__(self, output: Any) -> None:
            self.output = output

        def result(self) -> Any:
            return self.output

    class Elsewhere(AsyncReward):
        submit_batch = 2

        def __init__(self, output: Any) -> None:
            self.output = output

        def submit(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Given:
            return Given(self.output)

    rollout = FakeGenerator().sample([Prompt("a")], Sampling(group_size=2))
    with pytest.raises(ValueError, match="reward 'Elsewhere' returned list"):
        score(FakeGenerator(), Elsewhere([1.0, 2.0]), rollout)
    with pytest.raises(ValueError, match=r"'Elsewhere' returned scores of shape \(1,\) for 2 images"):
        score(FakeGenerator(), Elsewhere(RewardOutput(torch.ones(1))), rollout)


def test_an_evaluation_there_is_the_evaluation_here() -> None:
    options: dict[str, Any] = {"sampling": Sampling(), "seed": 2, "images_per_prompt": 2, "batch": 4}
    here = evaluate(FakeGenerator(), PROMPTS, Scorer(), **options)
    with serve() as server:
        there = evaluate(FakeGenerator(), PROMPTS, RemoteReward(url=server.url, batch_size=3), **options)
    assert [row.score for row in there.rows] == [row.score for row in here.rows] and not math.isnan(here.overall)


@pytest.mark.slow
def test_a_run_with_a_server_is_the_run_without(tmp_path: Path) -> None:
    runs = []
    with serve() as server:
        for name, reward in (("here", Scorer()), ("there", RemoteReward(url=server.url, batch_size=3))):
            run = trainer(tmp_path / name, policy=generator(), reward=reward)
            run.train()
            rows = [{k: v for k, v in row.items() if "reward" in k} for row in read_metrics(tmp_path / name)]
            runs.append((rows, weights(run.generator)))  # type: ignore[arg-type]
    (rows_here, weights_here), (rows_there, weights_there) = runs
    assert rows_here == rows_there and len(rows_here) == 2 and rows_here[0]["reward/std"] > 0
    assert same(weights_here, weights_there), "bit for bit"
