"""Damaged checkpoints: whatever is wrong with a file, loading says which file and what.

And nothing half-right is loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny, tiny_amused
from t2i_gcpo import cli, generators
from t2i_gcpo.generators.checkpoints import locate, tuned
from t2i_gcpo.training import checkpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind, a step folder of a run, a LoRA adapter and a delta on the model."""
    root = tmp_path_factory.mktemp("whole")
    janus, amused = tiny.checkpoint(root / "janus"), tiny_amused.checkpoint(root / "amused")
    generator: Any = generators.load(str(janus))
    step = checkpoint.save(root / "run", 3, state={"step": 3}, save_model=generator.save)
    with torch.no_grad():
        for parameter in generator.trainable_parameters():
            parameter += 0.01
    generator.save(root / "tuned")
    command = ["export", "--checkpoint", str(root / "tuned"), "--against", str(janus), "--out", str(root / "delta")]
    assert cli.main(command) == 0
    adapted: Any = generators.load(str(janus))
    adapted.add_lora(rank=2, alpha=4.0)
    adapted.save(root / "adapter")
    adapter = checkpoint.save(root / "lora", 1, state={"step": 1}, save_model=adapted.save)
    return {
        "janus": janus,
        "amused": amused,
        "step": step,
        "delta": root / "delta",
        "adapter": root / "adapter",
        "adapter step": adapter,
    }


Change = Callable[[Path], object]


def zeros(path: Path) -> None:
    """Overwrite what lies behind the header, as a disk that lost its blocks does."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start:] = bytes(len(content) - start)
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def text(content: str) -> Change:
    return lambda path: path.write_text(content)


def with_a_nan(path: Path) -> None:
    """Make one value of one weight NaN, as a training that went wrong does."""
    weights = load_file(path)
    weights[max(weights)].view(-1)[0] = torch.nan
    save_file(weights, path, {"format": "pt"})


def without_a_weight(path: Path) -> None:
    weights = load_file(path)
    weights.pop(sorted(weights)[len(weights) // 2])
    save_file(weights, path, metadata={"format": "pt"})


def with_a_weight_renamed(path: Path) -> None:
    weights = load_file(path)
    name = sorted(weights)[len(weights) // 2]
    weights[f"{name}_"] = weights.pop(name)
    save_file(weights, path, metadata={"format": "pt"})


def damaged(folder: Path, at: Path, file: str, change: Change) -> str:
    """The error of loading a copy of `folder` in which `change` was made to `file`, with the copy's path taken out."""
    copy = Path(shutil.copytree(folder, at / folder.name))
    change(copy / file)
    with pytest.raises(ValueError, match=r".") as error:
        generators.load(str(copy))
    assert str(copy) in str(error.value), "the error names what is damaged"
    return str(error.value).replace(str(copy), "FOLDER")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model.safetensors", zeros, "model.safetensors is damaged (SHA-256 differs)"),
        ("model.safetensors", cut, "model.safetensors has "),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        ("config.json", text("{}"), "config.json has "),
        ("manifest.json", text("{"), "not valid JSON"),
        ("manifest.json", text("[]"), "list instead of an object|must be a mapping"),
        ("manifest.json", text('{"step": 3, "files": null}'), "files is null"),
        (
            "manifest.json",
            text('{"step": 3, "files": {"config.json": {"bytes": "many"}}}'),
            "it must be a whole number",
        ),
        ("manifest.json", text('{"step": 3, "files": {}}'), "does not name model.safetensors"),
    ],
)
def test_a_step_folder_is_held_to_its_manifest(
    folders: dict[str, Path], tmp_path: Path, file: str, change: Change, message: str
) -> None:
    error = damaged(folders["step"], tmp_path, file, change)
    assert "FOLDER" in error and any(part in error for part in message.split("|")), error


def test_a_copied_step_folder_is_checked_under_any_name(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["step"], tmp_path / "best"))
    zeros(copy / "model.safetensors")
    with pytest.raises(ValueError, match="is not whole: model.safetensors is damaged"):
        generators.load(str(copy))
    for command in (
        ["sample", "--prompt", "a red circle"],
        ["eval", "--prompts", "shapes:test"],
        ["heatmap", "--prompt", "a"],
    ):
        assert cli.main([*command, "--checkpoint", str(copy), "--out", str(tmp_path / "out")]) == 2
    (copy / "manifest.json").write_text('{"name": "of another program"}')
    (copy / "trainer.pt").unlink()  # beside a trainer's state the manifest would be ours
    generators.load(str(copy))


