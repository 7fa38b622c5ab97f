"""`generators.load`: from names and folders to adapters, and the errors on the way."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny
from t2i_gcpo import generators
from t2i_gcpo.generators import checkpoints
from t2i_gcpo.generators.base import as_negatives, check_tokens, chunks, in_chunks


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is out of reach."""

    def head(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: types.SimpleNamespace(head=head))


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking the hub fails the test."""
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: pytest.fail("asked the hub"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))


def folder_of_type(path: Path, model_type: str, file: str = "config.json", key: str = "model_type") -> Path:
    path.mkdir(parents=True)
    (path / file).write_text(json.dumps({key: model_type}))
    return path


def test_every_adapter_in_the_registry_exists() -> None:
    for model_type, target in generators.ADAPTERS.items():
        module, name = target.split(":")
        adapter = getattr(importlib.import_module(module), name)
        assert adapter.kind == model_type and callable(adapter.from_checkpoint)


def test_import_of_the_registry_loads_no_model_library() -> None:
    code = (
        "import sys, t2i_gcpo.generators; print([m for m in ('transformers', 'diffusers', 'peft', 'torchvision') "
        "if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_relative_paths_are_remembered_as_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.checkpoint(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    generator = generators.load("tiny", dtype=torch.float32)
    assert generator.kind == "janus" and generator.base.name == str(tmp_path / "tiny")  # type: ignore[attr-defined]


def test_a_model_type_without_adapter_lists_those_with_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'llama'.*adapters for.*janus"):
        generators.load(str(folder_of_type(tmp_path / "llama", "llama")))
    with pytest.raises(ValueError, match="deepseek-community/Janus-Pro-1B"):
        generators.load(str(folder_of_type(tmp_path / "original", "multi_modality")))


def test_diffusers_folders_are_known_by_their_pipeline(tmp_path: Path) -> None:
    folder = folder_of_type(tmp_path / "a", "AmusedPipeline", "model_index.json", "_class_name")
    assert checkpoints.locate(str(folder)).model_type == "amused"


def test_embedded_names_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of_type(tmp_path / "assets" / "janus-mini", "janus")
    monkeypatch.setattr(checkpoints, "ASSETS", tmp_path / "assets")
    (tmp_path / "work" / "janus-mini").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    found = checkpoints.locate("janus-mini")
    assert (
        found.folder == tmp_path / "assets" / "janus-mini"
        and found.name == "janus-mini"
        and found.model_type == "janus"
    )
    with pytest.raises(ValueError, match="'amused-mini' is not in"):
        checkpoints.locate("amused-mini")


def lora_adapter(path: Path, base: Path) -> None:
    path.mkdir()
    content = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    (path / "adapter_config.json").write_text(json.dumps(content))


def test_an_adapter_leads_to_its_base(tmp_path: Path) -> None:
    base = folder_of_type(tmp_path / "base", "janus")
    lora_adapter(tmp_path / "adapter", base)
    found = checkpoints.locate(str(tmp_path / "adapter"))
    assert found.folder == base and found.adapter == tmp_path / "adapter" and found.name == str(base)
    lora_adapter(tmp_path / "lost", tmp_path / "gone")
    with pytest.raises(ValueError, match="base model of the LoRA adapter.*gone"):
        checkpoints.locate(str(tmp_path / "lost"))


@pytest.mark.parametrize("name", ["/no/such/folder", "./tiny/model", "nothing", "a/b/c", "~/nothing-here"])
def test_what_cannot_be_a_repository_never_asks_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_network(monkeypatch)
    with pytest.raises(ValueError, match=r"no checkpoint .*there is no folder .*embedded checkpoint: janus-mini"):
        generators.load(name)


def test_a_missing_file_in_a_folder_that_exists_never_asks_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    forbid_network(monkeypatch)
    with pytest.raises(ValueError, match="no checkpoint 'runs/first'"):
        generators.load("runs/first")


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.json .*model_index.json .*adapter_config.json .*found nothing"):
        generators.load(str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_network(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"no checkpoint 'nobody-here/no-such-model'.*revision 'v1'.*cannot be reached"
    ):
        generators.load("nobody-here/no-such-model", revision="v1")


def test_a_repository_in_the_cache_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    folder = folder_of_type(tmp_path / "snapshot", "janus")

    def snapshot(name: str, **options: object) -> str:
        assert (name, options["revision"], options["local_files_only"]) == ("owner/model", "v2", True)
        # As the repository of aMUSEd has them: each weight twice.
        files = ["config.json", "vqvae/diffusion_pytorch_model.safetensors", "model.fp16.safetensors", "model.bin",
                 "vqvae/diffusion_pytorch_model.fp16.safetensors", "model-00001-of-00002.safetensors"]  # fmt: skip
        wanted = filter_repo_objects(
            files, allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"]
        )
        assert list(wanted) == [files[0], files[1], files[5]]
        return str(folder)

    no_network(monkeypatch)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = checkpoints.locate("owner/model", revision="v2")
    assert (found.name, found.folder, found.model_type, found.revision) == ("owner/model", folder, "janus", "v2")


@pytest.mark.parametrize("dtype", ["int64", "float31", torch.int32])
def test_dtypes_that_are_none(dtype: object) -> None:
    with pytest.raises(ValueError, match="allowed: float32"):
        generators.as_dtype(dtype)  # type: ignore[arg-type]


def test_helpers_by_hand() -> None:
    assert generators.as_dtype("bfloat16") is torch.bfloat16
    assert (
        as_negatives("x", 2) == ("x", "x")
        and as_negatives(["x", "y"], 2) == ("x", "y")
        and as_negatives(None, 2) is None
    )
    assert [list(part) for part in chunks(range(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [list(part) for part in chunks(range(4), 3)] == [[0, 1], [2, 3]], "equal parts, no lone last row"
    assert [list(part) for part in chunks(range(4), None)] == [[0, 1, 2, 3]]
    sizes: list[int] = []
    doubled = in_chunks(lambda part: sizes.append(len(part)) or 2 * part, torch.arange(5), 2)
    assert sizes == [2, 2, 1] and doubled.tolist() == [0, 2, 4, 6, 8]
    check_tokens(torch.tensor([[0, 3]]), (1, 2), 4)
    for bad in (torch.tensor([[0, 4]]), torch.tensor([[-1, 0]]), torch.tensor([0, 1]), torch.tensor([[0.0, 1.0]])):
        with pytest.raises(ValueError, match="tokens"):
            check_tokens(bad, (1, 2), 4)


def _first_call(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> threading.Event:
    """Let a function tell when it is called, and do nothing else."""
    called = threading.Event()

    def tell(*args: Any, **kwargs: Any) -> Any:
        called.set()
        raise ValueError("called")

    monkeypatch.setattr(module, name, tell)
    return called


@pytest.mark.parametrize("what", ["generator", "language model", "scorer", "part of a scorer", "open_clip"])
def test_models_are_loaded_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Two lazy imports of transformers at once fail, as in the demo's first seconds: each loader waits for the lock,
    and calls what it calls first when it has it.
    """
    from rewards.models import loading, open_clip_model, transformers_model
    from t2i_gcpo.text import models

    module, name, load = {
        "generator": (generators.importlib, "import_module", lambda: generators.load("janus-mini")),
        "language model": (models, "mend", lambda: models.load("text-mini")),
        "scorer": (
            transformers_model,
            "check_dtype",
            lambda: transformers_model.load_model("a", "b", "c", device="cpu", dtype="float32"),
        ),
        "part of a scorer": (
            transformers_model, "require", lambda: transformers_model.load_part("a", "b", Path("c"), "d"),
        ),
        "open_clip": (open_clip_model, "check_dtype", lambda: open_clip_model.load_open_clip("clip")),
    }[what]  # fmt: skip
    called = _first_call(monkeypatch, module, name)

    def run() -> None:
        with pytest.raises(ValueError, match="called"):
            load()

    thread = threading.Thread(target=run)
    with loading.LOADING:
        thread.start()
        assert not called.wait(0.1)
    assert called.wait(30)
    thread.join()
