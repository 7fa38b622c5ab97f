"""Pre-training of `janus-mini`'s tokenizer, a `JanusVQVAE`: pixels to a grid of codes and back.

Three phases: an autoencoder on crops without quantisation; the same with a codebook that starts as the k-means of its latents
and follows them by exponential moving averages (1711.00937, appendix A.1); whole scenes at the end, because the model's
group normalisation sees the whole picture. Codebook entries live on the unit sphere, since `JanusVQVAE` decodes
normalised entries; its encoder's nearest entry is then the one with the largest inner product.

B pictures, S pixels a side, K codebook entries, N latents.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from t2i_gcpo.shapes.scene import IMAGE_SIZE, random_scene

#: Pixels a token covers on each side.
PATCH = 8


@dataclass(frozen=True)
class VQSettings:
    """How the VQ model is trained; the defaults made the embedded checkpoint."""

    codebook: int = 1024
    embed_dim: int = 16
    channels: int = 32
    multiplier: tuple[int, ...] = (1, 1, 2, 4)
    crop: int = 48
    batch: int = 12
    full_batch: int = 6
    plain_steps: int = 300
    crop_steps: int = 1200
    full_steps: int = 250
    lr: float = 1e-3
    muon_lr: float = 4e-3
    commitment: float = 0.25
    ema: float = 0.98
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.plain_steps + self.crop_steps + self.full_steps


def build_vq(settings: VQSettings, language_width: int) -> nn.Module:
    """An untrained `JanusVQVAE`; the caller seeds."""
    from transformers.models.janus.modeling_janus import JanusVQVAE

    from t2i_gcpo.shapes.janus_mini import vq_config

    return JanusVQVAE(vq_config(settings, language_width)).to(memory_format=torch.channels_last)


def pictures(rng: random.Random, count: int, size: int) -> Tensor:
    """Random scenes or crops of them, `[B, 3, S, S]` in [-1, 1]. Crops start on the token grid and hold some object."""
    batch: list[np.ndarray] = []
    while len(batch) < count:
        scene = random_scene(rng)
        picture = scene.render()
        if size < IMAGE_SIZE:
            thing = rng.choice(scene.objects)
            centre_x, centre_y = thing.left + thing.size // 2, thing.top + thing.size // 2
            limit = (IMAGE_SIZE - size) // PATCH
            left, top = (
                min(max((centre - rng.randint(0, size)) // PATCH, 0), limit) * PATCH for centre in (centre_x, centre_y)
            )
            picture = picture[top : top + size, left : left + size]
        batch.append(picture)
    pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def kmeans(latents: Tensor, count: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Spherical k-means of unit vectors `[N, D]` -> unit centres `[K, D]`, started from distinct latents."""
    distinct = torch.unique((latents * 50).round(), dim=0, return_inverse=True)[1]
    order = torch.randperm(len(latents), generator=generator)
    first = torch.full((int(distinct.max()) + 1,), len(latents), dtype=torch.long)
    first.scatter_reduce_(0, distinct[order], order, reduce="amin")
    pool = first[torch.randperm(len(first), generator=generator)]
    if len(pool) < count:
        pool = torch.cat([pool, order[: count - len(pool)]])
    centres = latents[pool[:count]].clone()
    for _ in range(rounds):
        owner = (latents @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, owner, latents)
        used = sums.norm(dim=1) > 1e-6
        centres[used] = F.normalize(sums[used], dim=1)
    return centres


