"""Nothing that is loaded executes.

A search of the sources, and crafted files of every kind that is read, each with a command in it.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import rewards
from helpers import tiny, tiny_amused
from rewards.models.open_clip_model import load_open_clip, read_tensors
from rewards.models.remote_code import check_kernels, check_text_model
from rewards.models.transformers_model import load_part
from t2i_gcpo import cli, generators
from t2i_gcpo.heatmap import Heatmap
from t2i_gcpo.pretrain.stages import load_state
from t2i_gcpo.training import checkpoint
from t2i_gcpo.utils import yaml_files

ROOT = Path(__file__).resolve().parent.parent

# -- the sources -------------------------------------------------------------------------------------------------------

#: Call -> the argument that keeps it from running what it reads.
GUARDS = {
    "from_pretrained": ("trust_remote_code", False),
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
}
#: Calls that run what they read, whatever their arguments are.
FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "joblib.load",
    "torch.jit.load",
    "torch.hub.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "shelve.open",
    "pd.read_pickle",
    "torch.package.PackageImporter",
}
#: Of these there is at least one in the sources, so that the search is seen to find any.
PRESENT = ("from_pretrained", "torch.load")
#: peft reads no code for a plain LoRA adapter, and `checkpoints.locate` lets no other through.
ADAPTERS = ("PeftModel.from_pretrained",)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def sources() -> list[Path]:
    return sorted(path for folder in ("t2i_gcpo", "rewards", "notebooks") for path in (ROOT / folder).rglob("*.py"))


def test_every_loader_in_the_sources_is_told_to_run_nothing() -> None:
    seen: dict[str, int] = dict.fromkeys(GUARDS, 0)
    for path in sources():
        for name, call in calls(path):
            where = f"{path.relative_to(ROOT)}, line {call.lineno}: {name}"
            assert name not in FORBIDDEN, f"{where} runs what it reads"
            for guarded, (argument, value) in GUARDS.items():
                if not f".{name}".endswith(f".{guarded}") or name in ADAPTERS:
                    continue
                given = {k.arg: k.value for k in call.keywords}
                assert argument in given and ast.literal_eval(given[argument]) is value, (
                    f"{where} without {argument}={value}"
                )
                seen[guarded] += 1
    assert all(seen[name] for name in PRESENT), f"the search is blind: {seen}"


def test_the_reader_of_yaml_builds_plain_values(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.yaml"):
        yaml_files.load(tmp_path / "a.yaml")


# -- crafted files -----------------------------------------------------------------------------------------------------

EVIL = """
open({marker!r}, "a").write("ran")


class Evil:
    from_pretrained = classmethod(lambda cls, *args, **options: cls())
    register_for_auto_class = from_dict = from_config = from_pretrained
"""


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where crafted code leaves its mark; whoever asks whether to run it is answered yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return tmp_path / "ran"


def with_code(folder: Path, marker: Path, file: str = "tokenizer_config.json", **auto_map: Any) -> Path:
    """Put a module into `folder` and ask for it in one of its configurations.

    As repositories with code of their own do.
    """
    path = folder / file
    (path.parent / "evil.py").write_text(EVIL.format(marker=str(marker)), encoding="utf-8")
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config.pop("tokenizer_class", None)
    auto_map = auto_map or {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    path.write_text(json.dumps({**config, "auto_map": auto_map}), encoding="utf-8")
    return folder


def test_the_crafted_module_runs_where_it_is_trusted(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round: without the guard these folders do run their code, so that the tests below can fail."""
    from transformers import AutoTokenizer

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    AutoTokenizer.from_pretrained(with_code(tiny.checkpoint(tmp_path / "model"), marker), local_files_only=True)
    assert marker.exists()


