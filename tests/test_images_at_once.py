"""How many images are sampled at once by the commands that train nothing: by plan and card, as in a run."""

from __future__ import annotations

import gc
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny
from t2i_gcpo import generators
from t2i_gcpo.cli import main
from t2i_gcpo.commands import images_at_once
from t2i_gcpo.commands.images_at_once import Drawing, chosen_batch
from t2i_gcpo.commands.options.planned import columns_of, drawing
from t2i_gcpo.demo.models import Models
from t2i_gcpo.planning import cards, choices
from t2i_gcpo.planning.models import PlannedModel
from t2i_gcpo.planning.plan import decode_phase, held_bytes, load, sample_phase, score_phase
from t2i_gcpo.planning.sources import find
from t2i_gcpo.planning.workload import Workload
from t2i_gcpo.records import Sampling

MUCH, LITTLE = 10**12, 10**6
CPU = torch.device("cpu")
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.checkpoint(tmp_path_factory.mktemp("images") / "model"))


def give(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    """Let the device have so many bytes free."""
    monkeypatch.setattr(images_at_once, "free_memory", lambda device: free)


def batches_of(monkeypatch: pytest.MonkeyPatch, where: Any) -> list[int]:
    """Collect the `max_batch` of every generator that is loaded."""
    seen: list[int] = []
    real = generators.load

    def loaded(*args: Any, **options: Any) -> Any:
        seen.append(options["max_batch"])
        return real(*args, **options)

    monkeypatch.setattr(where, "load", loaded)
    return seen


def plan_of(model: str, drawn: Drawing) -> tuple[PlannedModel, Workload]:
    """Return the model and the workload that are planned for a drawing, put together by hand."""
    source = find(model)
    work = drawing(source, drawn.sampling, images=drawn.images, dtype=torch.float32, compile=False, negative=False,
                   columns=columns_of(source, drawn.texts))  # fmt: skip
    return load(source, torch.float32), work


def test_as_many_as_fit_beside_the_weights(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained, so that weights alone are held; one byte less than a batch needs, and half are sampled."""
    drawn = Drawing([PROMPT], Sampling(guidance=2.0, contrast=False, stats=()), 100)
    planned, work = plan_of(model, drawn)
    loaded = generators.load(model)
    held = 4 * (sum(p.numel() for p in loaded.model.parameters()) - sum(planned.frozen[part] for part in planned.idle))
    assert held_bytes(planned, work) == held

    def needed(batch: int) -> int:
        larger = replace(work, max_batch=batch)
        assert larger.scored_at_once == larger.sampled_at_once == math.ceil(100 / math.ceil(100 / batch))
        peak = max(phase(planned, larger).total for phase in (sample_phase, decode_phase))
        return math.ceil((1 + choices.MARGIN) * peak) + cards.RESERVED

    needs = [needed(batch) for batch in choices.BATCHES]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == 4
    for batch, free, fewer in zip(choices.BATCHES, needs, (*choices.BATCHES[1:], 8), strict=True):
        give(monkeypatch, free)
        assert chosen_batch(model, drawn, device=CPU, dtype="float32", compile=False) == batch
        give(monkeypatch, free - 2)
        assert chosen_batch(model, drawn, device=CPU, dtype="float32", compile=False) == fewer


def test_a_second_checkpoint_on_the_card_is_not_free(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawing([PROMPT], Sampling(guidance=2.0, contrast=False, stats=()), 64)
    planned, work = plan_of(model, drawn)
    peak = max(phase(planned, work).total for phase in (sample_phase, decode_phase))
    exactly = math.ceil((1 + choices.MARGIN) * peak) + cards.RESERVED
    more = held_bytes(planned, work)
    for free, beside, batch in ((exactly, None, 64), (exactly, model, 32), (exactly + more, model, 64)):
        give(monkeypatch, free)
        assert chosen_batch(model, drawn, device=CPU, dtype="float32", compile=False, beside=beside) == batch


def test_images_that_are_scored_again_have_to_fit_too(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawing([PROMPT], Sampling(guidance=2.0, contrast=False, stats=()), 64)
    give(monkeypatch, MUCH)
    monkeypatch.setattr(choices, "score_phase", lambda model, work: replace(score_phase(model, work), parts={"": MUCH}))
    sampled, scored, contrasted = (
        chosen_batch(model, replace(drawn, **more), device=CPU, dtype="float32", compile=False)
        for more in ({}, {"scored": True}, {"negative": True})
    )
    assert (sampled, scored, contrasted) == (64, 8, 8)


def test_adapters_and_the_weights_that_they_are_added_to_are_held(model: str, tmp_path: Path) -> None:
    generator = generators.load(model)
    generator.add_lora(rank=4)
    generator.save(tmp_path / "adapter")
    source, plain = find(str(tmp_path / "adapter")), find(model)
    assert (source.adapter_rank, plain.adapter_rank) == (4, 0)
    sampling, named = Sampling(contrast=False, stats=()), {"images": 64, "compile": False, "negative": False}
    for dtype, twice in ((torch.float32, 1), (torch.bfloat16, 0)):  # bf16 merges none
        planned = load(source, dtype)
        own, base = (drawing(of, sampling, dtype=dtype, columns=8, **named) for of in (source, plain))
        adapters, size = sum(planned.trained(4)), dtype.itemsize
        assert held_bytes(planned, own) - held_bytes(planned, base) == adapters * size
        merged = sum(inputs * outputs for inputs, outputs in planned.adapted)
        assert (
            sample_phase(planned, own).total - sample_phase(planned, base).total == (adapters + twice * merged) * size
        )


def test_a_cpu_a_few_images_and_a_model_without_a_plan_take_64(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawing([PROMPT], Sampling(), 64)
    give(monkeypatch, None)
    assert chosen_batch(model, drawn, device=CPU, dtype="float32", compile=False) == 64
    give(monkeypatch, LITTLE)
    assert chosen_batch(model, drawn, device=CPU, dtype="float32", compile=False) == 8
    assert chosen_batch(model, replace(drawn, images=8), device=CPU, dtype="float32", compile=False) == 64

    def unknown(*args: Any, **named: Any) -> None:
        raise ValueError("there is no plan for models of type 'own'")

    monkeypatch.setattr(images_at_once, "find", unknown)
    assert chosen_batch(model, drawn, device=CPU, dtype="float32", compile=False) == 64


@pytest.mark.slow
def test_the_commands_take_what_is_chosen(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a card with little memory, on one with much, and as asked for; the images are the same."""
    seen = batches_of(monkeypatch, generators)
    common = ["--checkpoint", model, "--device", "cpu", "--compile", "off", "--prompt", PROMPT, "--num", "9"]
    made = {}
    for free, asked, batch in ((None, [], 64), (LITTLE, [], 8), (MUCH, [], 64), (LITTLE, ["--batch", "5"], 5)):
        give(monkeypatch, free)
        out = tmp_path / f"{free}{len(asked)}"
        assert main(["sample", *common, *asked, "--out", str(out)]) == 0
        assert seen.pop() == batch and not seen
        said = capsys.readouterr().out
        assert (f"images at once: {batch}" in said) == (free is not None and not asked)
        made[out.name] = [image["tokens"] for image in json.loads((out / "samples.json").read_text())["images"]]
    assert len({str(tokens) for tokens in made.values()}) == 1
    give(monkeypatch, LITTLE)
    heat = ["heatmap", *common, "--reward", "none", "--reference", model, "--out", str(tmp_path / "heat")]
    assert main(heat) == 0 and seen == [8, 8]
    seen.clear()
    demo = Models({"base": model}, device=CPU)
    assert demo.fresh("base").max_batch == 8


@pytest.mark.slow
def test_an_evaluation_holds_one_checkpoint_at_a_time(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both take the same batch, and the first is let go of before the second is loaded."""
    alive: list[weakref.ref[Any]] = []
    real, batches = generators.load, []

    def loaded(*args: Any, **options: Any) -> Any:
        gc.collect()
        assert not [one for one in alive if one() is not None]
        generator = real(*args, **options)
        alive.append(weakref.ref(generator))
        batches.append(options["max_batch"])
        return generator

    monkeypatch.setattr(generators, "load", loaded)
    give(monkeypatch, LITTLE)
    other = str(tiny.checkpoint(tmp_path / "other", width=64))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([PROMPT] * 9))
    asked = ["eval", "--checkpoint", model, "--against", other, "--prompts", str(prompts), "--out", str(tmp_path / "o")]
    assert main([*asked, "--reward", "helpers.training:redness", "--device", "cpu", "--compile", "off"]) == 0
    assert batches == [8, 8, 8]


@pytest.mark.slow
def test_a_benchmark_goes_on_with_the_batch_that_its_images_have(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = batches_of(monkeypatch, generators)
    file = tmp_path / "geneval.jsonl"
    lines = [{"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": f"a red circle {k}"}
             for k in range(3)]  # fmt: skip
    file.write_text("\n".join(json.dumps({**line, "prompt": PROMPT}) for line in lines))
    asked = ["eval", "--benchmark", "geneval", "--checkpoint", model, "--prompts", str(file), "--device", "cpu",
             "--compile", "off", "--images", "4", "--reward", "helpers.training:redness",
             "--out", str(tmp_path / "out")]  # fmt: skip
    give(monkeypatch, LITTLE)
    assert main(asked) == 0 and seen == [8]
    next((tmp_path / "out" / "images").rglob("*.png")).unlink()
    give(monkeypatch, MUCH)
    assert main(asked) == 0 and seen == [8, 8]
