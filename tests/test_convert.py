"""Janus' weights between its authors' layout and that of transformers: names, shapes, bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from helpers import tiny
from t2i_gcpo import generators
from t2i_gcpo.cli import main
from t2i_gcpo.generators.janus import layouts, random_model
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.generators.janus.conversion import check_names
from t2i_gcpo.generators.janus.original_config import to_original, to_transformers
from t2i_gcpo.generators.random_models import RandomModel
from t2i_gcpo.planning.plan import load as load_plan
from t2i_gcpo.planning.sources import find
from t2i_gcpo.records import Sampling

Shape = tuple[int, ...]


def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def conv(name: str, outputs: int, inputs: int, side: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.bias", (outputs,)


def language(width: int, layers: int, intermediate: int) -> Iterator[tuple[str, Shape]]:
    """`LlamaForCausalLM` below `language_model`."""
    yield "language_model.model.embed_tokens.weight", (102400, width)
    yield "language_model.model.norm.weight", (width,)
    yield "language_model.lm_head.weight", (102400, width)
    for layer in range(layers):
        at = f"language_model.model.layers.{layer}"
        for part in "qkvo":
            yield from linear(f"{at}.self_attn.{part}_proj", width, width, bias=False)
        yield from linear(f"{at}.mlp.gate_proj", intermediate, width, bias=False)
        yield from linear(f"{at}.mlp.up_proj", intermediate, width, bias=False)
        yield from linear(f"{at}.mlp.down_proj", width, intermediate, bias=False)
        yield f"{at}.input_layernorm.weight", (width,)
        yield f"{at}.post_attention_layernorm.weight", (width,)


def vision() -> Iterator[tuple[str, Shape]]:
    """SigLIP-L/16 as timm names it, with its pooling."""
    at, width = "vision_model.vision_tower", 1024
    yield f"{at}.pos_embed", (1, 576, width)
    yield from conv(f"{at}.patch_embed.proj", width, 3, 16)
    yield from norm(f"{at}.norm", width)
    for block in range(24):
        yield from norm(f"{at}.blocks.{block}.norm1", width)
        yield from norm(f"{at}.blocks.{block}.norm2", width)
        yield from linear(f"{at}.blocks.{block}.attn.qkv", 3 * width, width)
        yield from linear(f"{at}.blocks.{block}.attn.proj", width, width)
        yield from linear(f"{at}.blocks.{block}.mlp.fc1", 4 * width, width)
        yield from linear(f"{at}.blocks.{block}.mlp.fc2", width, 4 * width)
    yield f"{at}.attn_pool.latent", (1, 1, width)
    yield from linear(f"{at}.attn_pool.q", width, width)
    yield from linear(f"{at}.attn_pool.kv", 2 * width, width)
    yield from linear(f"{at}.attn_pool.proj", width, width)
    yield from norm(f"{at}.attn_pool.norm", width)
    yield from linear(f"{at}.attn_pool.mlp.fc1", 4 * width, width)
    yield from linear(f"{at}.attn_pool.mlp.fc2", width, 4 * width)


def residual(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield from norm(f"{name}.norm1", inputs)
    yield from conv(f"{name}.conv1", outputs, inputs, 3)
    yield from norm(f"{name}.norm2", outputs)
    yield from conv(f"{name}.conv2", outputs, outputs, 3)
    if inputs != outputs:
        yield from conv(f"{name}.nin_shortcut", outputs, inputs, 1)


def attention(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from conv(f"{name}.{part}", width, width, 1)


def middle(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from residual(f"{name}.mid.0", width, width)
    yield from attention(f"{name}.mid.1", width)
    yield from residual(f"{name}.mid.2", width, width)


def codes() -> Iterator[tuple[str, Shape]]:
    """LlamaGen's VQ-16: five levels of 128 channels times 1, 1, 2, 2, 4, two blocks each, three on the way up."""
    at, channels = "gen_vision_model", [128, 128, 256, 256, 512]
    yield from conv(f"{at}.encoder.conv_in", 128, 3, 3)
    inputs = 128
    for level, outputs in enumerate(channels):
        for block in range(2):
            yield from residual(f"{at}.encoder.conv_blocks.{level}.res.{block}", inputs, outputs)
            inputs = outputs
            if level == 4:
                yield from attention(f"{at}.encoder.conv_blocks.{level}.attn.{block}", outputs)
        if level < 4:
            yield from conv(f"{at}.encoder.conv_blocks.{level}.downsample.conv", outputs, outputs, 3)
    yield from middle(f"{at}.encoder", 512)
    yield from norm(f"{at}.encoder.norm_out", 512)
    yield from conv(f"{at}.encoder.conv_out", 256, 512, 3)
    yield from conv(f"{at}.quant_conv", 8, 256, 1)
    yield f"{at}.quantize.embedding.weight", (16384, 8)
    yield f"{at}.quantize.codebook_used", (65536,)
    yield from conv(f"{at}.post_quant_conv", 256, 8, 1)
    yield from conv(f"{at}.decoder.conv_in", 512, 256, 3)
    yield from middle(f"{at}.decoder", 512)
    inputs = 512
    for level, outputs in enumerate(reversed(channels)):
        for block in range(3):
            yield from residual(f"{at}.decoder.conv_blocks.{level}.res.{block}", inputs, outputs)
            inputs = outputs
            if level == 0:
                yield from attention(f"{at}.decoder.conv_blocks.{level}.attn.{block}", outputs)
        if level < 4:
            yield from conv(f"{at}.decoder.conv_blocks.{level}.upsample.conv", outputs, outputs, 3)
    yield from norm(f"{at}.decoder.norm_out", 128)
    yield from conv(f"{at}.decoder.conv_out", 3, 128, 3)


