"""What training leaves behind is loaded again: a run by its folder, an adapter on the base that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from helpers import tiny
from rewards.models.torchvision_mend import mend
from t2i_gcpo import generators
from t2i_gcpo.cli import main
from t2i_gcpo.generators import adapter_base, deltas
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.checkpoints import locate
from t2i_gcpo.records import Sampling
from t2i_gcpo.training import checkpoint
from t2i_gcpo.training.tracker import Tracker


def run(folder: Path, base: Path, steps: list[int]) -> Path:
    """A run's folder with whole checkpoints of these steps."""
    generator = generators.load(str(base), compile=False)
    for step in steps:
        checkpoint.save(folder, step, state={"step": step}, save_model=generator.save)
    return folder


def test_a_run_is_loaded_by_its_folder(tmp_path: Path) -> None:
    """The newest whole checkpoint where no validation chose one, else the best, and it says which."""
    folder = run(tmp_path / "run", tiny.checkpoint(tmp_path / "base"), [2, 10, 11])
    (folder / "checkpoints" / "step_000011" / "model.safetensors").write_bytes(b"cut off")
    with pytest.warns(UserWarning, match="step_000010 is loaded, its newest that is whole"):
        found = locate(str(folder))
    assert found.folder == folder / "checkpoints" / "step_000010" and found.name == str(found.folder)
    checkpoint.record_best(folder, 2, 0.7)
    with pytest.warns(UserWarning, match="step_000002 is loaded, the best on its validation prompts"):
        generator = generators.load(str(folder), compile=False)
    assert generator.base is not None and generator.base.name.endswith("step_000002")


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", tiny.checkpoint(tmp_path / "base"), [2])
    (folder / "checkpoints" / "step_000002" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="none of its 1 checkpoints is whole"):
        locate(str(folder))


@pytest.mark.parametrize("hashed", [2**26, 2**14], ids=["small files", "large files"])
def test_an_adapter_is_put_on_the_base_of_its_training_alone(
    hashed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its files are too large to be hashed whole: a training keeps their size."""
    monkeypatch.setattr("t2i_gcpo.utils.files.HASHED_BYTES", hashed)
    base, adapter = tiny.checkpoint(tmp_path / "base"), tmp_path / "adapter"
    generator = generators.load(str(base), compile=False)
    generator.add_lora(rank=2, alpha=4)
    generator.save(adapter)
    assert generators.load(str(adapter), compile=False).has_lora
    weights = load_file(base / "model.safetensors")
    trained = {name: value + 1 for name, value in weights.items() if name.startswith("model.language_model.layers.")}
    save_file(weights | trained, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="was trained on other weights than those in"):
        generators.load(str(adapter), compile=False)
    (adapter / adapter_base.FILE).unlink()  # as adapters of other programs
    assert generators.load(str(adapter), compile=False).has_lora


def test_large_weight_files_are_known_by_parts_all_over_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_gcpo.utils.files.HASHED_BYTES", 64 * 4)
    file, content = tmp_path / "model.safetensors", bytearray(range(256)) * 3
    file.write_bytes(content)
    noted = deltas.fingerprint(tmp_path)
    assert deltas.same_files(noted, deltas.fingerprint(tmp_path))
    assert deltas.same_files({file.name: {"bytes": 768}}, noted)  # as noted before parts were
    (tmp_path / "converted").mkdir()  # what lies there, too, is not read with the model
    for stranger in ("converted/model.safetensors", "model.fp16.safetensors"):
        (tmp_path / stranger).write_bytes(b"other weights")
    assert deltas.fingerprint(tmp_path) == noted
    for places in (range(9), range(400, 409), range(767, 768)):  # of three bytes, one is in a part
        file.write_bytes(bytes(value ^ (place in places) for place, value in enumerate(content)))
        assert not deltas.same_files(noted, deltas.fingerprint(tmp_path))


def test_an_adapter_and_a_model_are_saved_to_folders_of_their_own(tmp_path: Path) -> None:
    """Beside its base's files an adapter would have itself for a base; beside an adapter's a model is never loaded."""
    base, adapter = tiny.checkpoint(tmp_path / "base"), tmp_path / "adapter"
    generator = generators.load(str(base), compile=False)
    generator.add_lora(rank=2, alpha=4)
    with pytest.raises(ValueError, match=r"holds a whole model \(config.json\); save the adapter to another folder"):
        generator.save(base)
    generator.save(adapter)
    generator.merge_lora()
    with pytest.raises(ValueError, match="holds a LoRA adapter or delta"):
        generator.save(adapter)
    assert generators.load(str(adapter), compile=False).has_lora
    for name in (str(base), "random:janus-pro-1b:layers=1,width=32"):
        with pytest.raises(ValueError, match="is of model type 'janus', and Amused reads 'amused'"):
            Amused.load(name)


def test_an_adapter_on_random_weights_needs_no_files(tmp_path: Path) -> None:
    generator = generators.load("random:janus-pro-1b:layers=1,width=32", compile=False)
    generator.add_lora(rank=2, alpha=4)
    generator.save(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / adapter_base.FILE).read_text())["base_files"] == {}
    again = generators.load(str(tmp_path / "adapter"), compile=False)
    assert again.has_lora and torch.equal(next(again.policy.parameters()), next(generator.policy.parameters()))


def test_a_merged_export_is_a_model_of_its_own_with_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers loads it without this package; it gives the log-probs of base and adapter together."""
    mend()  # transformers imports torchvision
    from transformers import JanusForConditionalGeneration

    base, folder = tiny.checkpoint(tmp_path / "base"), tmp_path / "run"
    generator = generators.load(str(base), compile=False)
    generator.add_lora(rank=2, alpha=4)
    with torch.no_grad():
        for name, parameter in generator.policy.named_parameters():
            if ".lora_B." in name:
                parameter.add_(0.1)
    step = checkpoint.save(folder, 4, state={"step": 4}, save_model=generator.save)
    with Tracker(folder, steps=4, config={}) as tracker:
        tracker.log(4, {"validation/overall": 0.25, "images_sampled": 64.0})
    options = {"seed": 7, "algorithm": {"name": "gcpo"}, "prompts": {"train": "data/p.txt"}, "reward": {"name": "clip"}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**options, "generator": {"checkpoint": "org/base"}}))
    assert main(["export", "--checkpoint", str(step), "--merged", "--out", str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    whole = generators.load(str(tmp_path / "whole"), compile=False)
    assert not whole.has_lora
    rollout = generator.sample(["a red circle"], Sampling(group_size=2, seed=0))
    with torch.no_grad():
        torch.testing.assert_close(whole.token_logprobs(rollout), generator.token_logprobs(rollout), atol=1e-5, rtol=0)
    JanusForConditionalGeneration.from_pretrained(tmp_path / "whole", local_files_only=True)
    text = (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    assert "base_model: org/base" in text
    for row in ("| algorithm | gcpo |", "| training prompts | data/p.txt |", "| reward | clip |", "| step | 4 |"):
        assert row in text
    assert "| validation | 0.250 |" in text and "seed: 7" in text
    assert main(["export", "--checkpoint", str(step), "--out", str(tmp_path / "x")]) == 2
    assert "--against" in capsys.readouterr().err


@pytest.mark.parametrize("how", [["--merged"], ["--against", "janus-mini"]])
def test_an_export_is_written_over_no_model(how: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The base of the adapter, say: its weights would be gone, or loaded with a delta to themselves."""
    base = tiny.checkpoint(tmp_path / "base")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    assert main(["export", "--checkpoint", "janus-mini-gcpo", *how, "--out", str(base)]) == 2
    assert "holds a model already (model.safetensors)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
