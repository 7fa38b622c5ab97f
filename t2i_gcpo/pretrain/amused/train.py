"""Train `amused-mini` to predict the tokens behind a random mask from the others and the prompt (2202.04200).

From those that are left and the prompt (MaskGIT, 2202.04200).

Scenes, prompts and dropped words are those of janus-mini's language model. From a share of the rows the whole prompt is
dropped: its text is then empty, which is the null prompt that guidance mixes with.

B rows, T image tokens, V codebook.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from t2i_gcpo.generators.amused.parts import NULL, AmusedParts, Texts, logits
from t2i_gcpo.generators.compilation import can_compile
from t2i_gcpo.pretrain.amused.model import TEXT_LENGTH
from t2i_gcpo.pretrain.optimisation import Optimisation
from t2i_gcpo.pretrain.scene_pairs import VALIDATION_SCENES, draw_pairs, draw_prompts, encode_scenes


@dataclass(frozen=True)
class MaskedSettings:
    """Says how the transformer and the text encoder are trained; the defaults made the embedded checkpoint."""

    steps: int = 4500
    batch: int = 64
    lr: float = 4e-3
    muon_lr: float = 1e-2
    warmup: int = 60
    weight_decay: float = 0.02
    dropped_prompts: float = 0.1
    dropped_words: float = 0.5
    short_prompts: float = 0.15
    ema: float = 0.998
    bfloat16: bool = True
    compile: bool = True
    device: str = "cpu"
    workers: int = 0
    """Processes that draw the scenes; the scenes do not depend on it."""
    seed: int = 0


class Scenes(Dataset[tuple[list[str], Tensor, Tensor]]):
    """Give the texts, tokens [B, T] int64 and masks [B, T] of a step's batch; they depend on seed and step alone."""

    def __init__(self, codes: Tensor, settings: MaskedSettings) -> None:
        self.codes, self.settings = codes, settings

    def __getitem__(self, step: int) -> tuple[list[str], Tensor, Tensor]:
        rng = random.Random(f"{self.settings.seed}/{step}")
        texts, tokens = draw_pairs(rng, self.codes, self.settings)
        texts = [NULL if rng.random() < self.settings.dropped_prompts else text for text in texts]
        return texts, tokens, draw_masks(rng, *tokens.shape)


def draw_masks(rng: random.Random, rows: int, length: int) -> Tensor:
    """Draw masks [B, T] bool: a share of `cos(u^2 pi / 2)` of each row's tokens, u uniform; at least one.

    MaskGIT's share is `cos(u pi / 2)`. Here half of the rows have less than 6 % of their tokens left: what an object is
    and where it stands is decided there, and with more in sight the prompt is hardly needed.
    """
    noise = torch.rand(rows, length, generator=torch.Generator().manual_seed(rng.getrandbits(62)))
    counts = torch.tensor([max(1, math.floor(length * math.cos(rng.random() ** 2 * math.pi / 2))) for _ in range(rows)])
    return noise.argsort(dim=1).argsort(dim=1) < counts[:, None]


def attention(device: torch.device) -> AbstractContextManager[Any]:
    """Take plain attention on a CPU: two matrix products are faster than the fused kernel for so few tokens."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class MaskedTrainer:
    """The training state and one step of it; `state_dict` holds everything that a resumed run needs."""

    def __init__(self, settings: MaskedSettings, parts: AmusedParts, codes: Tensor) -> None:
        """Take what each code stands for, `codes` [V, 192], and the parts."""
        self.settings, self.device = settings, torch.device(settings.device)
        self.parts = parts.to(self.device)
        parts.vqvae.requires_grad_(False)
        self.modules = nn.ModuleDict({"transformer": parts.transformer, "text_encoder": parts.text_encoder}).train()
        self.optimisation = Optimisation(
            self.modules,
            settings,
            lambda name, _: "embed" not in name or "cond_embed" in name,
        )
        rng = random.Random(settings.seed)
        held_out = draw_prompts(rng, VALIDATION_SCENES, "val")
        tokens = encode_scenes(held_out, codes, rng).long()
        masked = draw_masks(rng, *tokens.shape)
        self.validation = self._ids([p.text for p in held_out]), tokens.to(self.device), masked.to(self.device)
        self.scenes = Scenes(codes, settings)
        self._batches: Iterator[Any] | None = None
        compiled = settings.compile and can_compile(self.device)
        self.losses = torch.compile(self._losses, dynamic=False) if compiled else self._losses

    @property
    def step_number(self) -> int:
        return self.optimisation.step_number

    def _ids(self, texts: list[str]) -> Tensor:
        """Encode texts to ids [B, L] int64."""
        batch = self.parts.tokenizer(
            texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
        )
        return batch.input_ids.to(self.device)

    def _losses(self, ids: Tensor, tokens: Tensor, masked: Tensor) -> Tensor:
        """Compute the cross-entropy of each image token [B, T]; those that are not masked are not worth leaving out."""
        encoded = self.parts.text_encoder(ids, output_hidden_states=True)
        texts = Texts(encoded.hidden_states[-2], encoded.text_embeds)
        states = tokens.masked_fill(masked, self.parts.mask_token)
        found = logits(self.parts.transformer, states, texts, self.parts.grid, self.parts.pixels).float()
        return F.cross_entropy(found.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)

    def step(self) -> dict[str, float | Tensor]:
        """Make one optimiser step; returns its loss in nats a masked token."""
        if self._batches is None:
            steps, workers = range(self.step_number, self.settings.steps), self.settings.workers
            self._batches = iter(DataLoader(self.scenes, sampler=steps, batch_size=None, num_workers=workers))
        texts, tokens, masked = next(self._batches)
        tokens, masked = tokens.to(self.device), masked.to(self.device)
        with attention(self.device):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bfloat16):
                losses = self.losses(self._ids(texts), tokens, masked)
            loss = (losses * masked).sum() / masked.sum()
            norm = self.optimisation.step(loss)
        return {"loss": loss.detach(), "grad_norm": norm}

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Compute the loss of the averaged weights on masked scenes of prompts never trained on, nats a masked token.

        Nats a masked token.
        """
        kept = self.optimisation.load(self.optimisation.average)
        ids, tokens, masked = self.validation
        losses = self._losses(ids, tokens, masked)
        self.optimisation.load(kept)
        return float((losses * masked).sum() / masked.sum())

    def finished(self) -> AmusedParts:
        """Return all parts in evaluation mode on the CPU, with the averaged weights."""
        self.optimisation.load(self.optimisation.average)
        return self.parts.cpu().eval()

    def state_dict(self) -> dict[str, Any]:
        return self.optimisation.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimisation.load_state_dict(state)
        self._batches = None