def heads(width: int) -> Iterator[tuple[str, Shape]]:
    yield from linear("aligner.layers.0", width, 1024)
    yield from linear("aligner.layers.2", width, width)
    yield "gen_embed.weight", (16384, 8)
    yield from linear("gen_aligner.layers.0", width, 8)
    yield from linear("gen_aligner.layers.2", width, width)
    yield from linear("gen_head.output_mlp_projector", width, width)
    yield from linear("gen_head.vision_head", 16384, width)


@pytest.mark.parametrize("shape", ["janus-pro-1b", "janus-1.3b", "janus-pro-7b"])
def test_every_published_weight_has_its_place(shape: str) -> None:
    """The authors' modules written out, by names and shapes, against transformers' own model, both ways."""
    sizes = random_model.SIZES[shape]
    names = dict([*language(sizes.width, sizes.layers, sizes.intermediate), *vision(), *codes(), *heads(sizes.width)])
    weights = {name: torch.empty(size, device="meta") for name, size in names.items()}
    converted, unused = layouts.to_transformers(weights)
    config = random_model.config(RandomModel(shape), random_model.byte_processor().tokenizer)
    check_names(config, converted)  # or a ValueError
    pooled = {name for name in names if ".attn_pool." in name}
    assert set(unused) == pooled | {"gen_vision_model.quantize.codebook_used"}
    back = layouts.to_original(converted, unused)
    assert {name: tuple(value.shape) for name, value in back.items()} == names


@pytest.mark.parametrize("shape", ["janus-pro-1b", "janus-pro-7b"])
def test_the_published_configuration_survives_both_ways(shape: str) -> None:
    words = random_model.byte_processor().tokenizer
    config = random_model.config(RandomModel(shape), words)
    original = to_original(config, "bfloat16")
    assert (
        "sizes" not in original and original["gen_head_config"]["params"]["n_embed"] == config.text_config.hidden_size
    )
    ids = {"pad": words.pad_token_id, "bos": words.bos_token_id, "eos": words.eos_token_id}
    again = to_transformers(original, {**ids, "image": config.image_token_id})
    for part in ("text_config", "vision_config", "vq_config"):
        ours, theirs = (getattr(side, part).to_dict() for side in (config, again))
        unlike = {key for key in ours if ours[key] != theirs[key]} - {"tie_word_embeddings", "dtype"}
        assert not unlike, (part, unlike)


