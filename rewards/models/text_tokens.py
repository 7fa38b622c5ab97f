"""Turns texts into token ids by a tokenizer of transformers, and tells of texts that do not fit.

N texts, T their tokens.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from rewards.models import weights
from rewards.models.open_clip_encoder import UnfitText
from rewards.models.transformers_model import TEXT_FILES, load_part


class TextReader:
    """Turns N texts into ids and mask [N, T], padded on the right to the longest, cut to the model's length."""

    def __init__(
        self, name: str, checkpoint: str, *, length: int, revision: str | None = None, unfit_text: UnfitText = "warn"
    ) -> None:
        """Load the tokenizer from the folder or hub repository `checkpoint`.

        `name`: the reward's; `length`: tokens that the model reads.

        ValueError: a tokenizer that is missing, an unknown `unfit_text`.
        """
        if unfit_text not in ("warn", "raise"):
            raise ValueError(f"unfit_text {unfit_text!r} of reward {name!r} is unknown; allowed: warn, raise")
        folder = weights.folder(checkpoint, revision=revision, files=TEXT_FILES, what=f"tokenizer for reward {name!r}")
        self.tokenizer = load_part("AutoTokenizer", "tokenizer", folder, name)
        self.name, self.length, self.unfit_text = name, length, unfit_text
        self._warned = False

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, [N, T] int64. A text that is cut: one warning, or ValueError."""
        cut = self._cut(texts)
        if cut:
            self._tell(cut[0])
        tokens: Any = self.tokenizer(
            texts,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.length,
            return_token_type_ids=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {key: tokens[key] for key in ("input_ids", "attention_mask")}

    def check(self, text: str) -> None:
        """Raise ValueError for a text that is cut, where that is an error."""
        if self.unfit_text == "raise" and self._cut([text]):
            self._tell(text)

    def _cut(self, texts: list[str]) -> list[str]:
        whole = self.tokenizer(texts, verbose=False)["input_ids"]
        return [text for text, ids in zip(texts, whole, strict=True) if len(ids) > self.length]

    def _tell(self, text: str) -> None:
        problem = (
            f"reward {self.name!r}: the text {text!r} is longer than the {self.length} tokens that the model reads; "
            "the rest of it does not count"
        )
        if self.unfit_text == "raise":
            raise ValueError(f"{problem}; shorten it")
        if not self._warned:
            self._warned = True
            warnings.warn(f"{problem} (said once)", stacklevel=3)
