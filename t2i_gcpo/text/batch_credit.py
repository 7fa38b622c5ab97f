"""Compute the token weights of one of TRL's batches at the moment when the loss first reads them.

B completions of one process, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing

from t2i_gcpo.text.checks import base_model
from t2i_gcpo.text.scoring import PaddedPrompts, exact_kl
from t2i_gcpo.text.token_credit import measurements, token_weights

#: Keys of a batch that are ours; TRL shuffles and splits them with the rest.
NEGATIVE_IDS, NEGATIVE_MASK = "negative_prompt_ids", "negative_prompt_mask"
NEGATIVE_LOGPS, EXACT_KL, WEIGHTS = "negative_per_token_logps", "exact_kl_per_token", "credit_weights"


def own_tokens(batch: dict[str, Any]) -> Tensor:
    """Return [B, T], 1 for the tokens that the model itself wrote and that are in the loss."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


class Scorer(Protocol):
    """Declares what the credit of a batch needs of the trainer."""

    args: Any
    model: Any
    temperature: float

    def score(
        self, prompts: PaddedPrompts, batch: dict[str, Any], rows: int | None = None, entropy: bool = False
    ) -> Any:
        """Return log-probs and entropies [B, T] of the batch's completions after other prompts, without gradient."""
        ...

    def noise(self) -> torch.Generator:
        """Return the generator that the controls draw from."""
        ...

    def note(self, numbers: dict[str, float]) -> None:
        """Log some numbers of this batch."""
        ...


class BatchCredit:
    """Holds the token weights of one batch, which are computed when they are first read."""

    def __init__(self, trainer: Scorer, batch: dict[str, Any], rows: int | None = None) -> None:
        self.trainer, self.batch, self.rows = trainer, batch, rows
        self.positive: Tensor | None = None
        self.negative: Tensor | None = batch.get(NEGATIVE_LOGPS)
        self.exact_kl: Tensor | None = batch.get(EXACT_KL)
        self.entropy: Tensor | None = None
        self._weights: Tensor | None = batch.get(WEIGHTS)

    @property
    def mask(self) -> Tensor:
        return own_tokens(self.batch)

    @property
    def weights(self) -> Tensor:
        """Return [B, T], of mean 1 over a completion's own tokens."""
        if self._weights is None:
            self._weights = self._compute()
        return self._weights

    def advantages(self) -> Tensor:
        """Return [B, T], the completion's advantage times the token's weight."""
        return self.batch["advantages"].unsqueeze(1) * self.weights

    def score_negative(self) -> None:
        """Score the completions under the negative prompts.

        Log-probs of the drawn tokens, and the whole distributions where they are wanted.
        """
        batch, trainer = self.batch, self.trainer
        negative = PaddedPrompts(batch[NEGATIVE_IDS], batch[NEGATIVE_MASK])
        self.negative = trainer.score(negative, batch, self.rows)[0]
        if trainer.args.divergence == "exact_kl":
            positive = PaddedPrompts(batch["prompt_ids"], batch["prompt_mask"])
            with disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs):
                self.exact_kl = exact_kl(
                    base_model(trainer.model), positive, negative, batch["completion_ids"], batch["completion_mask"],
                    temperature=trainer.temperature, rows=self.rows,
                )  # fmt: skip

    def _compute(self) -> Tensor:
        trainer, args = self.trainer, self.trainer.args
        if args.needs_contrast and self.negative is None:
            self.score_negative()
        if args.credit == "entropy" and self.entropy is None:
            positive = PaddedPrompts(self.batch["prompt_ids"], self.batch["prompt_mask"])
            self.entropy = trainer.score(positive, self.batch, self.rows, entropy=True)[1]
        if self.positive is None:
            raise RuntimeError(
                "TRL asked for advantages before it scored the completions; this version of TRL is not supported"
            )
        weights = token_weights(
            args, self.mask, positive=self.positive, negative=self.negative, exact_kl=self.exact_kl,
            entropy=self.entropy, generator=trainer.noise() if args.credit in ("random", "shuffled") else None,
        )  # fmt: skip
        trainer.note(measurements(args, weights, self.mask, self.positive, self.negative))
        return weights


class LossInputs(dict[str, Any]):
    """Is a batch whose advantages are computed when the loss reads them, after the policy's forward pass."""

    def __init__(self, batch: dict[str, Any], advantages: Callable[[], Tensor]) -> None:
        super().__init__({key: value for key, value in batch.items() if key != "advantages"})
        self._advantages = advantages

    def __getitem__(self, key: str) -> Any:
        return self._advantages() if key == "advantages" else super().__getitem__(key)


class TokenBeta(float):
    """Is the KL's factor beta; its product with a KL [B, T] has one factor a token."""

    def __new__(cls, beta: float, factors: Callable[[], Tensor]) -> TokenBeta:
        value = super().__new__(cls, beta)
        value._factors = factors
        return value

    _factors: Callable[[], Tensor]

    def __mul__(self, kl: Any) -> Any:
        return float(self) * self._factors() * kl
