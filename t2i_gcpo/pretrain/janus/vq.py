"""Train the tokenizer of an embedded Janus, a `JanusVQVAE`: pixels to a grid of codes and back.

`JanusVQVAE`'s encoder sees the whole picture (group normalisation and attention), and a plain autoencoder would let it
write the scene's content into the codes of empty patches: hard to learn for a language model, and credit on the grid
would not say where in the picture it falls. So a code is defined by a token's own pixels: codes are the k-means of 8x8
patches. The entries and the decoder learn to draw pictures from them, the encoder learns to find them.

B pictures, S pixels a side, K codebook entries of D numbers, N patches.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from t2i_gcpo.data.shapes.scene import IMAGE_SIZE, Difficulty
from t2i_gcpo.pretrain.janus.codes import PATCH, directions, nearest, patch_codes, patches, pictures
from t2i_gcpo.pretrain.janus.model import VQSettings


def build_vq(settings: VQSettings, language_width: int) -> nn.Module:
    """Build an untrained `JanusVQVAE`; the caller seeds."""
    from transformers.models.janus.modeling_janus import JanusVQVAE

    from t2i_gcpo.pretrain.janus.model import vq_config

    return JanusVQVAE(vq_config(settings, language_width)).to(memory_format=torch.channels_last)


class VQTrainer:
    """The training state and one step of it; `state_dict` holds everything that a resumed run needs."""

    def __init__(self, settings: VQSettings, language_width: int, codes: Tensor | None = None) -> None:
        """Take what each code stands for, [K, 192]; None computes it."""
        self.settings = settings
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model: Any = build_vq(settings, language_width)
        self.model.train()
        self.rng = random.Random(settings.seed)
        self.centres = patch_codes(settings) if codes is None else codes
        self.difficulty = Difficulty.of_style(settings.style)
        entries = directions(self.centres, settings.embed_dim)
        self.model.quantize.embedding.weight.data.copy_(entries)
        # Muon needs a third of AdamW's steps here. It takes matrices: a kernel is one, [out, in * height * width].
        self.kernels = [p for p in self.model.parameters() if p.ndim == 4 and p[0].numel() >= 16 and len(p) >= 16]
        self.matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in self.kernels]
        chosen = {id(p) for p in self.kernels}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0),
            torch.optim.Muon(self.matrices, lr=settings.muon_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        ]
        self.step_number = 0

    def _learning_rate_factor(self) -> float:
        progress = self.step_number / self.settings.steps
        return min(1.0, (self.step_number + 1) / 50) * (0.02 + 0.98 * (1 - progress))

    def _update(self) -> None:
        """Make one step of both optimisers from the gradients that are there."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            if kernel.grad is None:
                raise RuntimeError("a convolution has no gradient; call backward before the update")
            matrix.grad = kernel.grad.flatten(1)
        for optimizer, lr in zip(self.optimizers, (self.settings.lr, self.settings.muon_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * self._learning_rate_factor()
            optimizer.step()
        with torch.no_grad():
            for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
                kernel.copy_(matrix.view_as(kernel))

    def step(self) -> dict[str, float]:
        """Make one optimiser step; returns its metrics.

        Pixel errors in units of [-1, 1], the encoder's cross-entropy in nats.
        """
        settings, model = self.settings, self.model
        whole = self.step_number >= settings.crop_steps
        count, size = (settings.full_batch, IMAGE_SIZE) if whole else (settings.batch, settings.crop)
        pixels = pictures(self.rng, count, size, self.difficulty)
        index = nearest(patches(pixels), self.centres)
        entries = F.normalize(model.quantize.embedding.weight, dim=1)
        drawn = rearrange(entries[index], "(b h w) d -> b d h w", b=count, h=size // PATCH)
        error = model.decoder(model.post_quant_conv(drawn)) - pixels
        found = F.normalize(model.quant_conv(model.encoder(pixels)), dim=1)
        logits = rearrange(found, "b d h w -> (b h w) d") @ entries.T
        encoding = F.cross_entropy(logits / settings.temperature, index)
        mse = error.pow(2).mean()
        loss = error.abs().mean() + 2 * mse + settings.encoding_weight * encoding
        model.zero_grad(set_to_none=True)
        loss.backward()
        self._update()
        self.step_number += 1
        return {
            "loss": float(loss.detach()),
            "mse": float(mse.detach()),
            "encoding": float(encoding.detach()),
            "found": float((logits.argmax(1) == index).float().mean()),
            "codes_in_batch": float(len(torch.unique(index))),
        }

    def finished(self) -> nn.Module:
        """Return the trained model in evaluation mode, its codebook's entries normalised."""
        weight = self.model.quantize.embedding.weight
        weight.data.copy_(F.normalize(weight.data, dim=1))
        return self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.getstate(),
            "step": self.step_number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        with torch.no_grad():
            for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
                matrix.copy_(kernel.flatten(1))
        version, internal, gauss = state["rng"]
        self.rng.setstate((version, tuple(internal), gauss))
        self.step_number = state["step"]


@torch.no_grad()
def encoder_agreement(model: Any, settings: VQSettings, scenes: int = 300, codes: Tensor | None = None) -> float:
    """Measure the share of new scenes' tokens in which the encoder gives the code that the patch stands for."""
    codes = patch_codes(settings) if codes is None else codes
    rng, difficulty, right = random.Random(settings.seed + 2), Difficulty.of_style(settings.style), 0
    for start in range(0, scenes, 50):
        pixels = pictures(rng, min(50, scenes - start), IMAGE_SIZE, difficulty)
        tokens = model.encode(pixels).image_tokens.flatten()
        right += int((tokens == nearest(patches(pixels), codes)).sum())
    return right / (scenes * (IMAGE_SIZE // PATCH) ** 2)
