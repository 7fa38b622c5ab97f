"""Pre-training of the embedded checkpoint: interrupted and resumed, it ends at the weights it would have had."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.models.torchvision_mend import mend
from t2i_gcpo.data.shapes.prompts import split
from t2i_gcpo.data.shapes.scene import sample_scene
from t2i_gcpo.pretrain.janus.codes import patch_codes
from t2i_gcpo.pretrain.janus.language import (
    PROMPT_LENGTH,
    LanguageSettings,
    LanguageTrainer,
    encode_prompts,
)
from t2i_gcpo.pretrain.janus.layout import LAYOUT_FEATURES
from t2i_gcpo.pretrain.janus.model import LanguageModelShape, VQSettings, build_janus, save_processor
from t2i_gcpo.pretrain.janus.vq import VQTrainer
from t2i_gcpo.pretrain.scene_pairs import with_words_dropped
from t2i_gcpo.pretrain.stages import Stage, save_state

VQ = VQSettings(codebook=16, kmeans_scenes=4, batch=1, full_batch=1, crop=16, crop_steps=2, full_steps=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    mend()
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("processor")
    save_processor(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def language_trainer(tokenizer: Any, layout_steps: int = 0) -> LanguageTrainer:
    vq = VQ if layout_steps == 0 else replace(VQ, embed_dim=LAYOUT_FEATURES + 2)
    model = build_janus(vq, LanguageModelShape(width=32, layers=1, heads=2, mlp=32), 0, None)
    settings = LanguageSettings(
        steps=4, batch=2, warmup=2, compile=False, layout_steps=layout_steps, bfloat16=layout_steps == 0
    )
    return LanguageTrainer(settings, model, tokenizer, patch_codes(vq))


def losses(trainer: LanguageTrainer, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    layout, code = trainer._scores(ids, mask, tokens)
    return layout + code


def saved(trainer: Any, path: Path) -> Any:
    save_state(trainer.state_dict(), path)
    return torch.load(path, weights_only=True)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_vq_model_resumes_bit_for_bit(tmp_path: Path) -> None:
    mend()
    straight, first, second = (VQTrainer(VQ, 32) for _ in range(3))
    losses = [straight.step()["loss"] for _ in range(3)]
    first.step()
    second.load_state_dict(saved(first, tmp_path / "state.pt"))
    assert [second.step()["loss"] for _ in range(2)] == losses[1:]
    assert_same(straight.finished().state_dict(), second.finished().state_dict())


def test_the_language_model_resumes_bit_for_bit(tmp_path: Path, tokenizer: Any) -> None:
    straight, first, second = (language_trainer(tokenizer) for _ in range(3))
    losses = [straight.step()["loss"] for _ in range(4)]
    for _ in range(2):
        first.step()
    second.load_state_dict(saved(first, tmp_path / "state.pt"))
    assert [second.step()["loss"] for _ in range(2)] == losses[2:]
    assert_same(straight.finished().state_dict(), second.finished().state_dict())


def test_a_stage_cuts_its_log_back_to_the_state(tmp_path: Path, tokenizer: Any) -> None:
    trainer = language_trainer(tokenizer)
    stage = Stage(tmp_path, "test", 4, trainer.settings)
    report = stage.on_step(trainer, every=1)
    report(1, {"loss": 1.0})
    trainer.optimisation.step_number = 1
    save_state(trainer.state_dict(), stage.state_path)
    report(2, {"loss": 2.0})
    Stage(tmp_path, "test", 4, trainer.settings).resume(language_trainer(tokenizer))
    assert stage.log_path.read_text().count("\n") == 1


def test_prompts_are_padded_on_the_left_and_end_where_the_image_begins(tokenizer: Any) -> None:
    ids, mask = encode_prompts(["a photo of a red circle", "a star"], tokenizer)
    words = [tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    assert words[0][-8:] == ["<bos>", "a", "photo", "of", "a", "red", "circle", "<begin_of_image>"]
    assert words[1] == ["<pad>"] * (PROMPT_LENGTH - 4) + ["<bos>", "a", "star", "<begin_of_image>"]
    assert mask.sum(dim=1).tolist() == [8, 4]


def test_the_loss_ignores_padding(tokenizer: Any) -> None:
    trainer = language_trainer(tokenizer)
    ids, mask = encode_prompts(["a star"], tokenizer)
    tokens = trainer.validation[1][:1].long()
    padded = losses(trainer, ids, mask, tokens)
    bare = losses(trainer, ids[:, -4:], mask[:, -4:], tokens)
    assert torch.allclose(padded, bare, atol=1e-5)
    other = ids.clone()
    other[:, -2] = tokenizer.convert_tokens_to_ids("circle")
    assert not torch.allclose(padded, losses(trainer, other, mask, tokens), atol=1e-5)


def test_attention_is_in_float32_within_a_step_in_bfloat16_and_as_it_was_after_it(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = language_trainer(tokenizer)
    ids, mask = encode_prompts(["a star"], tokenizer)
    tokens = trainer.validation[1][:1].long()
    config = trainer.model.model.language_model.config
    plain = torch.nn.functional.scaled_dot_product_attention
    seen: list[torch.dtype] = []

    def attention(query: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append(query.dtype)
        return plain(query, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses(trainer, ids, mask, tokens)
    assert seen == [torch.float32]
    found = losses(trainer, ids, mask, tokens)
    trainer.finished()
    assert config._attn_implementation == "sdpa"
    assert torch.equal(found, losses(trainer, ids, mask, tokens))


def test_layouts_are_learnt_first_and_the_codes_weight_rises(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = language_trainer(tokenizer, layout_steps=2)
    trainer.settings = replace(trainer.settings, layout_weight=4.0, ramp_steps=3)
    for name, layout in (("layout_scores", 3.0), ("scores", 2.0)):
        parts = torch.full((2, 144), layout), torch.full((2, 144), 5.0)
        monkeypatch.setattr(trainer, name, lambda ids, mask, tokens, parts=parts: parts)
    minimised = []
    monkeypatch.setattr(trainer.optimisation, "step", lambda loss: minimised.append(float(loss)))
    for number in range(7):
        trainer.optimisation.step_number = number
        logged = trainer.step()
    assert minimised == [12, 12, *(4 * 2 + weight * 5 for weight in (0.25, 0.5, 0.75, 1.0, 1.0))]
    assert logged["loss"] == 7 and logged["layout_loss"] == 2


def test_the_layout_steps_leave_codes_alone_and_the_first_step_with_codes_knows_the_layouts(tokenizer: Any) -> None:
    trainer = language_trainer(tokenizer, layout_steps=2)
    inner, rows = trainer.model.model, trainer.rows
    assert rows is not None
    own = [inner.generation_embeddings.weight, inner.generation_head.vision_head.weight]
    own.append(inner.generation_head.vision_head.bias)
    before, shared = [value.clone() for value in own], rows.embedding.clone()
    ids, mask, tokens = trainer._batch()
    while trainer._learns_layouts():
        trainer.step()
    assert all(torch.equal(*pair) for pair in zip(before, own, strict=True))
    assert not torch.equal(shared, rows.embedding)
    for value in own[:2]:
        value.data.zero_()  # without details, a code is its layout, and drawn uniformly from it
    layout, code = trainer._layout_scores(ids, mask, tokens)
    assert torch.allclose(code.exp().round().long(), rows.layouts.bincount()[rows.layouts[tokens]])
    for computed, expected in zip(trainer._scores(ids, mask, tokens), (layout, code), strict=True):
        assert torch.allclose(computed, expected, atol=1e-4)


def test_the_finished_model_says_what_shared_and_own_rows_said_together(tokenizer: Any) -> None:
    trainer = language_trainer(tokenizer, layout_steps=1)
    ids, mask, tokens = trainer._batch()
    for _ in range(3):
        trainer.step()
    trainer.optimisation.load(trainer.optimisation.average)
    together = losses(trainer, ids, mask, tokens)
    trainer.finished()
    trainer.rows = None
    assert torch.allclose(losses(trainer, ids, mask, tokens), together, atol=1e-4)


def test_the_default_loss_is_cross_entropy(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = language_trainer(tokenizer)
    ids, mask, tokens = trainer._batch()
    monkeypatch.setattr(trainer, "_batch", lambda: (ids, mask, tokens))
    trainer.settings = replace(trainer.settings, bfloat16=False)
    minimised: list[torch.Tensor] = []
    monkeypatch.setattr(trainer.optimisation, "step", minimised.append)
    trainer.step()
    assert torch.allclose(minimised[0], losses(trainer, ids, mask, tokens).mean(), rtol=1e-5)


def test_dropped_words_leave_a_class_or_colour_open() -> None:
    rng = random.Random(0)
    prompt = next(p for p in split("train") if p.task == "color_attr")
    counts = []
    for _ in range(200):
        opened = with_words_dropped(prompt, 0.5, rng)
        words, kept = prompt.text.split(), opened.text.split()
        gone = {a for a, b in zip(words, kept, strict=True) if a != b}
        assert kept.count("<pad>") == len(gone)
        counts.append(len(gone))
        for old, new in zip(prompt.metadata["include"], opened.metadata["include"], strict=True):
            assert new["class"] not in {old["class"], *kept} if old["class"] in gone else new["class"] == old["class"]
            assert "color" not in new if old["color"] in gone else new["color"] == old["color"]
        assert len({clause["class"] for clause in opened.metadata["include"]}) == 2
        assert sample_scene(opened.metadata, rng).objects
    assert set(counts) == {0, 1, 2, 3, 4}  # of each clause none, one or both
    assert prompt.metadata["include"] == next(p for p in split("train") if p.task == "color_attr").metadata["include"]
    assert with_words_dropped(prompt, 0.0, rng).text == prompt.text


def test_a_dropped_plural_changes_what_is_counted() -> None:
    prompt = next(p for p in split("train") if p.text == "a photo of three crosses")
    opened = with_words_dropped(prompt, 1.0, random.Random(0))
    assert opened.text == "a photo of three <pad>"
    (wanted,), (excluded,) = opened.metadata["include"], opened.metadata["exclude"]
    assert wanted["class"] == excluded["class"] != "cross" and (wanted["count"], excluded["count"]) == (3, 4)


def test_transformers_can_generate_images_with_it(tokenizer: Any) -> None:
    model = build_janus(VQ, LanguageModelShape(width=32, layers=1, heads=2, mlp=32), 0, None)
    boi = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    assert model.generation_config.generation_kwargs == {"boi_token_id": boi}
