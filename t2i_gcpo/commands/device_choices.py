"""Settle, before a run loads its generator, what its options leave to the device.

The run's config.yaml has what was chosen, so that a run that is resumed goes on with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.commands.options.planned import prompt_columns, workload
from t2i_gcpo.planning.cards import GB
from t2i_gcpo.planning.choices import Choice, choose
from t2i_gcpo.planning.plan import load
from t2i_gcpo.planning.sources import find
from t2i_gcpo.utils.device import free_memory
from t2i_gcpo.utils.processes import ALONE, Processes

NAME = "gradient checkpointing"


def settle(
    config: TrainConfig, *, before: TrainConfig | None = None, processes: Processes = ALONE
) -> tuple[TrainConfig, str]:
    """Return the options with gradient checkpointing on or off, and a sentence where the plan or a run chose it, or "".

    before: the options of the run that goes on, whose choice stays. On a CPU "auto" is off. The processes of a run
    choose alike, by the one with least memory. Call it when the scorers are loaded: what they hold is not free.
    """
    if config.generator.gradient_checkpointing != "auto":
        return config, ""
    if before is not None and before.generator.gradient_checkpointing != "auto":
        on = before.generator.gradient_checkpointing
        return _with(config, gradient_checkpointing=on), f"{NAME}: {_word(on)}, as the run has it"
    seen = processes.gather(free_memory(processes.device(config.generator.device)))
    free = [bytes_ for bytes_ in seen if bytes_ is not None]
    if not free:
        return _with(config, gradient_checkpointing=False), ""
    try:
        chosen = planned(config, min(free), gpus=processes.count)
    except ValueError as error:
        text = f"{NAME}: on, as there is no plan to choose by ({error}); --generator.gradient-checkpointing false"
        return _with(config, gradient_checkpointing=True), f"{text} switches it off"
    return _with(config, gradient_checkpointing=chosen.checkpointing), sentence(chosen)


def planned(config: TrainConfig, free: int, *, gpus: int) -> Choice:
    """Choose by the plan for so many free bytes. ValueError: there is none for the model."""
    generator = config.generator
    source = find(
        generator.checkpoint, layers=generator.layers, width=generator.width, revision=generator.revision, hub=True
    )
    work = workload(config, source, columns=prompt_columns(source, config, 0)[0], gpus=gpus)
    return choose(load(source, work.options.dtype), work, free)


def sentence(chosen: Choice) -> str:
    """Say what was chosen and why."""
    without = "it scores all passes in one batch" if chosen.work.options.fold_passes else ""
    without = without or f"without it the update holds {chosen.whole / GB:.1f} GB by the plan"
    return f"{NAME}: {_word(chosen.checkpointing)}; {without}, and {chosen.free / GB:.1f} GB are free"


def _word(on: bool | str) -> str:
    return "on" if on else "off"


def _with(config: TrainConfig, **options: Any) -> TrainConfig:
    return replace(config, generator=replace(config.generator, **options))
