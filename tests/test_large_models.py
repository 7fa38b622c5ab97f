"""What goes wrong with models that do not fit or are not there is told with what to do."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny, tiny_amused
from rewards.models.torchvision_mend import mend
from t2i_gcpo import generators
from t2i_gcpo.cli import main
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.training.updater import Updater
from t2i_gcpo.utils import device


def test_lora_targets_that_match_nothing_list_what_there_is(tmp_path: Path) -> None:
    generator = generators.load(str(tiny.checkpoint(tmp_path / "model")), compile=False)
    with pytest.raises(ValueError, match="LoRA targets to_q, to_k; there are down_proj, gate_proj, k_proj"):
        generator.add_lora(rank=2, targets=["to_q", "to_k"])
    with pytest.raises(ValueError, match="LoRA targets q_prj; there are down_proj"):
        generator.add_lora(rank=2, targets=["v_proj", "q_prj"])
    with pytest.raises(ValueError, match="targets are 'q_proj'; pass a sequence"):
        generator.add_lora(rank=2, targets="q_proj")
    with pytest.raises(ValueError, match="are no regular expressions"):
        generator.add_lora(rank=2, targets=["q_proj("])
    with pytest.raises(ValueError, match="alpha nan; both must be finite"):
        generator.add_lora(rank=2, alpha=float("nan"))
    assert not generator.has_lora
    generator.add_lora(rank=2, targets=["q_proj"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0; it must be at least 1"),
        ({"compile": "of"}, "compile is 'of'; allowed: True, False, auto, graphs"),
        ({"merge_adapters": "no"}, "merge_adapters is 'no'; allowed: auto, on, off"),
    ],
)
def test_options_of_a_generator_are_checked_from_python_too(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generators.load("random:janus-pro-1b:layers=1,width=32", **option)


def test_a_card_without_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    native = {"value": False}
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native["value"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    card = torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"Tesla T4 does not compute in bfloat16 .* --generator.dtype float32"):
        device.check_dtype(card, torch.bfloat16)
    device.check_dtype(card, torch.float32)
    device.check_dtype(torch.device("cpu"), torch.bfloat16)
    native["value"] = True
    device.check_dtype(card, torch.bfloat16)


def test_a_run_that_is_out_of_memory_says_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its second step: the first is saved, and the message says how to go on."""
    update, calls = Updater.update, []

    def fails_later(self: Updater, *args: Any, **options: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return update(self, *args, **options)

    monkeypatch.setattr(Updater, "update", fails_later)
    prompts, folder = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("a red circle\na blue square\n")
    files = [f"--prompts.{part}={prompts}" for part in ("train", "validation", "test")]
    model = f"--generator.checkpoint={tiny.checkpoint(tmp_path / 'model')}"
    small = ["--prompts-per-step=1", "--algorithm.group-size=2", "--steps=3", "--generator.device=cpu"]
    quiet = ["--evaluate.before=false", "--evaluate.every=0", "--pictures.every=0", "--logging.progress=false"]
    reward = ["--reward.name=helpers.training:redness", "--prompts.balanced=false", f"--output-dir={folder}"]
    status = main(["train", model, *files, *small, *quiet, *reward])
    error = capsys.readouterr().err
    assert status == 2 and "error: the device is out of memory (CUDA out of memory" in error
    assert "By the plan most is held in the phase" in error and "--micro-batch (now 16)" in error
    assert "Step 1 is saved; go on with: t2i-gcpo train --output-dir" in error
    assert (folder / "checkpoints" / "step_000001" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["GPU", "CPU"],
)
def test_a_model_that_does_not_fit_says_so_before_anything_is_written(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise fault

    mend()  # transformers imports torchvision
    from transformers import JanusForConditionalGeneration

    monkeypatch.setattr(JanusForConditionalGeneration, "from_pretrained", full)
    prompts, folder = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("a red circle\na blue square\n")
    files = [f"--prompts.{part}={prompts}" for part in ("train", "validation", "test")]
    model = f"--generator.checkpoint={tiny.checkpoint(tmp_path / 'model')}"
    small = ["--prompts-per-step=1", "--algorithm.group-size=2", "--generator.device=cpu", "--prompts.balanced=false"]
    argv = ["train", model, *files, *small, "--reward.name=helpers.training:redness", f"--output-dir={folder}"]
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert (
        "out of memory while the run is loaded (" in error and str(fault) in error and "By the plan the phase" in error
    )
    assert "--generator.dtype bfloat16" in error and error.count("\n") == 1 and not folder.exists()


def test_other_commands_that_are_out_of_memory_say_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(error: Exception) -> Any:
        def load(*_: Any, **__: Any) -> None:
            raise error

        return load

    argv = ["sample", "--checkpoint", "janus-mini", "--prompt", "a red circle", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(generators, "load", fails(torch.OutOfMemoryError("CUDA out of memory.\nTried 3 GiB")))
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "error: the device is out of memory (CUDA out of memory. Tried 3 GiB); do less at once (--batch)" in error
    for fault in (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ):
        monkeypatch.setattr(generators, "load", fails(fault))
        assert main(argv) == 2 and "error: the device is out of memory (" in capsys.readouterr().err
    monkeypatch.setattr(generators, "load", fails(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(argv)


def test_a_policy_of_several_dtypes_is_refused() -> None:
    model = tiny.model()
    model.model.language_model.layers[0].mlp.bfloat16()
    with pytest.raises(
        ValueError, match=r"several dtypes: \d+ in float32 such as .*, 3 in bfloat16 such as layers.0.mlp"
    ):
        Janus(model, tiny.processor())


def test_a_reference_with_other_tokens_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their grids are alike, so that one would score the other's tokens, and the KL would mean nothing."""
    own, other, more = (str(tmp_path / name) for name in ("own", "other", "more"))
    tiny.checkpoint(Path(own)), tiny_amused.checkpoint(Path(other)), tiny.checkpoint(Path(more), codebook=64)
    asked = ["heatmap", "--checkpoint", own, "--prompt", "a red circle", "--reward", "none", "--device", "cpu"]
    for reference, kind in ((other, "amused"), (more, "janus with 64 codes")):
        assert main([*asked, "--reference", reference, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert f"is a checkpoint of {kind}" in error and "their tokens mean different things" in error
    assert not (tmp_path / "out").exists()
