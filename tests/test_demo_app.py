"""The demo's endpoints, called as a script calls them: a served app, and a session of its own for each client."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError

import rewards
from helpers import run_folders, tiny
from t2i_gcpo.demo import app, free_port
from t2i_gcpo.demo.context import DemoContext
from t2i_gcpo.demo.models import Models
from t2i_gcpo.demo.scoring import Scorer

TEXT, OTHER = "a photo of a red circle and a blue star", "two blue star"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    paths = {name: str(tiny.checkpoint(folder / name, seed=seed)) for name, seed in (("base", 0), ("tuned", 1))}
    scorer = Scorer(rewards.load("helpers.training:redness"), "training:redness")
    context = DemoContext(Models(paths, device=torch.device("cpu")), scorer, folder / "runs", random.Random(0))
    blocks = app.build(context)
    _, address, _ = blocks.launch(
        server_port=free_port("127.0.0.1", 19860), prevent_thread_lock=True, quiet=True, enable_monitoring=False
    )
    yield address
    blocks.close(verbose=False)


@pytest.fixture
def clients(url: str) -> list[Client]:
    return [Client(url, verbose=False) for _ in range(2)]


def inspect(client: Client, text: str) -> Any:
    return client.predict(text, "base", 0, 2, 2.0, api_name="/inspect")


def test_two_sessions_have_states_of_their_own(clients: list[Client]) -> None:
    one, two = clients
    assert inspect(one, TEXT)[0].startswith(f"“{TEXT}” by base")
    assert inspect(two, OTHER)[0].startswith(f"“{OTHER}” by base")
    assert "contrast js, normalised by softmax" in one.predict("weight", "js", "softmax", api_name="/reweigh")[0]
    assert "contrast kl, normalised by rank" in two.predict("weight", api_name="/map")[0]
    assert "contrast js, normalised by softmax" in one.predict("weight", api_name="/map")[0]
    contrasted = one.predict("two square", "weight", api_name="/contrast")
    assert "negative prompt: “two square”" in str(contrasted)
    assert "negative prompt" not in str(two.predict("weight", api_name="/map"))
    files = two.predict("weight", api_name="/export")
    assert {Path(path).suffix for path in files["value"]} == {".png", ".html", ".npz"}


def test_a_session_starts_with_nothing(clients: list[Client]) -> None:
    one, two = clients
    inspect(one, TEXT)
    with pytest.raises(AppError, match="Sample a group of images first"):
        two.predict("advantage", api_name="/map")
    with pytest.raises(AppError, match="nothing to vote on"):
        two.predict("A", api_name="/vote")
    with pytest.raises(AppError, match="No training of yours is running"):
        two.predict(api_name="/stop")


def test_a_blind_vote(clients: list[Client]) -> None:
    found = str(clients[0].predict(TEXT, 0, 2, 2.0, True, api_name="/compare"))
    assert "hidden until you have voted" in found and "tuned" not in found
    voted = str(clients[0].predict("A", api_name="/vote"))
    assert "You voted for A" in voted and re.search(r"A: (base|tuned)", voted)
    with pytest.raises(AppError, match="have voted on these images"):
        clients[0].predict("A", api_name="/vote")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("  ", 0, 2, 2.0, False), "The prompt is empty"),
        (("x" * 201, 0, 2, 2.0, False), "at most 200"),
        (("a photo of a dog", 0, 2, 2.0, False), "does not know 'dog'"),
        ((TEXT, -1, 2, 2.0, False), "The seed is -1"),
        ((TEXT, None, 2, 2.0, False), "The seed is missing"),
    ],
)
def test_bad_input_is_answered_by_a_sentence(clients: list[Client], arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(AppError, match=re.escape(sentence)):
        clients[0].predict(*arguments, api_name="/compare")


def test_more_images_than_allowed_are_refused(clients: list[Client]) -> None:
    with pytest.raises(AppError, match="9"):
        clients[0].predict(TEXT, 0, 9, 2.0, False, api_name="/compare")


def test_stop_reaches_the_training_of_its_session(clients: list[Client]) -> None:
    one, two = clients
    asked = (["grpo", "gcpo"], "my own prompts", "a red circle\ntwo blue star", "base", 60, 2, 2, 1e-3, 0)
    job = one.submit(*asked, api_name="/train")
    deadline = time.monotonic() + 120
    while not any("step 1 of 60" in str(outputs[0]) for outputs in job.outputs()):
        assert time.monotonic() < deadline and not job.done(), job.outputs()
        time.sleep(0.05)
    with pytest.raises(AppError, match="No training of yours"):
        two.predict(api_name="/stop")
    assert one.predict(api_name="/stop").startswith("Stopping")
    status = job.result(timeout=120)[0]
    done = re.match(r"Stopped after (\d+) of 60 steps. The run folders are in `(.+)`", status)
    assert done is not None and 0 <= int(done[1]) < 60
    shown = str(two.predict([f"{done[2]}/grpo", f"{done[2]}/gcpo"], "reward/mean", "samples", 0, api_name="/runs")[0])
    assert "**grpo**: " in shown and "**gcpo**: " in shown


def test_runs_are_opened_by_their_folders(clients: list[Client], tmp_path: Path) -> None:
    path = run_folders.write(tmp_path / "run", before=False, after=False)
    found = clients[0].predict([str(path)], "reward/mean", "samples", 0, api_name="/runs")
    assert found[0] == "**run**: 4 of 10 steps"
    with pytest.raises(AppError, match="is no folder"):
        clients[0].predict([str(tmp_path / "gone")], "reward/mean", "samples", 0, api_name="/runs")
