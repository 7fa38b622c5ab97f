"""Read and write an aMUSEd checkpoint in diffusers' folder layout, and encode texts as its modules take them.

N texts, L positions of the text encoder, D its hidden width, E its projection's width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from rewards.models.batches import TextCache
from rewards.models.torchvision_mend import mend
from t2i_gcpo.generators.integrity import load_model, load_part
from t2i_gcpo.generators.vocabulary import UnknownWordsError, unknown_words

#: Micro-conditions behind the image's width and height: the crop's corner and the aesthetic score (2401.01808, section
#: 3).
CROP_AND_SCORE = (0.0, 0.0, 6.0)

NULL = ""
"""The null prompt's text, as in the published pipeline."""

#: Texts encoded at once.
TEXT_BATCH = 64


class AmusedParts(nn.Module):
    """The modules of a checkpoint, as one module."""

    def __init__(self, transformer: Any, vqvae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> None:
        """Take a `UVit2DModel`, a `VQModel`, a `CLIPTextModelWithProjection`, its tokenizer, an `AmusedScheduler`.

        ValueError where the VQ model's codebook is not the transformer's, its image size is no multiple of its factor,
        or the mask's token is one of the codes.
        """
        super().__init__()
        codes, entries = int(transformer.config.codebook_size), int(vqvae.config.num_vq_embeddings)
        if codes != entries:
            raise ValueError(
                f"the transformer draws from {codes} codes, but the VQ model's codebook has "
                f"{entries}; the two do not belong together"
            )
        factor, size = 2 ** (len(vqvae.config.block_out_channels) - 1), int(vqvae.config.sample_size)
        if size % factor:
            raise ValueError(
                f"the VQ model's image size (sample_size) is {size} pixels, which is no multiple of the {factor} "
                f"pixels of a token; {size - size % factor} or {size - size % factor + factor} would be"
            )
        mask_token = int(scheduler.config.mask_token_id)
        if not codes <= mask_token < int(transformer.config.vocab_size):
            raise ValueError(
                f"mask_token_id of the scheduler is {mask_token}; it must lie beyond the {codes} codes and within the "
                f"transformer's vocabulary of {transformer.config.vocab_size}"
            )
        self.transformer, self.vqvae, self.text_encoder = transformer, vqvae, text_encoder
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.mask_token, self.factor = mask_token, factor

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: torch.device) -> AmusedParts:
        mend()  # transformers and diffusers import torchvision
        from diffusers import AmusedScheduler, UVit2DModel, VQModel
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        missing = [
            name
            for name in ("transformer", "vqvae", "text_encoder", "tokenizer", "scheduler")
            if not (folder / name).is_dir()
        ]
        if missing:
            raise ValueError(f"{folder} is no whole aMUSEd checkpoint: it has no {', '.join(missing)}/")
        return cls(
            load_model(UVit2DModel, folder / "transformer", dtype=dtype, device=device),
            load_model(VQModel, folder / "vqvae", dtype=dtype, device=device),
            load_model(CLIPTextModelWithProjection, folder / "text_encoder", dtype=dtype, device=device),
            load_part(AutoTokenizer, folder / "tokenizer"),
            load_part(AmusedScheduler, folder / "scheduler"),
        ).to(device)

    def save(self, folder: Path) -> None:
        """Write the layout that `load`, and diffusers' `AmusedPipeline.from_pretrained`, read."""
        parts: dict[str, tuple[Any, str, str]] = {
            "vqvae": (self.vqvae, "diffusers", "VQModel"),
            "tokenizer": (self.tokenizer, "transformers", type(self.tokenizer).__name__),
            "text_encoder": (self.text_encoder, "transformers", "CLIPTextModelWithProjection"),
            "transformer": (self.transformer, "diffusers", "UVit2DModel"),
            "scheduler": (self.scheduler, "diffusers", "AmusedScheduler"),
        }
        for name, (part, _, _) in parts.items():
            part.save_pretrained(folder / name)
        index = {
            "_class_name": "AmusedPipeline",
            **{name: [library, kind] for name, (_, library, kind) in parts.items()},
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @property
    def grid(self) -> tuple[int, int]:
        side = int(self.transformer.config.sample_size)
        return side, side

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.grid[0] * self.factor, self.grid[1] * self.factor


@dataclass(frozen=True)
class Texts:
    """Texts as the transformer takes them."""

    hidden: Tensor
    """[N, L, D], the text encoder's last hidden states but one."""
    pooled: Tensor
    """[N, E]."""

    def take(self, index: Tensor) -> Texts:
        """Return the rows at the indices [b] int64."""
        return Texts(self.hidden[index], self.pooled[index])

    def cat(self, *others: Texts) -> Texts:
        parts = (self, *others)
        return Texts(torch.cat([part.hidden for part in parts]), torch.cat([part.pooled for part in parts]))


class TextEncoder:
    """Encode texts with the frozen text encoder, and keep the features of texts that it has seen."""

    def __init__(self, parts: AmusedParts) -> None:
        self.parts = parts
        limit = int(parts.text_encoder.config.max_position_embeddings)
        self.length = min(int(parts.tokenizer.model_max_length), limit)
        self.cache = TextCache(self._features, batch_size=TEXT_BATCH, name="amused text encoder")

    @property
    def device(self) -> torch.device:
        return self.parts.text_encoder.device

    def __call__(self, texts: Sequence[str]) -> Texts:
        """Encode texts. ValueError for one that is too long, or has words that the tokenizer does not know."""
        self.check(texts)
        packed = self.cache(texts)
        width = int(self.parts.text_encoder.config.projection_dim)
        hidden = rearrange(packed[:, width:], "n (l d) -> n l d", l=self.length)
        return Texts(hidden, packed[:, :width])

    def check(self, texts: Sequence[str]) -> None:
        tokenizer = self.parts.tokenizer
        for text in dict.fromkeys(texts):
            ids = tokenizer(text).input_ids
            if len(ids) > self.length:
                cut = tokenizer.decode(ids[self.length - 1 : -1], skip_special_tokens=True)
                raise ValueError(
                    f"the prompt {text!r} has {len(ids)} tokens, the text encoder takes "
                    f"{self.length}: {cut!r} would be cut off"
                )
            unknown = tokenizer.unk_token_id
            if (
                unknown is not None
                and unknown in ids
                and unknown not in (tokenizer.eos_token_id, tokenizer.pad_token_id)
            ):
                raise UnknownWordsError(unknown_words(tokenizer, text), text, tokenizer.get_vocab())

    @torch.no_grad()
    def _features(self, texts: list[str]) -> Tensor:
        """Compute both features in one row [N, E + L * D], as the cache keeps one tensor a text."""
        encoder = self.parts.text_encoder
        batch = self.parts.tokenizer(
            texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        output = encoder(batch.input_ids.to(encoder.device), output_hidden_states=True)
        return torch.cat([output.text_embeds, output.hidden_states[-2].flatten(1)], dim=1)


def logits(
    transformer: nn.Module, states: Tensor, texts: Texts, grid: tuple[int, int], pixels: tuple[int, int]
) -> Tensor:
    """Compute the transformer's logits [b, T, V] for `states` [b, T] (tokens and masks) and as many texts."""
    height, width = pixels
    conditions = torch.tensor([width, height, *CROP_AND_SCORE], device=states.device, dtype=texts.hidden.dtype)
    output = transformer(
        rearrange(states, "b (h w) -> b h w", h=grid[0]),
        encoder_hidden_states=texts.hidden,
        pooled_text_emb=texts.pooled,
        micro_conds=conditions.expand(len(states), -1),
    )
    return rearrange(output, "b v h w -> b (h w) v")
