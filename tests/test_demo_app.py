"""The demo's endpoints, called as a script calls them: a served app, and a session of its own for each client."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
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
from t2i_gcpo.demo.server import launch

TEXT, OTHER = "a photo of a red circle and a blue star", "two blue star"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    paths = {name: str(tiny.checkpoint(folder / name, seed=seed)) for name, seed in (("base", 0), ("tuned", 1))}
    scorer = Scorer(rewards.load("helpers.training:redness"), "helpers.training:redness")
    context = DemoContext(Models(paths, device=torch.device("cpu")), scorer, folder / "runs", random.Random(0))
    blocks = app.build(context)
    yield launch(blocks, host="127.0.0.1", port=free_port("127.0.0.1", 19860))
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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((TEXT, "zero", 2, 2.0, False), "none that the page sends"),
        ((TEXT, {"a": 1}, 2, 2.0, False), "none that the page sends"),
        ((TEXT, 0, [2], 2.0, False), "none that the page sends"),
        ((TEXT, 0, 2, "x", False), "none that the page sends"),
    ],
)
def test_values_of_odd_types_are_answered_by_a_sentence(
    clients: list[Client], capfd: pytest.CaptureFixture[str], arguments: tuple[Any, ...], sentence: str
) -> None:
    with pytest.raises(AppError, match=sentence):
        clients[0].predict(*arguments, api_name="/compare")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("paths", ["x", 3, {"a": 1}, [3], [["a"]], ["~nobody/x"], ["a\0b"], ["x" * 5000], ["a"] * 9])
def test_run_folders_of_odd_types_are_answered_by_a_sentence(
    clients: list[Client], capfd: pytest.CaptureFixture[str], paths: Any
) -> None:
    with pytest.raises(AppError, match=r"[.]|is no folder|cannot be|too long"):
        clients[0].predict(paths, "reward/mean", "samples", 0, api_name="/runs")
    assert "Traceback" not in capfd.readouterr().err


def test_a_checkpoint_of_an_odd_type_is_answered_by_a_sentence(
    clients: list[Client], capfd: pytest.CaptureFixture[str]
) -> None:
    for name in (["base"], [], None, "janus-mini", {"a": 1}):
        with pytest.raises(AppError, match=r"allowed: base, tuned|choices|none that the page sends"):
            clients[0].predict(TEXT, name, 0, 2, 2.0, api_name="/inspect")
    assert "Traceback" not in capfd.readouterr().err


def test_events_that_only_the_page_sends_are_answered_by_a_sentence(
    url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Clicks have no name for scripts, but a number."""
    events = {event["api_name"]: event["id"] for event in httpx.get(f"{url}config").json()["dependencies"]}
    for name, values in (("picked", []), ("on_image", [None, "advantage"]), ("on_click", [None, "advantage"])):
        for session, data in enumerate((None, [], {}, {"index": "x"}, {"index": 99}, {"index": [1, 2, 3]})):
            asked = {"fn_index": events[name], "data": values, "event_data": data, "session_hash": f"{name}{session}"}
            assert httpx.post(f"{url}gradio_api/queue/join", json=asked).status_code == 200
            told = httpx.get(f"{url}gradio_api/queue/data", params={"session_hash": f"{name}{session}"}).text
            assert '"success":false' in told and re.search(r"The click |The image |Sample a group", told), told
    unknown = {"fn_index": 999, "data": [], "session_hash": "x"}
    assert httpx.post(f"{url}gradio_api/queue/join", json=unknown).status_code == 404
    assert httpx.post(f"{url}gradio_api/run/nothing", json={"data": []}).status_code == 404
    assert "Traceback" not in capfd.readouterr().err


def test_another_page_cannot_upload_or_ask(url: str) -> None:
    files = {"files": ("x.bin", b"0" * 1000)}
    for address in (f"{url}gradio_api/upload", f"{url}gradio_api/upload/"):
        refused = httpx.post(address, files=files)
        assert refused.status_code == 403 and "takes no files" in refused.text
    assert httpx.get(url, headers={"origin": "https://evil.example"}).status_code == 403
    assert httpx.get(url, headers={"host": "evil.example"}).status_code == 421
    assert httpx.get(url).status_code == 200


def test_beyond_this_machine_a_password_is_asked_for(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "runs" / "mine", before=False, after=False)
    elsewhere = run_folders.write(tmp_path / "elsewhere", before=False, after=False)
    (tmp_path / "runs" / "link").symlink_to(elsewhere)
    models = Models({"base": str(tiny.checkpoint(tmp_path / "base"))}, device=torch.device("cpu"))
    scorer = Scorer(rewards.load("helpers.training:redness"), "helpers.training:redness")
    context = DemoContext(models, scorer, tmp_path / "runs", random.Random(0), only_runs=True)
    blocks = app.build(context)
    port = free_port("127.0.0.1", 19960)
    with pytest.raises(ValueError, match="can be reached from other machines"):
        launch(blocks, host="0.0.0.0", port=port)
    url = launch(blocks, host="127.0.0.1", port=port, password="open sesame")
    try:
        assert "current_runs" not in httpx.get(f"{url}config").text and httpx.get(f"{url}config").status_code == 401
        for password, status in (("wrong", 400), ("öpen", 400), ("open sesame", 200)):
            data = {"username": "me", "password": password}
            assert httpx.post(f"{url}login", data=data).status_code == status
        client = Client(url, auth=("me", "open sesame"), verbose=False)
        shown = client.predict([str(run)], "reward/mean", "samples", 0, api_name="/runs")
        assert shown[0] == "**mine**: 4 of 10 steps"
        outside = [
            elsewhere,
            tmp_path / "runs" / "link",
            tmp_path / "runs" / ".." / "elsewhere",
            "/",
            "/no/such/folder",
        ]
        for path in outside:
            with pytest.raises(AppError, match="not below the demo's folder of runs"):
                client.predict([str(path)], "reward/mean", "samples", 0, api_name="/runs")
    finally:
        blocks.close(verbose=False)


def test_a_proxy_is_not_asked_for_the_demo_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at the proxy's port: a request through it would fail."""
    port = free_port("127.0.0.1", 19970)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "Http_Proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.Markdown("a page")
    url = launch(blocks, host="127.0.0.1", port=port)
    try:
        assert httpx.Client(trust_env=False).get(url).status_code == 200
        assert os.environ["http_proxy"] == "http://127.0.0.1:9"  # a hub may still need it
        assert os.environ["no_proxy"] == "" and os.environ.get("Http_Proxy") == "http://127.0.0.1:9"  # noqa: SIM112
    finally:
        blocks.close(verbose=False)


def test_answers_to_a_question_with_their_credit(clients: list[Client]) -> None:
    line, frame, _ = clients[0].predict("What is 37+48-19?", "66", "wrong", 2, 0, api_name="/text")
    assert re.fullmatch(r"[012] of 2 answers are right.", line)
    assert frame.startswith("<iframe") and "Answer the next question wrongly" in frame
    assert clients[0].predict("What is 37+48-19?", "", "empty", 1, 0, api_name="/text")[0] == "Not scored."
    with pytest.raises(AppError, match="The question is empty"):
        clients[0].predict(" ", "66", "wrong", 2, 0, api_name="/text")
