"""From prompts to the rows of a rollout: which branches run, how rows are cut into batches, which noise belongs to which row.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, T tokens; N, Q, L and R as in `janus_sampler`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2i_gcpo.generators.base import chunks
from t2i_gcpo.generators.drawing import Branches, Drawn
from t2i_gcpo.generators.janus_prompts import Encoded, PromptEncoder
from t2i_gcpo.generators.janus_sampler import WIDTH_MULTIPLE, StepSampler
from t2i_gcpo.records import Sampling
from t2i_gcpo.sampling import row_noise

Row = tuple[int, int]
"""(prompt index, image index)."""


class RowSampler:
    """Cuts a rollout into batches for a `StepSampler`."""

    def __init__(self, encoder: PromptEncoder, steps: StepSampler) -> None:
        self.encoder = encoder
        self.steps = steps

    def draw(
        self,
        policy: nn.Module,
        texts: Sequence[str],
        negatives: Sequence[str] | None,
        sampling: Sampling,
        *,
        first_prompt_index: int,
        max_batch: int | None,
        compiled: bool,
    ) -> Drawn:
        """All B rows of P texts, at most `max_batch` at once; in compiled batches, where they are not mostly empty."""
        rows = [(prompt, image) for prompt in range(len(texts)) for image in range(sampling.group_size)]
        compiled = compiled and worth_compiling(len(rows), max_batch)
        parts = [
            self._draw_part(policy, texts, negatives, sampling, part, first_prompt_index, max_batch, compiled)
            for part in cut(rows, max_batch, compiled)
        ]
        return Drawn(
            torch.cat([part.tokens for part in parts]),
            {name: torch.cat([part.records[name] for part in parts]) for name in parts[0].records},
        )

    def _draw_part(
        self,
        policy: nn.Module,
        texts: Sequence[str],
        negatives: Sequence[str] | None,
        sampling: Sampling,
        rows: Sequence[Row],
        first_prompt_index: int,
        max_batch: int | None,
        compiled: bool,
    ) -> Drawn:
        device = self.encoder.device
        compiled = compiled and worth_compiling(len(rows), max_batch)
        owners = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in rows))}
        encoded, branches = self.branches(
            [texts[p] for p in owners],
            None if negatives is None else [negatives[p] for p in owners],
            sampling,
            width_multiple=WIDTH_MULTIPLE if compiled else 1,
        )
        noise = row_noise(
            sampling.seed, [(first_prompt_index + p, g) for p, g in rows], self.steps.length, device=device
        )
        owner = torch.tensor([owners[prompt] for prompt, _ in rows], device=device)
        if compiled and max_batch is not None:
            owner, noise = filled(owner, max_batch), filled(noise, max_batch)
        drawn = self.steps.draw_rows(policy, encoded, owner, noise, sampling, branches, compiled=compiled)
        return Drawn(drawn.tokens[: len(rows)], {name: value[: len(rows)] for name, value in drawn.records.items()})

    def branches(
        self, texts: list[str], negatives: list[str] | None, sampling: Sampling, *, width_multiple: int
    ) -> tuple[Encoded, Branches]:
        """The folded branches [N Q, L] of Q prompts, and which is which."""
        branches = Branches.of(sampling, negative=negatives is not None)
        with_negative = negatives if branches.contrast is not None else None
        encoded = self.encoder.encode(texts + (with_negative or []), width_multiple=width_multiple)
        index = torch.arange(len(encoded.ids), device=encoded.ids.device)
        prompts = encoded.take(index[: len(texts)])
        others = [self.encoder.null(prompts)] if branches.null is not None else []
        if with_negative is not None:
            others.append(encoded.take(index[len(texts) :]))
        return prompts.cat(*others), branches


def worth_compiling(rows: int, max_batch: int | None) -> bool:
    """Compiled batches always have `max_batch` rows: with fewer than half of them filled, uncompiled ones are faster."""
    return max_batch is None or 2 * rows >= max_batch


def cut(rows: Sequence[Row], max_batch: int | None, compiled: bool) -> list[Sequence[Row]]:
    """Batches of `max_batch` rows and a rest where compiled, as shapes are fixed then; nearly equal batches otherwise."""
    if compiled and max_batch is not None:
        return [rows[start : start + max_batch] for start in range(0, len(rows), max_batch)]
    return list(chunks(rows, max_batch))


def filled(rows: Tensor, count: int) -> Tensor:
    """`rows` [R, ...] followed by copies of the last one: [count, ...]."""
    return torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])