def test_an_odd_manifest_beside_a_trainer_s_state_is_ours_under_any_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folders["step"], tmp_path / "copy"))
    zeros(copy / "model.safetensors")
    (copy / "manifest.json").write_text('{"files": null}')
    with pytest.raises(ValueError, match="its manifest.json is damaged"):
        generators.load(str(copy))


def test_a_generator_does_without_the_trainer_s_state(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["step"], tmp_path / "step_000003"))
    (copy / "trainer.pt").unlink()
    generators.load(str(copy))


@pytest.mark.parametrize(
    ("kind", "file", "change", "message"),
    [
        *[
            ("janus", file, text(content), f"FOLDER/{file} is damaged")
            for file in (
                "config.json",
                "generation_config.json",
                "processor_config.json",
                "tokenizer_config.json",
                "tokenizer.json",
            )
            for content in ("[]", "{", "null", "", "[" * 100_000)
        ],
        ("janus", "config.json", text("{}"), "FOLDER/config.json names no kind of model: model_type is None"),
        ("janus", "config.json", text('{"model_type": ["janus"]}'), "FOLDER/config.json names no kind of model"),
        ("janus", "config.json", text('{"model_type": "janus"}'), "FOLDER"),
        ("janus", "config.json", text('{"model_type": "janus", "text_config": 7}'), "FOLDER"),
        ("janus", "config.json", lambda path: path.write_bytes(b"\xff\xfe{}"), "FOLDER/config.json is damaged"),
        ("janus", "tokenizer.json", text("{}"), "FOLDER/tokenizer.json is damaged: it holds no tokenizer"),
        (
            "janus",
            "tokenizer.json",
            text('{"model": {"type": "BPE"}}'),
            "FOLDER/tokenizer.json is damaged: it holds no",
        ),
        ("amused", "tokenizer/tokenizer.json", text("{}"), "FOLDER/tokenizer/tokenizer.json is damaged: it holds no"),
        ("janus", "model.safetensors", cut, "FOLDER/model.safetensors is damaged"),
        ("janus", "model.safetensors", text(""), "FOLDER/model.safetensors is damaged"),
        ("janus", "model.safetensors", Path.unlink, "FOLDER is not whole: it has no weights"),
        ("janus", "model.safetensors", without_a_weight, "FOLDER is not whole: its config.json describes "),
        ("janus", "model.safetensors", with_a_weight_renamed, "FOLDER is not whole: its files lack 1 weights of Janus"),
        ("amused", "model_index.json", text("[]"), "FOLDER/model_index.json is damaged"),
        ("amused", "model_index.json", text("{}"), "FOLDER/model_index.json names no kind of model"),
        ("amused", "transformer/config.json", text("[]"), "FOLDER/transformer/config.json is damaged"),
        ("amused", "transformer/config.json", text("{}"), "FOLDER"),
        ("amused", "tokenizer/tokenizer_config.json", text("{"), "FOLDER/tokenizer/tokenizer_config.json is damaged"),
        ("amused", "scheduler/scheduler_config.json", text("7"), "FOLDER/scheduler/scheduler_config.json is damaged"),
        (
            "amused",
            "vqvae/diffusion_pytorch_model.safetensors",
            cut,
            "FOLDER/vqvae/diffusion_pytorch_model.safetensors is damaged",
        ),
        (
            "amused",
            "transformer/diffusion_pytorch_model.safetensors",
            with_a_weight_renamed,
            "lack 1 weights of UVit2DModel",
        ),
        ("amused", "text_encoder/model.safetensors", with_a_weight_renamed, "lack 1 weights of CLIPTextModel"),
        ("adapter", "adapter_config.json", text("[]"), "FOLDER/adapter_config.json is damaged"),
        ("adapter", "adapter_config.json", text("{"), "FOLDER/adapter_config.json is damaged"),
        ("adapter", "adapter_config.json", text("{}"), "only plain LoRA adapters"),
        ("adapter", "adapter_config.json", text('{"peft_type": "LORA"}'), "names no base model"),
        (
            "adapter",
            "adapter_config.json",
            text('{"peft_type": "LORA", "base_model_name_or_path": [1]}'),
            "names no base model",
        ),
        (
            "adapter",
            "adapter_config.json",
            text('{"peft_type": "LORA", "base_model_name_or_path": "janus-mini", "revision": 5}'),
            "revision in its adapter_config.json is 5",
        ),
        ("adapter", "adapter_model.safetensors", Path.unlink, "there is no file FOLDER/adapter_model.safetensors"),
        ("adapter", "adapter_model.safetensors", cut, "FOLDER/adapter_model.safetensors is damaged"),
        (
            "adapter",
            "adapter_model.safetensors",
            without_a_weight,
            "does not fit its base: 1 of its weights are missing",
        ),
        ("adapter", "adapter_model.safetensors", with_a_nan, "is not finite; take another checkpoint"),
        ("janus", "model.safetensors", with_a_nan, "is not finite; take another checkpoint"),
        ("adapter step", "adapter_model.safetensors", zeros, "adapter_model.safetensors is damaged (SHA-256 differs)"),
        ("delta", "delta.json", text("[]"), "FOLDER/delta.json"),
        ("delta", "delta.json", text("{"), "FOLDER/delta.json, line 1: not valid JSON"),
        ("delta", "delta.json", text('{"base": 7}'), "FOLDER/delta.json: base is 7; it must be a text"),
        ("delta", "delta.json", text('{"base": "janus-mini", "base_files": null}'), "base_files is null"),
        ("delta", "delta.json", text('{"base": "janus-mini", "revision": {}}'), "FOLDER/delta.json: revision"),
        ("delta", "delta.safetensors", zeros, "delta.safetensors is not the file that delta.json describes"),
        ("delta", "delta.safetensors", cut, "delta.safetensors is not the file that delta.json describes"),
    ],
)
def test_every_oddity_is_a_sentence_that_names_the_file(
    folders: dict[str, Path], tmp_path: Path, kind: str, file: str, change: Change, message: str
) -> None:
    error = damaged(folders[kind], tmp_path, file, change)
    assert message in error, error


