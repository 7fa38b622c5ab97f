"""Choose how many images are sampled at once by the commands that train nothing, as a run does: by plan and card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from t2i_gcpo import generators
from t2i_gcpo.commands.options.build import COMPILE
from t2i_gcpo.commands.options.config import ROWS
from t2i_gcpo.commands.options.planned import USUAL_COLUMNS, columns_of, drawing
from t2i_gcpo.generators.compilation import CompileChoice
from t2i_gcpo.planning.cards import GB
from t2i_gcpo.planning.choices import BATCHES, images_at_once
from t2i_gcpo.planning.models import PlannedModel
from t2i_gcpo.planning.plan import held_bytes, load
from t2i_gcpo.planning.sources import find
from t2i_gcpo.planning.workload import Workload
from t2i_gcpo.records import Prompt, Sampling
from t2i_gcpo.utils.device import free_memory, pick_device


@dataclass(frozen=True)
class Drawing:
    """Says what is sampled, beside the checkpoint."""

    texts: Sequence[str]
    """The prompts, and the texts that they are contrasted with; none where they are not known yet."""
    sampling: Sampling
    images: int
    """Images that are asked for at once."""
    negative: bool = False
    """Whether they are contrasted with texts of their own."""
    scored: bool = False
    """Whether their tokens are scored again."""


def settle_batch(
    args: argparse.Namespace,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *others: str,
    images: int = ROWS,
    negative: str | None = None,
    scored: bool = False,
    beside: str | None = None,
) -> argparse.Namespace:
    """Return the options with `--batch` chosen where it is left to the device, and print what was chosen by a plan.

    others: checkpoints that are loaded after the first, with the same batch; beside: one that is on the device with
    it. images: as many are asked for at once. scored: their tokens are scored again, as they are in any case with a
    negative text or another checkpoint beside it. Call it when the scorers are loaded: what they hold is not free.
    """
    if args.batch:
        return args
    texts = [*(prompt.text for prompt in prompts), *([] if negative is None else [negative])]
    drawn = Drawing(texts, sampling, images, negative is not None, scored or beside is not None)
    device, batch = pick_device(args.device), ROWS
    for name in (args.checkpoint, *others):
        chosen = chosen_batch(
            name, drawn, device=device, dtype=args.dtype, revision=args.revision, compile=COMPILE[args.compile],
            beside=beside,
        )  # fmt: skip
        batch = min(batch, chosen)
    return argparse.Namespace(**{**vars(args), "batch": batch})


def chosen_batch(
    checkpoint: str,
    drawn: Drawing,
    *,
    device: torch.device,
    dtype: str,
    revision: str | None = None,
    compile: CompileChoice,
    beside: str | None = None,
) -> int:
    """Return how many images to sample at once: as many as fit by the plan, or `ROWS` where there is nothing to choose.

    That is on a CPU, for a few images, and for a model that there is no plan for.
    """
    free = free_memory(device)
    if free is None or drawn.images <= BATCHES[-1]:
        return ROWS
    try:
        model, work = _planned(checkpoint, drawn, dtype, revision, compile)
        if beside is not None:
            free -= held_bytes(*_planned(beside, drawn, dtype, revision, compile))
        batch = images_at_once(model, work, free, scored=drawn.scored or drawn.negative)
    except ValueError:  # there is no plan; what is wrong with a checkpoint is said when it is loaded
        return ROWS
    print(f"images at once: {batch}, as {max(free, 0) / GB:.1f} GB are free (--batch)")
    return batch


def _planned(
    checkpoint: str, drawn: Drawing, dtype: str, revision: str | None, compile: CompileChoice
) -> tuple[PlannedModel, Workload]:
    source = find(checkpoint, revision=revision, hub=True)
    work = drawing(
        source,
        drawn.sampling,
        images=drawn.images,
        dtype=generators.as_dtype(dtype),
        compile=compile,
        negative=drawn.negative,
        columns=columns_of(source, drawn.texts) if drawn.texts else USUAL_COLUMNS,
    )
    return load(source, work.options.dtype), work