class Codebook(nn.Module):
    """Unit codebook entries that follow the latents assigned to them; entries unused for long restart at a latent."""

    def __init__(self, count: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("entries", F.normalize(torch.randn(count, dim), dim=1))
        self.register_buffer("sums", self.entries.clone())
        self.register_buffer("usage", torch.ones(count))

    def start(self, centres: Tensor) -> None:
        self.entries.copy_(centres)
        self.sums.copy_(centres)
        self.usage.fill_(1.0)

    def forward(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Unit latents `[N, D]` -> (their entries `[N, D]`, indices `[N]`); updates the entries in training."""
        index = (latents @ self.entries.T).argmax(1)
        chosen = self.entries[index]
        if self.training:
            with torch.no_grad():
                counts = torch.zeros_like(self.usage).index_add_(0, index, torch.ones_like(index, dtype=latents.dtype))
                sums = torch.zeros_like(self.sums).index_add_(0, index, latents)
                self.usage.mul_(self.decay).add_(counts, alpha=1 - self.decay)
                self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
                dead = self.usage < 0.003
                if dead.any():
                    # Restart where the present entries fit worst.
                    misfit = 1 - (latents * chosen).sum(1)
                    pick = torch.multinomial(misfit.clamp(min=1e-6), int(dead.sum()), True, generator=generator)
                    self.sums[dead] = latents[pick] * 0.1
                    self.usage[dead] = 0.1
                self.entries.copy_(F.normalize(self.sums, dim=1))
        return chosen, index


class VQTrainer:
    """The training state and one step of it; `state_dict` holds everything that a resumed run needs."""

    def __init__(self, settings: VQSettings, language_width: int) -> None:
        self.settings = settings
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model: Any = build_vq(settings, language_width)
            self.codebook = Codebook(settings.codebook, settings.embed_dim, settings.ema)
        self.model.train()
        self.model.quantize.embedding.weight.requires_grad_(False)
        self.rng = random.Random(settings.seed)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        # Muon needs a third of AdamW's steps here. It takes matrices: a kernel is one, [out, in * height * width].
        self.kernels = [p for p in self.trained if p.ndim == 4 and p[0].numel() >= 16 and len(p) >= 16]
        self.matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in self.kernels]
        chosen = {id(p) for p in self.kernels}
        others = [p for p in self.trained if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0),
            torch.optim.Muon(self.matrices, lr=settings.muon_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        ]
        self.step_number = 0

    def _latents(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.model.quant_conv(self.model.encoder(pixels)), dim=1)

    @torch.no_grad()
    def start_codebook(self) -> None:
        """k-means of the latents of 300 crops."""
        crops = pictures(self.rng, 300, self.settings.crop)
        latents = torch.cat([rearrange(self._latents(part), "b d h w -> (b h w) d") for part in crops.split(50)])
        self.codebook.start(kmeans(latents, self.settings.codebook, 10, self.generator))

    def _learning_rate_factor(self) -> float:
        progress = self.step_number / self.settings.steps
        return min(1.0, (self.step_number + 1) / 50) * (0.02 + 0.98 * (1 - progress))

    def _update(self) -> None:
        """One step of both optimisers from the gradients that are there."""
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            assert kernel.grad is not None
            matrix.grad = kernel.grad.flatten(1)
        for optimizer, lr in zip(self.optimizers, (self.settings.lr, self.settings.muon_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * self._learning_rate_factor()
            optimizer.step()
        with torch.no_grad():
            for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
                kernel.copy_(matrix.view_as(kernel))

    def step(self) -> dict[str, float]:
        """One optimiser step; returns its metrics (loss in squared and absolute pixel units of [-1, 1])."""
        settings = self.settings
        quantised = self.step_number >= settings.plain_steps
        whole = self.step_number >= settings.plain_steps + settings.crop_steps
        if self.step_number == settings.plain_steps:
            self.start_codebook()
        count, size = (settings.full_batch, IMAGE_SIZE) if whole else (settings.batch, settings.crop)
        pixels = pictures(self.rng, count, size)
        latents = self._latents(pixels)
        used, commitment, fed = 0.0, latents.new_zeros(()), latents
        if quantised:
            flat = rearrange(latents, "b d h w -> (b h w) d")
            chosen, index = self.codebook(flat.detach(), self.generator)
            commitment = (flat - chosen).pow(2).sum(1).mean()
            passed = flat + (chosen - flat).detach()
            fed = rearrange(passed, "(b h w) d -> b d h w", b=count, h=latents.shape[2])
            used = len(torch.unique(index))
        decoded = self.model.decoder(self.model.post_quant_conv(fed))
        error = decoded - pixels
        reconstruction = error.abs().mean() + 2 * error.pow(2).mean()
        loss = reconstruction + settings.commitment * commitment
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        self._update()
        self.step_number += 1
        return {
            "loss": float(loss.detach()),
            "mse": float(error.detach().pow(2).mean()),
            "commitment": float(commitment.detach()),
            "codes_in_batch": float(used),
            "codes_in_use": float((self.codebook.usage > 0.01).sum()),
        }

    def finished(self) -> nn.Module:
        """The trained model in evaluation mode, with the codebook in its place."""
        self.model.quantize.embedding.weight.data.copy_(self.codebook.entries)
        return self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "codebook": self.codebook.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.getstate(),
            "generator": self.generator.get_state(),
            "step": self.step_number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.codebook.load_state_dict(state["codebook"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        with torch.no_grad():
            for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
                matrix.copy_(kernel.flatten(1))
        version, internal, gauss = state["rng"]
        self.rng.setstate((version, tuple(internal), gauss))
        self.generator.set_state(state["generator"])
        self.step_number = state["step"]


def train_vq(trainer: VQTrainer, on_step: Callable[[int, dict[str, float]], None]) -> nn.Module:
    """Run the steps that are left."""
    while trainer.step_number < trainer.settings.steps:
        metrics = trainer.step()
        on_step(trainer.step_number, metrics)
    return trainer.finished()