def test_a_round_trip_keeps_every_bit_and_every_log_prob(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tiny.checkpoint(tmp_path / "first")
    original, again = tmp_path / "original", tmp_path / "again"
    assert main(["convert", "--checkpoint", str(first), "--out", str(original)]) == 0
    assert "in the layout original" in capsys.readouterr().out
    config = json.loads((original / "config.json").read_text())
    assert config["model_type"] == "multi_modality" and config["language_config"]["hidden_size"] == 32
    extra = {"vision_model.vision_tower.attn_pool.latent": torch.randn(1, 1, 32)}
    whole = {**load_file(original / "model.safetensors"), **extra}
    assert layouts.is_original(list(whole)) and not any(name.startswith("model.") for name in whole)
    save_file(whole, original / "model.safetensors")
    assert main(["convert", "--checkpoint", str(original), "--out", str(again)]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (first, again))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    back = tmp_path / "back"
    assert main(["convert", "--checkpoint", str(again), "--out", str(back)]) == 0
    returned = load_file(back / "model.safetensors")
    assert returned.keys() == whole.keys() and all(torch.equal(returned[name], whole[name]) for name in whole)
    ours, theirs = (generators.load(str(folder), compile=False) for folder in (first, again))
    tokens = [side.sample(["a red circle"], Sampling(group_size=2, seed=1)).tokens for side in (ours, theirs)]
    assert torch.equal(*tokens)


def test_the_authors_layout_names_the_command(tmp_path: Path) -> None:
    original = tmp_path / "original"
    main(["convert", "--checkpoint", str(tiny.checkpoint(tmp_path / "first")), "--out", str(original)])
    with pytest.raises(ValueError, match="t2i-gcpo convert"):
        generators.load(str(original))
    with pytest.raises(ValueError, match="no plan for models of type 'multi_modality'.*t2i-gcpo convert"):
        load_plan(find(str(original)), torch.float32)


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gen_tail\.weight is no weight of Janus in its authors' layout"):
        layouts.to_transformers({"gen_tail.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="is no weight of Janus in transformers' layout"):
        layouts.to_original({"model.tail.weight": torch.zeros(1)}, {})
    first = tiny.checkpoint(tmp_path / "first")
    config = random_model.config(
        RandomModel("janus-pro-1b", layers=1, width=32), random_model.byte_processor().tokenizer
    )
    with pytest.raises(ValueError, match="weights are not those that the config"):
        check_names(config, load_file(first / "model.safetensors"))
    (tmp_path / "other").mkdir()
    assert main(["convert", "--checkpoint", str(tmp_path / "other"), "--out", str(tmp_path / "x")]) == 2
    assert main(["convert", "--checkpoint", str(first), "--out", str(first)]) == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("tokenizer.json", "is not whole: it has no tokenizer.json"),
        ("model-00002-of-00002.safetensors", "names model-00002-of-00002.safetensors, and there is no such file"),
        ("config.json", "is no checkpoint of Janus"),
    ],
)
def test_a_folder_that_is_half_there_is_not_converted(
    without: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written: a converted checkpoint without some of its weights would look like a whole one."""
    folder, out = tiny.checkpoint(tmp_path / "first"), tmp_path / "out"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = {f"model-0000{k + 1}-of-00002.safetensors": names[k::2] for k in range(2)}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert main(["convert", "--checkpoint", str(folder), "--out", str(tmp_path / "whole")]) == 0
    for layout in (folder, tmp_path / "whole"):
        if not (layout / without).exists():
            continue  # the converted one has its weights in one file
        (layout / without).unlink()
        capsys.readouterr()
        assert main(["convert", "--checkpoint", str(layout), "--out", str(out)]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and message in error
        assert not out.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["first", "whole"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"model_type": "multi_modality", "language_config": 5}, "the configuration in "),
        ("config.json", {"model_type": "janus", "text_config": {"hidden_size": 64}}, "not those that the config.json"),
        ("model.safetensors.index.json", {"weight_map": ["a"]}, "its weight_map is no object"),
    ],
)
def test_a_damaged_configuration_is_a_sentence(
    file: str, content: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tiny.checkpoint(tmp_path / "first"), tmp_path / "out"
    if content.get("model_type") == "multi_modality":
        assert main(["convert", "--checkpoint", str(folder), "--out", str(tmp_path / "original")]) == 0
        folder = tmp_path / "original"
    whole = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(whole | content))
    assert main(["convert", "--checkpoint", str(folder), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_a_full_disk_and_a_file_as_target_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library's error is none of the system's; what was written by then is taken away."""
    folder, out = tiny.checkpoint(tmp_path / "first"), tmp_path / "out"

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert main(["convert", "--checkpoint", str(folder), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "the disk is full" in error and str(out) in error
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    monkeypatch.setattr(Janus, "save_model", full)
    assert main(["export", "--checkpoint", str(folder), "--merged", "--out", str(out)]) == 2
    assert "the disk is full" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["convert", "--checkpoint", str(folder), "--out", str(tmp_path / "file")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
