"""What a run leaves to its card: chosen by the plan and the free memory, said, recorded, and kept when it goes on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny, tiny_amused
from t2i_gcpo.cli import main
from t2i_gcpo.commands import device_choices
from t2i_gcpo.commands import plan as plan_command
from t2i_gcpo.commands.device_choices import settle
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.arguments import dump, load, parse
from t2i_gcpo.commands.options.config import GeneratorConfig, TrainConfig
from t2i_gcpo.commands.options.planned import workload
from t2i_gcpo.generators.compilation import batches
from t2i_gcpo.generators.tokens.logprobs import DEFAULT_CHUNK
from t2i_gcpo.planning import cards, choices
from t2i_gcpo.planning import plan as planning
from t2i_gcpo.planning.choices import choose, enough, with_options
from t2i_gcpo.planning.memory import Phase
from t2i_gcpo.planning.plan import decode_phase, plan, sample_phase, score_phase, update_phase
from t2i_gcpo.planning.sources import find
from t2i_gcpo.planning.workload import Workload
from t2i_gcpo.utils.device import free_memory
from t2i_gcpo.utils.processes import ALONE

MUCH, LITTLE = 10**12, 10**6
OPTION = "--generator.gradient-checkpointing"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("choices")
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    return str(tiny.checkpoint(folder / "model"))


def options(model: str, *more: str) -> TrainConfig:
    prompts = f"--prompts.train={Path(model).parent / 'prompts.txt'}"
    return parse(["--generator.checkpoint", model, "--generator.device", "cpu", prompts, *more]).settings


def give(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    """Let a device have so many bytes free."""
    monkeypatch.setattr(device_choices, "free_memory", lambda device: free)


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_the_margin_by_hand() -> None:
    """100 GB of a plan need 115 and the 2 that a run cannot use."""
    assert (choices.MARGIN, cards.RESERVED) == (0.15, 2 * cards.GB)
    assert enough(100 * cards.GB, 117 * cards.GB) and not enough(100 * cards.GB, 117 * cards.GB - 1000)


def test_activations_are_kept_where_the_update_fits(model: str) -> None:
    """One byte below what the update needs with the margin, they are checkpointed; the plan has the same number."""
    config = options(model)
    planned, work = planning.load(find(model), torch.float32), workload(config, find(model), columns=8)
    kept, again = (update_phase(planned, with_options(work, gradient_checkpointing=on)).total for on in (False, True))
    assert again < kept
    assert kept == next(phase.total for phase in plan(planned, work).phases if phase.name == "update")
    limit = math.ceil((1 + choices.MARGIN) * kept) + cards.RESERVED
    alone = {"head_chunk": False, "max_batch": False}
    assert not choose(planned, work, limit, **alone).checkpointing
    fewer = choose(planned, work, limit - 2, **alone)
    assert fewer.checkpointing and fewer.work == with_options(work, gradient_checkpointing=True) and fewer.whole == kept


@pytest.mark.slow
def test_the_largest_chunk_of_logits_that_fits_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,024 tokens of 4,096 codes; the scoring of the reference has to fit as well as the update."""
    folder = str(tiny.checkpoint(tmp_path / "model", grid=8, codebook=4096))
    work = workload(options(folder), find(folder), columns=8)
    planned = planning.load(find(folder), torch.float32)

    def needed(chunk: int) -> int:
        larger = with_options(work, head_chunk=chunk)
        peak = max(update_phase(planned, larger).total, score_phase(planned, larger).total)
        return math.ceil((1 + choices.MARGIN) * peak) + cards.RESERVED

    needs = [needed(chunk) for chunk in choices.CHUNKS]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == 4
    for chunk, free in zip(choices.CHUNKS, needs, strict=True):
        assert choose(planned, work, free + 2, gradient_checkpointing=False).head_chunk == chunk
    assert choose(planned, work, 0).head_chunk == DEFAULT_CHUNK
    score = next(phase.total for phase in plan(planned, work).phases if phase.name == "score")
    assert score_phase(planned, work).total == score
    large = {1024: MUCH, 512: MUCH, 256: 0}
    monkeypatch.setattr(choices, "score_phase", lambda model, load: Phase("", {"": large[load.options.head_chunk]}))
    assert choose(planned, work, MUCH).head_chunk == 256


def test_as_many_images_are_sampled_at_once_as_fit(model: str) -> None:
    """Sampling and decoding have to fit, of a step's images and of an evaluation's, which are more here."""
    config = options(model, "--prompts-per-step", "2", "--algorithm.group-size", "8")
    planned, work = planning.load(find(model), torch.float32), workload(config, find(model), columns=8)
    assert (work.rows, work.evaluated_at_once) == (16, 64)

    def needed(batch: int, of: Workload = work) -> int:
        larger = replace(of, max_batch=batch)
        peak = max(phase(planned, larger).total for phase in (sample_phase, decode_phase))
        return math.ceil((1 + choices.MARGIN) * peak) + cards.RESERVED

    needs = [needed(batch) for batch in choices.BATCHES]
    assert needs == sorted(needs, reverse=True)
    assert needed(64) > needed(64, replace(work, evaluated=0)) == needed(16, replace(work, evaluated=0))
    for batch, free in zip(choices.BATCHES, needs, strict=True):
        chosen = choose(planned, work, free + 2)
        assert chosen.max_batch == chosen.work.max_batch == batch
    assert choose(planned, work, 0).max_batch == 8
    assert choose(planned, replace(work, max_batch=7), MUCH, max_batch=False).max_batch == 7
    phases = {phase.name: phase.total for phase in plan(planned, work).phases}
    assert (phases["sample"], phases["decode"]) == (
        sample_phase(planned, work).total,
        decode_phase(planned, work).total,
    )


