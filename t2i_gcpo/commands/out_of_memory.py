"""Turn a device that runs out of memory in a training into a message that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rewards.models.device import short
from t2i_gcpo.commands.options.config import TrainConfig
from t2i_gcpo.commands.options.planned import prompt_columns, workload
from t2i_gcpo.planning.memory import Phase
from t2i_gcpo.planning.plan import load, plan
from t2i_gcpo.planning.sources import find
from t2i_gcpo.training.saving import resume_command
from t2i_gcpo.training.trainer import Trainer
from t2i_gcpo.utils.device import is_out_of_memory

GB = 10**9


@contextmanager
def advised(config: TrainConfig, trainer: Trainer) -> Iterator[None]:
    """Inside, an out-of-memory error becomes a ValueError; the trainer has saved what was trained by then."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(message(config, trainer, short(error))) from error


@contextmanager
def while_loading(config: TrainConfig, gpus: int) -> Iterator[None]:
    """Inside, an out-of-memory error becomes a ValueError that says how to load less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        options = ["a smaller model", "a device with more memory (--generator.device)"]
        if config.generator.dtype != "bfloat16":
            options.insert(0, "half of the weights' bytes (--generator.dtype bfloat16)")
        peak = _peak(config, gpus)
        planned = "" if peak is None else f" By the plan the phase {peak.name} will hold {peak.total / GB:.1f} GB."
        raise ValueError(
            f"the device is out of memory while the run is loaded ({short(error)}).{planned} Take "
            f"{', '.join(options)}; t2i-gcpo plan says which cards hold a run. Scorers and other programs on the same "
            "device count, too. Nothing was changed"
        ) from error


def message(config: TrainConfig, trainer: Trainer, reason: str) -> str:
    """Say what held the memory by the plan, what to lower, and how to go on."""
    gpus = trainer.processes.count
    options = ", ".join(_lower(config, gpus)) or "train a smaller model, or adapters (--generator.lora-rank 32)"
    peak = _peak(config, gpus)
    planned = "" if peak is None else f" By the plan most is held in the phase {peak.name}, {peak.total / GB:.1f} GB."
    saved = (
        f"Step {trainer.step_number} is saved; go on with: {resume_command(config.output_dir)} and these options"
        if trainer.step_number
        else "No step was done yet; start anew with these options"
    )
    return (
        f"the device is out of memory ({reason}).{planned} Lower {options}; t2i-gcpo plan --config "
        f"{config.output_dir}/config.yaml{f' --gpus {gpus}' if gpus > 1 else ''} says which is enough. {saved}"
    )


def _lower(config: TrainConfig, gpus: int) -> list[str]:
    """Return the options that can be lowered and change neither images nor updates, as train takes them."""
    generator, options = config.generator, []
    if config.micro_batch > 1:
        options.append(f"--micro-batch (now {config.micro_batch})")
    if gpus > 1 and config.reduce_gradients == "update":
        options.append("the gradients that each process adds up (--reduce-gradients micro_batch)")
    if generator.rows_at_once > 1:
        options.append(f"--generator.max-batch (now {generator.rows_at_once})")
    if not generator.gradient_checkpointing and not generator.fold_passes:
        options.append("the activations that are kept (--generator.gradient-checkpointing true)")
    return options


def _peak(config: TrainConfig, gpus: int = 1) -> Phase | None:
    """Return the phase that holds most by the plan on each of `gpus` cards; None where there is no plan."""
    generator = config.generator
    try:
        source = find(generator.checkpoint, layers=generator.layers, width=generator.width)
        work = workload(config, source, columns=prompt_columns(source, config, 0)[0], gpus=gpus)
        return plan(load(source, work.options.dtype), work).peak
    except ValueError:
        return None
