"""The precision of image decoders."""

from __future__ import annotations

import pytest
import torch

from helpers import tiny_amused
from helpers.messages import names
from t2i_gcpo import generators
from t2i_gcpo.generators.decoding import decoding
from t2i_gcpo.generators.janus.adapter import Janus
from t2i_gcpo.pretrain.verdicts import agreement, draw_cases, through_vq

CPU = torch.device("cpu")


def autocasts(name: str, device: torch.device = CPU, weights: torch.dtype = torch.float32) -> bool:
    with decoding(name, device, weights):  # type: ignore[arg-type]
        return torch.is_autocast_enabled(device.type)


def test_auto_is_bfloat16_where_the_cpu_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, expected in [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_bf16": False}, False)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert autocasts("auto") is expected
        assert autocasts("bfloat16") and not autocasts("float32")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert not autocasts("auto", weights=torch.bfloat16), "such weights run in their own precision anyway"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not autocasts("auto"), "a torch that cannot tell"


def test_unknown_precisions_are_refused() -> None:
    for build in (
        lambda: generators.load("janus-mini", decode_dtype="half"),
        lambda: tiny_amused.generator(decode_dtype="half"),
    ):
        with pytest.raises(ValueError, match=names("decode_dtype", "'half'", "auto", "float32", "bfloat16")):
            build()


def test_bfloat16_moves_pixels_a_little_and_no_verdict() -> None:
    full, half = (Janus.load("janus-mini", decode_dtype=name) for name in ("float32", "bfloat16"))
    tokens = torch.randint(full.codebook_size, (6, 144), generator=torch.Generator().manual_seed(0))
    moved = (half.decode(tokens).int() - full.decode(tokens).int()).abs()
    assert 0 < moved.max() <= 24 and moved.float().mean() < 1, (
        "codes that no scene has, side by side: the hardest pictures"
    )
    scenes = draw_cases(96, seed=3)
    rates = agreement(scenes, through_vq(half))
    assert rates == agreement(scenes, through_vq(full))
    assert all(rate["all"] == 1.0 for rate in rates.values())