def test_a_generator_s_own_code_is_not_run(tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    janus = with_code(tiny.checkpoint(tmp_path / "janus"), marker)
    amused = tiny_amused.checkpoint(tmp_path / "amused")
    with_code(amused / "tokenizer", marker)
    for folder in (janus, amused):
        with pytest.raises(ValueError, match=r"asks to run Python code of its own") as error:
            generators.load(str(folder))
        assert str(folder) in str(error.value) and "trust_remote_code=True" not in str(error.value)
    assert (
        cli.main(["sample", "--checkpoint", str(janus), "--prompt", "a red circle", "--out", str(tmp_path / "o")]) == 2
    )
    assert "Python code of its own" in capsys.readouterr().err and not marker.exists()


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "preprocessor_config.json"])
def test_code_that_is_not_needed_is_left_alone(tmp_path: Path, marker: Path, file: str) -> None:
    """Configurations of classes that transformers has itself load without their code."""
    names = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor")
    folder = with_code(tiny.checkpoint(tmp_path / "m"), marker, file, **dict.fromkeys(names, "evil.Evil"))
    generators.load(str(folder))
    assert not marker.exists()


def test_a_scorer_s_own_code_is_not_run(tmp_path: Path, marker: Path) -> None:
    tokenizer = with_code(tiny.checkpoint(tmp_path / "text"), marker)
    images = with_code(
        tmp_path_with(tmp_path / "images"), marker, "preprocessor_config.json", AutoImageProcessor="evil.Evil"
    )
    for loader, folder in (("AutoTokenizer", tokenizer), ("AutoImageProcessor", images), ("AutoProcessor", tokenizer)):
        with pytest.raises(ValueError, match="Python code of its own"):
            load_part(loader, "part", folder, "test")
    assert not marker.exists()


def tmp_path_with(folder: Path) -> Path:
    folder.mkdir()
    return folder


CLIP_MINI = Path(rewards.__file__).parent / "assets" / "clip-mini"


def clip_folder(folder: Path, **text: Any) -> Path:
    """clip-mini with more in the part of its configuration that is about texts."""
    shutil.copytree(CLIP_MINI, folder)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_cfg"]["text_cfg"].update(text)
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kwargs", [{}, {"trust_remote_code": True}])
def test_open_clip_is_not_told_to_trust_by_its_own_config(tmp_path: Path, marker: Path, kwargs: dict[str, Any]) -> None:
    """open_clip hands `tokenizer_kwargs` of a folder's configuration on to transformers.

    There it would not even ask.
    """
    folder = with_code(clip_folder(tmp_path / "clip", tokenizer_kwargs=kwargs), marker)
    with pytest.raises(ValueError, match="Python code of its own"):
        load_open_clip("clip", checkpoint=str(folder))
    assert not marker.exists()


def test_open_clip_s_text_model_brings_no_code(tmp_path: Path, marker: Path) -> None:
    inner = with_code(
        tmp_path_with(tmp_path / "inner"), marker, "config.json", AutoConfig="evil.Evil", AutoModel="evil.Evil"
    )
    folder = clip_folder(tmp_path / "clip", hf_model_name=str(inner))
    with pytest.raises(ValueError, match="Python code of its own"):
        load_open_clip("clip", checkpoint=str(folder))
    (inner / "config.json").write_text(
        json.dumps({"model_type": "janus_vqgan", "auto_map": {"AutoModel": "evil.Evil"}})
    )
    with pytest.raises(ValueError, match="Python code of its own"):
        check_text_model(inner)
    assert not marker.exists()


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "somebody/kernels"},
        {"text_config": {"_attn_implementation": "somebody/kernels"}},
        {"attn_implementation": {"text_config": "somebody/kernels"}},
        {"parts": [{"experts_implementation": "a/b@main:c"}]},
    ],
)
def test_a_configuration_names_no_kernels_of_the_hub(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"c\.json: .* is code from the hub"):
        check_kernels(config, Path("c.json"))
    check_kernels({"attn_implementation": "sdpa", "_name_or_path": "owner/name", "parts": [{"a": 1}]}, Path("c.json"))


def pickled(marker: Path) -> Callable[[Path], None]:
    return lambda path: torch.save({"state_dict": Command(marker)}, path)


def janus_of_pickles(folder: Path, marker: Path) -> None:
    tiny.checkpoint(folder)
    (folder / "model.safetensors").unlink()
    pickled(marker)(folder / "pytorch_model.bin")


