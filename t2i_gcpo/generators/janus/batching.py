"""Cut a rollout into batches of rows, with the branches that run and the noise that belongs to each row.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, T tokens; N, Q, L, R and V as in `sampler`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2i_gcpo.generators.compilation import batches
from t2i_gcpo.generators.janus.prompts import Encoded, PromptEncoder
from t2i_gcpo.generators.janus.sampler import WIDTH_MULTIPLE, StepSampler
from t2i_gcpo.generators.tokens.branches import Branches, SampledRows
from t2i_gcpo.generators.tokens.sampling import gumbel_noise, row_noise
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
        usual: int | None = None,
    ) -> SampledRows:
        """Sample all B rows of P texts, in batches. usual: rows of most rollouts, if known; see `batches`."""
        rows = [(prompt, image) for prompt in range(len(texts)) for image in range(sampling.group_size)]
        parts = []
        for batch in batches(rows, max_batch, compile, usual):
            indices = [(prompt_indices[prompt], image) for prompt, image in batch.rows]
            noise = row_noise(sampling.seed, indices, self.steps.length, device=self.encoder.device)
            part = self._draw_part(policy, texts, negatives, sampling, batch.rows, noise, compile=batch.compile)
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
        by_step = noise.T.contiguous()
        return self.steps.draw_rows(
            policy, encoded, owner, lambda step: by_step[step], sampling, branches, compile=compile
        )

    def draw_on(
        self,
        policy: nn.Module,
        texts: Sequence[str],
        begun: Tensor,
        keys: Tensor,
        sampling: Sampling,
        *,
        max_batch: int | None,
        compile: bool,
    ) -> Tensor:
        """Draw the tokens [R, T] of R texts on from those that are `begun` [R, T], which end where one is below 0.

        Rows with the same of the `keys` [R] share their noise. A batch has rows that end near one another: what all of
        them have already goes forward at once, each distinct beginning one time.
        """
        begun = begun.masked_fill((begun < 0).cumsum(dim=1) > 0, -1).cpu()
        tokens = torch.empty_like(begun)
        for batch in batches(_lengths(begun).argsort(stable=True).tolist(), max_batch, compile):
            part = torch.tensor(batch.rows)
            drawn = self._draw_on_part(
                policy,
                [texts[row] for row in batch.rows],
                begun[part],
                keys.cpu()[part],
                sampling,
                compile=batch.compile,
            )
            tokens[part[: batch.asked]] = drawn[: batch.asked].cpu()
        self.steps.end(compile=compile)
        return tokens.to(self.encoder.device)

    def _draw_on_part(
        self,
        policy: nn.Module,
        texts: Sequence[str],
        begun: Tensor,
        keys: Tensor,
        sampling: Sampling,
        *,
        compile: bool,
    ) -> Tensor:
        """Draw the rows of a batch on."""
        device = self.encoder.device
        # One less than the shortest has: rows that differ in their last token alone have the same before it.
        shared = max(int(_lengths(begun).min()) - 1, 0)
        beginnings = [(text, *start) for text, start in zip(texts, begun[:, :shared].tolist(), strict=True)]
        owners = {beginning: index for index, beginning in enumerate(dict.fromkeys(beginnings))}
        owner = torch.tensor([owners[beginning] for beginning in beginnings], device=device)
        encoded, branches = self.branches(
            [text for text, *_ in owners], None, sampling, width_multiple=WIDTH_MULTIPLE if compile else 1
        )

        distinct, key = keys.unique(return_inverse=True)
        has, key = begun.to(device), key.to(device)

        def noise(step: int) -> Tensor:
            """Make Gumbel noise [R, V] that lets a row draw what it has already."""
            drawn = gumbel_noise(distinct.tolist(), step, self.steps.head.codebook).to(device)[key]
            token = has[:, step : step + 1].clamp(min=0)
            return drawn.scatter_(1, token, drawn.gather(1, token).where(has[:, step : step + 1] < 0, torch.inf))

        rows = self.steps.draw_rows(
            policy,
            encoded,
            owner,
            noise,
            sampling,
            branches,
            compile=compile,
            begun=torch.tensor([start for _, *start in owners], dtype=torch.long, device=device),
        )
        return torch.cat([has[:, :shared], rows.tokens], dim=1)

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


def _lengths(begun: Tensor) -> Tensor:
    """Count the tokens [R] that rows have already, of [R, T] with -1 behind them."""
    return (begun >= 0).sum(dim=1)
