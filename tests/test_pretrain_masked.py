"""Pre-training of the embedded masked checkpoint.

Resumed it ends where it would have, and its card tells what the model does.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.messages import names
from t2i_gcpo import generators
from t2i_gcpo.data.shapes.prompts import TASKS
from t2i_gcpo.evaluation.evaluate import EvalResult
from t2i_gcpo.generators import checkpoints
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.pretrain.amused import card as masked_card
from t2i_gcpo.pretrain.amused.model import EMBEDDING_STD, MaskedModelShape, build_amused, start_from_patches
from t2i_gcpo.pretrain.amused.train import MaskedSettings, MaskedTrainer, Scenes, draw_masks
from t2i_gcpo.pretrain.janus.codes import patch_codes
from t2i_gcpo.pretrain.janus.model import VQSettings
from t2i_gcpo.pretrain.stages import Stage, save_state

SHAPE = MaskedModelShape(
    width=32, layers=1, heads=2, mlp=32, res_blocks=1, text_width=32, text_layers=1, text_heads=2, micro_conditions=4
)
SETTINGS = MaskedSettings(steps=3, batch=2, warmup=2, compile=False)


@pytest.fixture(scope="module")
def vq() -> Any:
    return Janus.load("janus-mini").model.model.vqmodel


@pytest.fixture(autouse=True)
def few_validation_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_gcpo.pretrain.amused.train.VALIDATION_SCENES", 4)


def trainer(vq: Any) -> MaskedTrainer:
    return MaskedTrainer(SETTINGS, build_amused(SHAPE, vq, 0), patch_codes(VQSettings()))


def test_the_masked_model_resumes_bit_for_bit(tmp_path: Path, vq: Any) -> None:
    straight, first, second = (trainer(vq) for _ in range(3))
    losses = [straight.step()["loss"] for _ in range(3)]
    first.step()
    save_state(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [second.step()["loss"] for _ in range(2)] == losses[1:]
    a, b = (t.finished().state_dict() for t in (straight, second))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_codes_that_look_alike_begin_alike(vq: Any) -> None:
    parts, codes = build_amused(SHAPE, vq, 0), patch_codes(VQSettings())
    before = parts.transformer.mlm_layer.conv2.weight.std()
    start_from_patches(parts.transformer, codes)
    look = torch.cdist(codes, codes).fill_diagonal_(torch.inf).argmin(dim=1)
    for rows in (
        parts.transformer.embed.embeddings.weight[: len(codes)],
        parts.transformer.mlm_layer.conv2.weight[:, :, 0, 0],
    ):
        apart = torch.cdist(rows, rows)
        nearest, any_two = apart.gather(1, look[:, None]).median(), apart.median()
        assert nearest < 0.5 * any_two
    assert torch.isclose(parts.transformer.mlm_layer.conv2.weight.std(), before, rtol=0.2)
    assert torch.isclose(parts.transformer.embed.embeddings.weight.std(), torch.tensor(EMBEDDING_STD), rtol=0.2)


def test_the_pooled_text_is_that_of_its_end(vq: Any) -> None:
    """CLIPTextModel would pool another token where <eos> had the id 2."""
    parts = build_amused(SHAPE, vq, 0)
    ids = parts.tokenizer("a red circle and a blue star", return_tensors="pt").input_ids
    found = parts.text_encoder(ids, output_hidden_states=True)
    last = int((ids[0] == parts.tokenizer.eos_token_id).nonzero())
    assert last == ids.shape[1] - 1
    final = parts.text_encoder.text_model.final_layer_norm(found.hidden_states[-1][0, last])
    torch.testing.assert_close(found.text_embeds[0], parts.text_encoder.text_projection(final))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    codes, settings = patch_codes(VQSettings()), replace(SETTINGS, batch=8)
    scenes, again, other = Scenes(codes, settings), Scenes(codes, settings), Scenes(codes, replace(settings, seed=1))
    scenes[0]
    for (texts, tokens, masked), same in ((scenes[5], True), (other[5], False), (scenes[6], False)):
        theirs = again[5]
        assert (texts == theirs[0] and torch.equal(tokens, theirs[1]) and torch.equal(masked, theirs[2])) == same


def test_half_of_the_rows_are_masked_but_for_a_few_tokens() -> None:
    shares = draw_masks(random.Random(0), 4000, 144).float().mean(dim=1)
    assert float(shares.min()) > 0
    assert (
        0.45 < float((shares > 0.94).float().mean()) < 0.55
    )  # cos(u^2 pi / 2) > 0.94 for u < 0.47, rounded down to tokens


def test_the_card_tells_what_is_in_the_files(tmp_path: Path, vq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = trainer(vq)
    stage = Stage(tmp_path / "masked", "test", SETTINGS.steps, SETTINGS)
    report = stage.on_step(trained, every=1)
    for _ in range(SETTINGS.steps):
        metrics = trained.step()
        if trained.step_number == SETTINGS.steps:
            metrics["validation_loss"] = trained.validation_loss()
        report(trained.step_number, metrics)
    folder = tmp_path / "amused-mini"
    trained.finished().save(folder)
    result = masked_card.write(folder, tmp_path, images=12)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "96 × 96 pixels" in text and "12 × 12 tokens" in text
    for name, score in {**result.by_task, "overall": result.overall}.items():
        assert f"| {name} | {score:.3f} | " in text
    assert set(result.by_task) == set(TASKS) and result.n == 12
    other = EvalResult.load(folder / "training" / "eval_noisier_order.json")
    assert (result.sampling.unmasking.temperature, other.sampling.unmasking.temperature) == (2.0, 6.0)
    for temperature, found in ((2.0, result), (6.0, other)):
        part = text[text.index(f"### Order temperature {temperature:g}") :].split("```")[1]
        assert f"--limit 12 --guidance 2.0 --order-temperature {temperature}" in part
        assert f"| overall | {found.overall:.3f} | " in text
    assert "--seed 0 --steps 3 --batch 2 --device cpu" in text
    training = folder / "training"
    assert sorted(p.name for p in training.iterdir()) == [
        "curve.png",
        "eval.json",
        "eval_noisier_order.json",
        "log.jsonl",
        "samples.png",
        "settings.json",
    ]
    assert EvalResult.load(training / "eval.json").overall == result.overall
    assert [json.loads(line)["step"] for line in (training / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    # The folder is found by its name where the embedded checkpoints are.
    monkeypatch.setattr(checkpoints, "ASSETS", tmp_path)
    found = generators.load("amused-mini")
    assert isinstance(found, Amused) and found.base is not None and found.base.name == "amused-mini"


def test_an_embedded_checkpoint_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "ASSETS", tmp_path)
    with pytest.raises(
        ValueError,
        match=names("'amused-mini'", "t2i-gcpo pretrain amused"),
    ):
        generators.load("amused-mini")  # fmt: skip