def test_a_delta_without_a_fingerprint_is_checked_for_what_it_holds(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["delta"], tmp_path / "delta"))
    about = json.loads((copy / "delta.json").read_text())
    about.pop("weights_file")
    (copy / "delta.json").write_text(json.dumps(about))
    generators.load(str(copy))
    weights = load_file(copy / "delta.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, copy / "delta.safetensors")
    with pytest.raises(ValueError, match="is not finite"):
        generators.load(str(copy))


def test_the_embedded_deltas_have_a_fingerprint() -> None:
    for folder in tuned().values():
        about = json.loads((folder / "delta.json").read_text(encoding="utf-8"))
        assert about["weights_file"]["bytes"] == (folder / "delta.safetensors").stat().st_size


# -- bases that lead back ----------------------------------------------------------------------------------------------


def adapter(folder: Path, base: object) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    return folder


def delta(folder: Path, base: object) -> Path:
    folder.mkdir()
    (folder / "delta.json").write_text(json.dumps({"base": base}))
    return folder


def test_a_base_that_leads_back_is_refused(tmp_path: Path) -> None:
    itself = adapter(tmp_path / "a", str(tmp_path / "a"))
    with pytest.raises(ValueError, match="it leads back to .*/a itself: .*/a -> .*/a"):
        locate(str(itself))
    (tmp_path / "link").symlink_to(adapter(tmp_path / "b", str(tmp_path / "link")))
    with pytest.raises(ValueError, match="it leads back to"):
        locate(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="it leads back to"):
        locate(str(delta(tmp_path / "d", str(tmp_path / "d"))))
    adapter(tmp_path / "on", str(delta(tmp_path / "under", str(tmp_path / "on"))))
    for name in ("on", "under"):
        with pytest.raises(ValueError, match=r"it leads back to|is itself an adapter"):
            locate(str(tmp_path / name))


def test_a_long_chain_ends_at_its_first_link(tmp_path: Path) -> None:
    for k in range(50):
        adapter(tmp_path / f"a{k}", str(tmp_path / f"a{k + 1}"))
        delta(tmp_path / f"d{k}", str(tmp_path / f"d{k + 1}"))
    with pytest.raises(ValueError, match="a1 is itself an adapter; merge that one first"):
        locate(str(tmp_path / "a0"))
    with pytest.raises(ValueError, match="d1 is no whole model but a delta itself"):
        locate(str(tmp_path / "d0"))