def test_pickles_are_not_run(tmp_path: Path, marker: Path) -> None:
    pickled(marker)(tmp_path / "state.pt")
    trainer = SimpleNamespace(load_state_dict=lambda state: None)
    with pytest.raises(ValueError, match=r"state\.pt is no state that this pre-training wrote"):
        load_state(trainer, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_tensors(tmp_path / "state.pt", "clip")
    janus_of_pickles(tmp_path / "janus", marker)
    with pytest.raises(ValueError, match="has no weights"):
        generators.load(str(tmp_path / "janus"))
    amused = tiny_amused.checkpoint(tmp_path / "amused")
    for path in amused.rglob("*.safetensors"):
        pickled(marker)(path.with_suffix(".bin"))
        path.unlink()
    with pytest.raises(ValueError, match="has no weights"):
        generators.load(str(amused))
    np.savez(tmp_path / "heatmap.npz", images=np.array([Command(marker)], dtype=object))
    with pytest.raises(ValueError, match=r"heatmap\.npz"):
        Heatmap.load(tmp_path / "heatmap.npz")
    assert not marker.exists()


def test_the_command_in_a_pickle_runs_where_it_is_trusted(tmp_path: Path, marker: Path) -> None:
    pickled(marker)(tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert marker.exists()


def test_a_pre_training_does_not_run_what_lies_in_its_folder(
    tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work" / "contrastive").mkdir(parents=True)
    pickled(marker)(tmp_path / "work" / "contrastive" / "state.pt")
    assert cli.main(["pretrain", "clip", "--out", str(tmp_path / "work"), "--steps", "1"]) == 2
    assert "state.pt is no state that this pre-training wrote" in capsys.readouterr().err and not marker.exists()


def test_nobody_is_told_to_run_what_a_file_holds(tmp_path: Path) -> None:
    """torch advises to set weights_only to False."""
    from rewards.models.device import short

    torch.save({"step": Path}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError, match="weights_only") as caught:
        torch.load(tmp_path / "state.pt", weights_only=True)
    told = short(caught.value)
    assert told == "it is damaged, or holds more than tensors and plain values, and nothing else is loaded"


def test_only_plain_lora_adapters_are_loaded(tmp_path: Path) -> None:
    """Prompt tuning loads a tokenizer that its file names; a megatron_config imports a module."""
    base = tiny.checkpoint(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    for config in ({"peft_type": "PROMPT_TUNING"}, {"peft_type": "LORA", "megatron_config": {"a": 1}}, {}):
        text = json.dumps({"base_model_name_or_path": str(base), **config})
        (tmp_path / "adapter" / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match="only plain LoRA adapters"):
            generators.load(str(tmp_path / "adapter"))


def test_a_checkpoint_s_state_is_tensors_and_plain_values(tmp_path: Path, marker: Path) -> None:
    path = checkpoint.save(tmp_path, 1, state={"step": Command(marker)}, save_model=lambda folder: None)
    with pytest.raises(ValueError, match="is no whole checkpoint: trainer.pt cannot be read"):
        checkpoint.load(path)
    assert not marker.exists()


# -- the user's own code -----------------------------------------------------------------------------------------------


def test_resuming_says_whose_code_it_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the import, and for every place where a run can name one."""
    (tmp_path / "mine.py").write_text("raise ValueError('imported')\n")
    run = tmp_path / "run"
    run.mkdir()
    tiny.checkpoint(tmp_path / "model")
    mine = f"{tmp_path / 'mine.py'}:score"
    (tmp_path / "p.txt").write_text("a red circle\n")
    prompts = {name: str(tmp_path / "p.txt") for name in ("train", "validation", "test")}
    for reward, watch in (
        ({"name": mine}, []),
        ({"name": "composite", "rewards": {"x": {"name": mine, "weight": 1}}}, []),
        ({"name": "geneval"}, [mine]),
    ):
        config = {
            "generator": {"checkpoint": str(tmp_path / "model"), "device": "cpu"},
            "prompts": prompts,
            "output_dir": str(run),
        }
        (run / "config.yaml").write_text(json.dumps({**config, "reward": reward, "watch": {"rewards": watch}}))
        assert cli.main(["train", "--output-dir", str(run), "--resume"]) == 2
        shown = capsys.readouterr().err
        assert f"{run / 'config.yaml'} names the reward {mine}; resuming imports and runs that Python code" in shown
        assert shown.index("note: ") < shown.index("imported")
