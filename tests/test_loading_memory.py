"""Loading makes no copy of a model in the host's memory: files are mapped, or cast on their way to the device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import tiny, tiny_amused
from rewards.models.torchvision_mend import mend
from t2i_gcpo import generators
from t2i_gcpo.generators import integrity
from t2i_gcpo.generators.integrity import load_model

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")  # a device that is not the host's memory, on any machine


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a model of each library; the weights in them are fp32."""
    folder = tmp_path_factory.mktemp("loading")
    masked = tiny_amused.checkpoint(folder / "amused")
    return {"janus": tiny.checkpoint(folder / "janus"), "amused": masked / "transformer"}


def kind_of(name: str) -> Any:
    mend()
    from diffusers import UVit2DModel
    from transformers import JanusForConditionalGeneration

    return {"janus": JanusForConditionalGeneration, "amused": UVit2DModel}[name]


def mapped(file: Path) -> list[range]:
    """Return the addresses of this process at which a file's pages lie."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(file.resolve()))]
    return [range(int(low, 16), int(high, 16)) for low, high in spans]


def weights(model: nn.Module) -> Iterator[torch.Tensor]:
    return (parameter.detach() for parameter in model.parameters())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["janus", "amused"])
def test_weights_of_the_wanted_dtype_are_pages_of_their_file(name: str, folders: dict[str, Path]) -> None:
    """Which processes share. A cast makes memory of the process' own."""
    file = next(folders[name].glob("*.safetensors"))
    for dtype, shared in ((torch.float32, True), (torch.bfloat16, False)):
        model = load_model(kind_of(name), folders[name], dtype=dtype, device=CPU)
        pages = mapped(file)
        inside = [any(value.data_ptr() in span for span in pages) for value in weights(model)]
        assert inside and set(inside) == {shared}
        assert {value.dtype for value in weights(model)} == {dtype}


@pytest.mark.parametrize("name", ["janus", "amused"])
def test_weights_that_are_cast_go_straight_to_the_device(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the library has read the files, nothing of the model is in the host's memory."""
    monkeypatch.setattr(integrity, "check_finite", lambda module, what: None)  # there are no values on meta
    model = load_model(kind_of(name), folders[name], dtype=torch.bfloat16, device=ELSEWHERE)
    assert {value.device for value in weights(model)} == {ELSEWHERE}
    assert {value.dtype for value in weights(model)} == {torch.bfloat16}
    same = load_model(kind_of(name), folders[name], dtype=torch.float32, device=ELSEWHERE)
    assert {value.device for value in weights(same)} == {CPU}, "mapped, and left for the caller to move"


@pytest.mark.parametrize("helper", [tiny, tiny_amused], ids=["janus", "amused"])
def test_a_cast_on_the_way_rounds_as_one_afterwards(helper: Any, tmp_path: Path) -> None:
    folder = str(helper.checkpoint(tmp_path / "model"))
    whole, cast = (generators.load(folder, dtype=dtype, compile=False) for dtype in (torch.float32, torch.bfloat16))
    pairs = zip(weights(whole.policy), weights(cast.policy), strict=True)
    assert all(torch.equal(value.bfloat16(), rounded) for value, rounded in pairs)
