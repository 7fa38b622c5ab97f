"""Cut a rollout into batches of rows, with the branches that run and the noise that belongs to each row.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, T tokens; N, Q, L and R as in `sampler`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2i_gcpo.generators.compilation import batches
from t2i_gcpo.generators.janus.prompts import Encoded, PromptEncoder
from t2i_gcpo.generators.janus.sampler import WIDTH_MULTIPLE, StepSampler
from t2i_gcpo.generators.tokens.branches import Branches, SampledRows
from t2i_gcpo.generators.tokens.sampling import row_noise
from t2i_gcpo.records import Sampling

Row = tuple[int, int]
"""(prompt index, image index)."""


class RowSampler:
    """Cut a rollout into batches for a `StepSampler`."""

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
        prompt_indices: Sequence[int],
        max_batch: int | None,
        compile: bool,
        noise: Tensor | None = None,
        usual: int | None = None,
    ) -> SampledRows:
        """Sample all B rows of P texts, in batches.

        noise: [B, T] instead of that of the sampling's seed. usual: rows of most rollouts, if known; see `batches`.
        """
        rows = [(prompt, image) for prompt in range(len(texts)) for image in range(sampling.group_size)]
        parts = []
        for batch in batches(rows, max_batch, compile, usual):
            indices = [(prompt_indices[prompt], image) for prompt, image in batch.rows]
            if noise is None:
                drawn = row_noise(sampling.seed, indices, self.steps.length, device=self.encoder.device)
            else:
                drawn = noise[[prompt * sampling.group_size + image for prompt, image in batch.rows]]
            part = self._draw_part(policy, texts, negatives, sampling, batch.rows, drawn, compile=batch.compile)
            parts.append(part.first(batch.asked))
        self.steps.end(compile=compile)
        return SampledRows.cat(parts)

    def _draw_part(
        self,
        policy: nn.Module,
        texts: Sequence[str],
        negatives: Sequence[str] | None,
        sampling: Sampling,
        rows: Sequence[Row],
        noise: Tensor,
        *,
        compile: bool,
    ) -> SampledRows:
        device = self.encoder.device
        owners = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in rows))}
        encoded, branches = self.branches(
            [texts[p] for p in owners],
            None if negatives is None else [negatives[p] for p in owners],
            sampling,
            width_multiple=WIDTH_MULTIPLE if compile else 1,
        )
        owner = torch.tensor([owners[prompt] for prompt, _ in rows], device=device)
        return self.steps.draw_rows(policy, encoded, owner, noise, sampling, branches, compile=compile)

    def branches(
        self, texts: list[str], negatives: list[str] | None, sampling: Sampling, *, width_multiple: int
    ) -> tuple[Encoded, Branches]:
        """Encode the folded branches [N Q, L] of Q prompts, and say which is which."""
        branches = Branches.of(sampling, negative=negatives is not None)
        with_negative = negatives if branches.contrast is not None else None
        encoded = self.encoder.encode(texts + (with_negative or []), width_multiple=width_multiple)
        index = torch.arange(len(encoded.ids), device=encoded.ids.device)
        prompts = encoded.take(index[: len(texts)])
        others = [self.encoder.null(prompts)] if branches.null is not None else []
        if with_negative is not None:
            others.append(encoded.take(index[len(texts) :]))
        return prompts.cat(*others), branches
