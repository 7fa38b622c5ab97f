"""Turn prompt texts into token ids for Janus, and these into the null prompt's ids.

P prompts, L columns. Ids are [P, L] int64, padded on the left, with BOI (begin of image) in the last column; masks are
[P, L] bool, False on padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from t2i_gcpo.generators.vocabulary import UnknownWordsError, unknown_words


@dataclass(frozen=True)
class Encoded:
    """Prompts as token ids."""

    ids: Tensor
    """[P, L] int64, BOI last."""
    mask: Tensor
    """[P, L] bool, False on the padding at the left."""

    def take(self, index: Tensor) -> Encoded:
        """Return the rows at the indices [b] int64."""
        return Encoded(self.ids[index], self.mask[index])

    def cat(self, *others: Encoded) -> Encoded:
        """Join rows of encodings of the same width, one after the other."""
        parts = (self, *others)
        return Encoded(torch.cat([part.ids for part in parts]), torch.cat([part.mask for part in parts]))


class PromptEncoder:
    """Encode with the checkpoint's own processor: with its chat template, BOI appended, padding on the left."""

    def __init__(self, processor: Any, device: torch.device) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.device = device

    def encode(self, texts: Sequence[str], *, width_multiple: int = 1) -> Encoded:
        """Encode P texts to ids and mask; the width is rounded up to a multiple. ValueError names unknown words."""
        framed = [self._framed(text) for text in texts]
        batch = self.processor(
            text=framed, generation_mode="image", padding=True, padding_side="left", return_tensors="pt"
        )
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        self._check_words(framed, ids, mask)
        width = max(-(-ids.shape[1] // width_multiple) * width_multiple, 2)  # something before BOI, if only padding
        missing = width - ids.shape[1]
        ids = pad(ids, (missing, 0), value=self.tokenizer.pad_token_id)
        return Encoded(ids.to(self.device), pad(mask, (missing, 0), value=False).to(self.device))

    def null(self, encoded: Encoded) -> Encoded:
        """Make the unconditional rows of conditional ones: all but BOS and BOI becomes PAD; the attention mask stays.

        `JanusForConditionalGeneration.generate` and the reference implementation of Janus (2501.17811) do the same.
        """
        boi = self.tokenizer.convert_tokens_to_ids(self.tokenizer.boi_token)
        kept = encoded.ids == boi
        if self.tokenizer.bos_token_id is not None:
            kept |= encoded.ids == self.tokenizer.bos_token_id
        return Encoded(encoded.ids.masked_fill(~kept, self.tokenizer.pad_token_id), encoded.mask)

    def _framed(self, text: str) -> str:
        if not getattr(self.processor, "chat_template", None):
            return text
        messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _check_words(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> None:
        """Refuse words that become the unknown token: they would be ignored, and the image scored against them."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown == self.tokenizer.bos_token_id:
            return
        rows = ((ids == unknown) & mask).any(dim=1).nonzero().flatten().tolist()
        if not rows:
            return
        words = [word for row in rows for word in unknown_words(self.tokenizer, texts[row])]
        hint = ""
        if type(self.tokenizer.backend_tokenizer.model).__name__ == "WordLevel":
            hint = "; `t2i-gcpo prompts shapes:vocabulary --out FILE` lists the words it knows"
        raise UnknownWordsError(words, texts[rows[0]], self.tokenizer.get_vocab(), hint=hint)
