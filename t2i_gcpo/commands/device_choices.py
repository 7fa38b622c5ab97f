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

#: The options that are settled here -> the value that leaves them to the device.
LEFT: dict[str, Any] = {"gradient_checkpointing": "auto", "head_chunk": 0, "max_batch": 0}
CHECKPOINTING = "gradient checkpointing"


def settle(
    config: TrainConfig, *, before: TrainConfig | None = None, processes: Processes = ALONE
) -> tuple[TrainConfig, str]:
    """Return the options with those settled that were left to the device, and what there is to say about it, or "".

    before: the options of the run that goes on, whose choices stay. On a CPU gradient checkpointing is off, the chunk
    of logits that of the generator, and 64 images are sampled at once. The processes of a run choose alike, by the one
    with least memory. Call it when the scorers are loaded: what they hold is not free.
    """
    settled, texts = (config, []) if before is None else _as_before(config, before)
    left = left_open(settled)
    seen = processes.gather(free_memory(processes.device(config.generator.device))) if left else []
    free = [bytes_ for bytes_ in seen if bytes_ is not None]
    if free:
        settled, more = _by_plan(settled, min(free), left, processes.count)
        texts += more
    elif "gradient_checkpointing" in left:
        settled = _with(settled, gradient_checkpointing=False)
    return settled, "\n".join(texts)


def left_open(config: TrainConfig) -> list[str]:
    """Return the options that are left to the device."""
    return [name for name, value in LEFT.items() if vars(config.generator)[name] == value]


def _as_before(config: TrainConfig, before: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Take over what the run has, where the options leave it open."""
    open_now, open_then = left_open(config), left_open(before)
    kept = {name: vars(before.generator)[name] for name in open_now if name not in open_then}
    texts = [f"{name.replace('_', ' ')}: {_word(value)}, as the run has it" for name, value in kept.items()]
    return _with(config, **kept), texts


def _by_plan(config: TrainConfig, free: int, left: list[str], gpus: int) -> tuple[TrainConfig, list[str]]:
    """Choose what is left, and say why."""
    try:
        chosen = planned(config, free, left, gpus=gpus)
    except ValueError as error:
        if "gradient_checkpointing" not in left:
            return config, []
        text = (
            f"{CHECKPOINTING}: on, as there is no plan to choose by ({error}); --generator.gradient-checkpointing false"
        )
        return _with(config, gradient_checkpointing=True), [f"{text} switches it off"]
    choices: dict[str, tuple[Any, str]] = {
        "gradient_checkpointing": (chosen.checkpointing, sentence(chosen)),
        "head_chunk": (chosen.head_chunk, f"head chunk: {chosen.head_chunk}"),
        "max_batch": (chosen.max_batch, f"max batch: {chosen.max_batch}"),
    }
    names = left if chosen.chunked else [name for name in left if name != "head_chunk"]
    return _with(config, **{name: choices[name][0] for name in names}), [choices[name][1] for name in names]


def planned(config: TrainConfig, free: int, left: list[str], *, gpus: int) -> Choice:
    """Choose by the plan for so many free bytes. ValueError: there is none for the model."""
    generator = config.generator
    source = find(
        generator.checkpoint, layers=generator.layers, width=generator.width, revision=generator.revision, hub=True
    )
    work = workload(config, source, columns=prompt_columns(source, config, 0)[0], gpus=gpus)
    return choose(load(source, work.options.dtype), work, free, **{name: name in left for name in LEFT})


def sentence(chosen: Choice) -> str:
    """Say whether activations are checkpointed, and why."""
    without = "it scores all passes in one batch" if chosen.work.options.fold_passes else ""
    without = without or f"without it the update holds {chosen.whole / GB:.1f} GB by the plan"
    return f"{CHECKPOINTING}: {_word(chosen.checkpointing)}; {without}, and {chosen.free / GB:.1f} GB are free"


def _word(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _with(config: TrainConfig, **options: Any) -> TrainConfig:
    return replace(config, generator=replace(config.generator, **options))