def test_the_images_of_an_evaluation_by_hand(model: str) -> None:
    """96 validation prompts every 50 steps, all test prompts before and after."""

    def at_once(*more: str, gpus: int = 1) -> int:
        return workload(options(model, *more), find(model), columns=8, gpus=gpus).evaluated_at_once

    without = ["--evaluate.before", "false", "--evaluate.after", "false", "--evaluate.limit", "24"]
    assert (at_once(), at_once(*without), at_once(*without, gpus=5)) == (64, 24, 5)
    assert at_once(*without, "--evaluate.every", "0") == 0
    assert at_once("--evaluate.every", "0", "--evaluate.test-limit", "40") == 40


def test_a_step_is_cut_into_equal_parts(model: str) -> None:
    """96 images of at most 64 are sampled as 48 and 48, as the generator does; fewer than 64 are compiled as well."""

    def work(images: int) -> Workload:
        config = options(model, "--prompts-per-step", str(images // 2), "--algorithm.group-size", "2")
        return workload(config, find(model), columns=8)

    for images, rows in ((96, 48), (64, 64), (16, 16)):
        (first, *_) = batches(range(images), 64, True, images)
        assert work(images).sampled_at_once == rows == len(first.rows)
        assert work(images).compiled and first.compile


def test_the_chosen_chunk_reaches_the_scorer(model: str, tmp_path: Path) -> None:
    def chunk(*more: str) -> int:
        return build.generator(options(model, "--generator.compile", "off", *more).generator, seed=0).scorer.head_chunk

    assert chunk() == DEFAULT_CHUNK and chunk("--generator.head-chunk", "512") == 512
    masked = options(str(tiny_amused.checkpoint(tmp_path / "masked")), "--generator.head-chunk", "512")
    with pytest.raises(ValueError, match="head_chunk: for generators that draw their tokens one after the other"):
        build.generator(masked.generator, seed=0)


def test_one_batch_of_all_passes_keeps_its_activations(tmp_path: Path) -> None:
    """The masked generator refuses both; so the choice is off even where nothing fits."""
    folder = str(tiny_amused.checkpoint(tmp_path / "masked"))
    config = options(folder, "--generator.fold-passes", "true")
    work = workload(config, find(folder), columns=0)
    assert not choose(planning.load(find(folder), torch.float32), work, 0).checkpointing


def test_free_memory_is_asked_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert free_memory(torch.device("cuda:0")) == 7
    assert free_memory(torch.device("cpu")) is None is free_memory(torch.device("mps"))


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_is_settled_by_what_its_device_has_free(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = options(model)
    assert config.generator.gradient_checkpointing == "auto"
    for free, on, chunk, batch, words in (
        (MUCH, False, 1024, 64, "off; without it the update holds"),
        (LITTLE, True, 128, 8, "0.0 GB are free"),
    ):
        give(monkeypatch, free)
        settled, text = settle(config)
        chosen = {"gradient_checkpointing": on, "head_chunk": chunk, "max_batch": batch}
        assert settled == replace(config, generator=replace(config.generator, **chosen))
        first, *others = text.splitlines()
        assert first.startswith(f"gradient checkpointing: {'on' if on else 'off'}") and words in first
        assert others == [f"head chunk: {chunk}", f"max batch: {batch}"]
    give(monkeypatch, None)
    assert settle(config) == (replace(config, generator=replace(config.generator, gradient_checkpointing=False)), "")


def test_what_is_asked_for_stays(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, free in (("true", MUCH), ("false", LITTLE)):
        give(monkeypatch, free)
        config = options(model, OPTION, value, "--generator.head-chunk", "200", "--generator.max-batch", "24")
        assert settle(config) == (config, "")
        part = options(model, OPTION, value, "--generator.max-batch", "24")
        settled, text = settle(part)
        chunk = 1024 if free == MUCH else 128
        assert settled == replace(part, generator=replace(part.generator, head_chunk=chunk))
        assert text == f"head chunk: {chunk}"


def test_a_run_that_goes_on_keeps_its_choice(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, MUCH)
    before = options(model, OPTION, "true", "--generator.head-chunk", "256", "--generator.max-batch", "16")
    settled, text = settle(options(model), before=before)
    assert settled == before
    assert text.splitlines() == [
        "gradient checkpointing: on, as the run has it",
        "head chunk: 256, as the run has it",
        "max batch: 16, as the run has it",
    ]


def test_without_a_plan_activations_are_checkpointed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **named: Any) -> None:
        raise ValueError("there is no plan for models of type 'own'")

    monkeypatch.setattr(device_choices, "find", unknown)
    give(monkeypatch, MUCH)
    settled, text = settle(options(model))
    assert settled.generator.gradient_checkpointing is True and settled.generator.head_chunk == 0
    assert (settled.generator.max_batch, settled.generator.rows_at_once) == (0, 64)
    assert "on, as there is no plan to choose by (there is no plan for models of type 'own')" in text


def test_processes_choose_alike_by_the_one_with_least(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(type(ALONE)):  # type: ignore[misc]
        count = 2

        def gather(self, item: Any) -> list[Any]:
            return [item, LITTLE]

    give(monkeypatch, MUCH)
    assert settle(options(model), processes=Two())[0].generator.gradient_checkpointing is True


def test_the_option_is_auto_or_a_truth_value(model: str, tmp_path: Path) -> None:
    for word, value in (("auto", "auto"), ("true", True), ("False", False), ("off", False)):
        config = options(model, OPTION, word)
        assert config.generator.gradient_checkpointing == value
        file = tmp_path / f"{word}.yaml"
        file.write_text(dump(config), encoding="utf-8")
        assert load(file) == config
    with pytest.raises(ValueError, match="gradient_checkpointing is 3; allowed: auto, or it must be True or False"):
        GeneratorConfig(gradient_checkpointing=3)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        parse([OPTION, "sometimes"])


@pytest.mark.slow
def test_the_choice_is_printed_recorded_and_kept(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that began on a full card goes on with checkpointing on an empty one, unless it is told otherwise."""
    prompts, folder = Path(model).parent / "prompts.txt", tmp_path / "run"
    files = [f"--prompts.{part}={prompts}" for part in ("train", "validation", "test")]
    small = ["--prompts-per-step=1", "--algorithm.group-size=2", "--generator.device=cpu", "--prompts.balanced=false"]
    quiet = ["--evaluate.before=false", "--evaluate.after=false", "--evaluate.every=0", "--pictures.every=0"]
    reward = ["--reward.name=helpers.training:redness", "--logging.progress=false", f"--output-dir={folder}"]
    argv = ["train", f"--generator.checkpoint={model}", *files, *small, *quiet, *reward]

    def recorded() -> Any:
        return load(folder / "config.yaml").generator.gradient_checkpointing

    give(monkeypatch, LITTLE)
    assert main([*argv, "--steps=1"]) == 0
    assert "gradient checkpointing: on; without it the update holds" in capsys.readouterr().out and recorded() is True
    give(monkeypatch, MUCH)
    assert main(["train", f"--output-dir={folder}", "--resume", "--steps=2", OPTION, "auto"]) == 0
    assert "gradient checkpointing: on, as the run has it" in capsys.readouterr().out and recorded() is True
    told = [OPTION, "false", "--generator.head-chunk", "64"]
    assert main(["train", f"--output-dir={folder}", "--resume", "--steps=3", *told]) == 0
    assert "gradient checkpointing" not in capsys.readouterr().out and recorded() is False
    assert load(folder / "config.yaml").generator.head_chunk == 64


# -- the plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_plan_shows_what_each_card_would_get(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(cards.CARDS["A100"], name="small", memory=cards.RESERVED + 10**6)
    monkeypatch.setitem(cards.CARDS, "small", small)
    monkeypatch.setattr(plan_command, "advise", lambda *args: [])  # nothing fits there, and it takes a minute to say so
    file = tmp_path / "plan.json"
    asked = ["plan", "--generator.checkpoint", model, "--prompt-columns", "8", "--card", "H100", "--card", "small"]
    assert main([*asked, "--out", str(file)]) == 0
    content = json.loads(file.read_text())
    names = ("gradient_checkpointing", "head_chunk", "max_batch")
    chosen = {card: tuple(values[name] for name in names) for card, values in content["cards"].items()}
    assert chosen == {"H100": (False, 1024, 64), "small": (True, 128, 8)}
    assert content["memory"] == content["cards"]["H100"]["phases"]
    updates = {name: card["phases"]["update"]["total"] for name, card in content["cards"].items()}
    assert updates["small"] < updates["H100"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "gradient checkpointing off, head chunk 1024, max batch 64 (H100)" in shown
    assert "gradient checkpointing on, head chunk 128, max batch 8 (small)" in shown
    assert main([*asked, "--out", str(file), OPTION, "true"]) == 0
    content = json.loads(file.read_text())
    assert all(card["gradient_checkpointing"] for card in content["cards"].values())
    assert main([*asked, "--out", str(file), "--generator.head-chunk", "256"]) == 0
    content = json.loads(file.read_text())
    assert [card["head_chunk"] for card in content["cards"].values()] == [256, 256]
    assert [card["gradient_checkpointing"] for card in content["cards"].values()] == [False, True]
