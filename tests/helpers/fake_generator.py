"""A generator without a model: tokens are the noise itself, and an image shows them as grey cells.

Fast, deterministic, batch-independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from t2i_gcpo.generators.base import Negative, as_indices, as_prompts, seeded
from t2i_gcpo.generators.tokens.sampling import row_noise
from t2i_gcpo.records import Prompt, Rollout, Sampling


class FakeGenerator:
    """4 x 4 tokens of 32 codes, 8 x 8 pixels; other grids have 2 x 2 pixels a token too.

    `shift` is added to each token: another checkpoint under the same noise.
    """

    kind = "fake"
    codebook_size = 32

    def __init__(self, shift: int = 0, grid: tuple[int, int] = (4, 4)) -> None:
        self.shift, self.grid = shift, grid
        self.batches: list[int] = []
        """Rows of each call to `sample`."""
        self.samplings: list[Sampling] = []

    def check_prompts(self, prompts: Sequence[Prompt | str]) -> None:
        """Refuse prompts with the word "zebra", as a tokenizer refuses words that it does not know."""
        for text in (prompt if isinstance(prompt, str) else prompt.text for prompt in prompts):
            if "zebra" in text.split():
                raise ValueError(f"the tokenizer does not know 'zebra' (prompt {text!r})")

    def sample(
        self,
        prompts: Sequence[Prompt | str],
        sampling: Sampling,
        *,
        rng: torch.Generator | None = None,
        prompt_indices: Sequence[int] | None = None,
        negative_prompts: Negative = None,
    ) -> Rollout:
        prompts, sampling = as_prompts(prompts), seeded(sampling, rng)
        rows = [(p, g) for p in as_indices(prompt_indices, len(prompts)) for g in range(sampling.group_size)]
        length = self.grid[0] * self.grid[1]
        noise = row_noise(sampling.seed, rows, length)
        self.batches.append(len(rows))
        self.samplings.append(sampling)
        tokens = ((noise * (self.codebook_size - 8)).long() + self.shift).clamp(max=self.codebook_size - 1)
        return Rollout(
            tokens=tokens,
            logprob_positive=-1 - noise,
            logprob_negative=-1 - 2 * noise.flip(-1) if sampling.contrast else None,
            logprob_behaviour=-1 - noise,
            commit_step=repeat(torch.arange(length), "t -> b t", b=len(rows)).clone(),
            prompts=prompts,
            grid=self.grid,
            sampling=sampling,
            stats=dict.fromkeys(sampling.stats, 3 * noise),
        )

    def decode(self, tokens: Tensor) -> Tensor:
        cells = tokens.view(-1, 1, *self.grid).mul(8).to(torch.uint8)
        return repeat(cells, "b 1 h w -> b 3 (h 2) (w 2)").contiguous()


def token_score(images: Tensor) -> Tensor:
    """The first token of an image / 32: what the rewards of these tests score."""
    return images[:, 0, 0, 0].float() / 256


def options(**changes: Any) -> dict[str, Any]:
    """Arguments of `evaluate` that these tests share."""
    return {"sampling": Sampling(guidance=2.0), "seed": 3, **changes}
