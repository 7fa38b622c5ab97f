"""Encodes images and texts into features of unit length, with a frozen open_clip model.

B images, H, W their sides, N texts, T the context length in tokens, D feature width.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from rewards.models.batches import TextCache, check_images, check_prompts, in_batches
from rewards.models.preprocess import Preprocess

#: What happens to a text that the tokenizer cuts, or with words outside its vocabulary: one warning, or a ValueError.
UnfitText = Literal["warn", "raise"]


class OpenClipEncoder:
    """Makes features of unit length with a frozen open_clip model."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        preprocess: Preprocess,
        *,
        context_length: int,
        unfit_text: UnfitText,
        name: str,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocess, self.context_length = tokenizer, preprocess, context_length
        self.unfit_text, self.name = unfit_text, name
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._warned: set[str] = set()

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] uint8 into [B, D] float32 of length 1, on the model's device."""
        return self.pixels(self.preprocess(images.to(self.device), self.dtype))

    @torch.no_grad()
    def pixels(self, pixels: Tensor) -> Tensor:
        """Encode [B, 3, S, S], preprocessed, of the model's device and dtype, into [B, D] as `images` does."""
        return functional.normalize(self.model.encode_image(pixels).float(), dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Encode N texts into [N, D] float32 of length 1, on the model's device."""
        return functional.normalize(self.model.encode_text(self.tokens(texts).to(self.device)).float(), dim=-1)

    def tokens(self, texts: list[str]) -> Tensor:
        """Return the tokens [N, T] of N texts.

        Warns once, or raises ValueError, where a text is cut or holds unknown words.
        """
        tokens: Tensor = self.tokenizer(texts)
        cut = f"is longer than the {self.context_length} tokens that the model reads; the rest of it does not count"
        self._unfit(cut, [text for text, long in zip(texts, self._cut(texts, tokens), strict=True) if long])
        unknown = _unknown_token(self.tokenizer)
        if unknown is not None:
            rows = (tokens == unknown).any(dim=1).tolist()
            self._unfit(
                "holds words outside the model's vocabulary; they do not count",
                [text for text, has_unknown in zip(texts, rows, strict=True) if has_unknown],
            )
        return tokens

    def check(self, text: str) -> None:
        """Raise ValueError for a text that is cut or holds unknown words, where that is an error."""
        if self.unfit_text == "raise":
            self.tokens([text])

    def _cut(self, texts: list[str], tokens: Tensor) -> list[bool]:
        if hasattr(self.tokenizer, "encode"):  # open_clip's own: a start and an end token around the text
            return [len(self.tokenizer.encode(text)) + 2 > self.context_length for text in texts]
        # A tokenizer of transformers: with room for one more token, a text that was cut has one more.
        pad = self.tokenizer.tokenizer.pad_token_id
        longer = self.tokenizer(texts, context_length=self.context_length + 1)
        return ((longer != pad).sum(dim=1) > (tokens != pad).sum(dim=1)).tolist()

    def _unfit(self, problem: str, texts: list[str]) -> None:
        if not texts:
            return
        if self.unfit_text == "raise":
            raise ValueError(f"reward {self.name!r}: the prompt {texts[0]!r} {problem}; change the prompt")
        if problem not in self._warned:
            self._warned.add(problem)
            warnings.warn(f"reward {self.name!r}: the prompt {texts[0]!r} {problem} (said once)", stacklevel=2)


def _unknown_token(tokenizer: Any) -> int | None:
    """Return the token of words outside the vocabulary, where it stands for nothing else."""
    inner = getattr(tokenizer, "tokenizer", None)
    unknown = getattr(inner, "unk_token_id", None)
    others = {getattr(inner, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos", "sep", "cls")}
    return None if unknown in others else unknown


def cosines(encoder: OpenClipEncoder, texts: TextCache, images: Tensor, prompts: list[str], batch_size: int) -> Tensor:
    """Return the cosine [B] of each image and its prompt, on the images' device.

    `texts`: a TextCache over `encoder.texts`.
    """
    check_images(images, encoder.name)
    check_prompts(images, prompts, encoder.name)
    features = in_batches(encoder.images, images, batch_size=batch_size, name=encoder.name)
    return (features * texts(prompts)).sum(dim=-1).to(images.device)
