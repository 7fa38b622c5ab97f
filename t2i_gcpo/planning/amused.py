"""aMUSEd on the meta device: what its passes hold and compute.

b rows, T tokens, c tokens that a pass scores, V codebook, N sampling steps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rewards.models.torchvision_mend import mend
from t2i_gcpo.generators.amused import random_model
from t2i_gcpo.generators.amused.adapter import UVIT_TARGETS
from t2i_gcpo.generators.amused.likelihoods import passes, remask_counts, resolve
from t2i_gcpo.generators.amused.parts import Texts, logits
from t2i_gcpo.generators.policy_weights import PolicyWeights
from t2i_gcpo.generators.random_models import fresh_weights
from t2i_gcpo.generators.tokens.logprobs import selected_logprob
from t2i_gcpo.generators.tokens.sampling import behaviour_logits
from t2i_gcpo.generators.tokens.unmasking import still_masked
from t2i_gcpo.planning.models import (
    DRAWING,
    PassOptions,
    PlannedModel,
    adapted_layers,
    branch_values,
    count,
    tensor_sizes,
    trained,
)
from t2i_gcpo.planning.sources import Source
from t2i_gcpo.planning.trace import META, Trace, in_a_row, on_line, trace

POLICY = "transformer"


class PlannedAmused(PlannedModel):
    """Holds aMUSEd's sizes, and makes its parts on the meta device at the depth that is asked for."""

    chunked_head = False

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        super().__init__()
        self.source, self.dtype = source, dtype
        parts = self._parts(None)
        self.layers = len(parts.transformer.transformer_layers)
        self.grid, self.pixels, self.mask_token = parts.grid, parts.pixels, parts.mask_token
        self.tokens, self.codebook = parts.grid[0] * parts.grid[1], int(parts.transformer.config.codebook_size)
        self.policy, self.sizes = count(parts.transformer), tensor_sizes(parts.transformer)
        self.adapted = adapted_layers(parts.transformer, UVIT_TARGETS)
        self.idle, self.fp32 = (), 0
        self.frozen = {
            "image decoder and encoder": count(parts.vqvae),
            "text encoder": count(parts.text_encoder),
        }
        self.text = parts.text_encoder.config
        self.text_length = min(int(parts.tokenizer.model_max_length), int(self.text.max_position_embeddings))

    def _parts(self, layers: int | None) -> Any:
        """Make the parts with `layers` layers of the transformer (None: its own)."""
        mend()  # transformers and diffusers import torchvision
        if self.source.random is not None:
            random = self.source.random if layers is None else replace(self.source.random, layers=layers)
            return random_model.build(random, device=META, dtype=self.dtype)
        if self.source.folder is None:
            raise ValueError(f"{self.source.note}: there is no configuration to plan with")
        from diffusers import AmusedScheduler, UVit2DModel, VQModel
        from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

        from t2i_gcpo.generators.amused.parts import AmusedParts

        folder = self.source.folder
        sizes = dict(UVit2DModel.load_config(folder / "transformer", local_files_only=True))
        if layers is not None:
            sizes["num_hidden_layers"] = layers
        text = CLIPTextConfig.from_pretrained(folder / "text_encoder", local_files_only=True, trust_remote_code=False)
        with fresh_weights(META, self.dtype, 0):
            return AmusedParts(
                UVit2DModel.from_config(sizes),
                VQModel.from_config(VQModel.load_config(folder / "vqvae", local_files_only=True)),
                CLIPTextModelWithProjection(text),
                AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True, trust_remote_code=False),
                AmusedScheduler.from_pretrained(folder / "scheduler", local_files_only=True, trust_remote_code=False),
            )

    def _texts(self, rows: int) -> Texts:
        hidden = torch.zeros(rows, self.text_length, self.text.hidden_size, dtype=self.dtype, device=META)
        return Texts(hidden, torch.zeros(rows, self.text.projection_dim, dtype=self.dtype, device=META))

    def _logits(self, weights: PolicyWeights, rows: int) -> Tensor:
        states = torch.zeros(rows, self.tokens, dtype=torch.long, device=META)
        return logits(weights.module, states, self._texts(rows), self.grid, self.pixels)

    # -- the update ----------------------------------------------------------------------------------------------------

    def update(self, rows: int, options: PassOptions) -> Trace:
        """Trace the passes of a micro-batch: all at once, or one by one where they are checkpointed."""
        scored = self.scored(options)
        if options.fold_passes:
            return self._traced(len(scored) * rows, max(scored), options, True)
        largest = self._traced(rows, max(scored), options, True)
        if not options.gradient_checkpointing:
            least, span = min(scored), max(1, max(scored) - min(scored))
            smallest = self._traced(rows, least, options, True)
            return in_a_row([on_line(smallest, largest, (tokens - least) / span) for tokens in scored])
        again = self._traced(rows, max(scored), options, False)
        kept = len(scored) * rows * self.tokens * 8  # each pass' token ids
        flops = len(scored) * (largest.flops + again.flops)
        return Trace(kept, largest.peak + kept, flops, largest.logits)

    def score(self, rows: int, options: PassOptions) -> Trace:
        scored = self.scored(options)
        one = self._traced(rows, max(scored), options, False)
        return replace(one, flops=len(scored) * one.flops)

    def scored(self, options: PassOptions) -> list[int]:
        """Count the tokens that each pass of an update scores."""
        likelihood = resolve(options.masked_policy)
        number = passes(likelihood, options.masked_passes, options.sampling_steps, options.order)
        left = (self.tokens, *still_masked(options.sampling_steps, self.tokens, options.schedule))
        if likelihood.remainder:
            return list(left[:number])
        if likelihood.states == "remasked":
            return remask_counts(number, self.tokens)
        if likelihood.states != "trajectory":
            return sorted(left[:-1], reverse=True)[:number]
        committed = (before - after for before, after in pairwise(left))
        return sorted(committed, reverse=True)[:number]

    def _traced(self, rows: int, tokens: int, options: PassOptions, backward: bool) -> Trace:
        """Trace one pass, which scores `tokens` of its tokens."""
        options = replace(options, gradient_checkpointing=False)  # it says which passes are traced
        traced = partial(self._pass, tokens, options, backward)
        return self.along((tokens, options, backward), rows, self.layers, traced)

    def _pass(self, tokens: int, options: PassOptions, backward: bool, rows: int, layers: int) -> Trace:
        parts = self._parts(layers)
        weights = trained(parts, POLICY, UVIT_TARGETS, options)

        def forward() -> Tensor:
            conditional, unconditional = branch_values(
                lambda number: _first(self._logits(weights, number), tokens), rows, options
            )
            index = torch.zeros(rows, tokens, dtype=torch.long, device=META)
            if unconditional is None:
                return selected_logprob(conditional, index).sum()
            mixed = behaviour_logits(conditional, unconditional, guidance=options.guidance, keep=index)
            return selected_logprob(mixed, index).sum()

        parameters = weights.trainable_parameters()
        return trace(forward, backward=backward, parameters=parameters, codebook=self.codebook)

    # -- sampling ------------------------------------------------------------------------------------------------------

    def cache(self, folded: int, options: PassOptions, *, compiled: bool, on_cpu: bool) -> int:
        return 0

    def sample(self, folded: int, prompts: int, options: PassOptions) -> int:
        one = self._sampled(folded, options)
        drawn = folded * self.tokens * self.codebook * (self.dtype.itemsize + DRAWING * torch.float32.itemsize)
        return max(one.peak, drawn)

    def sampling_work(self, folded: int, options: PassOptions) -> tuple[float, float]:
        one = self._sampled(folded, options)
        return options.sampling_steps * one.flops, options.sampling_steps * self.policy * self.dtype.itemsize

    def _sampled(self, folded: int, options: PassOptions) -> Trace:
        return self.along(("sample", options.lora_rank), folded, self.layers, partial(self._forward, options))

    def _forward(self, options: PassOptions, folded: int, layers: int) -> Trace:
        weights = trained(self._parts(layers), POLICY, UVIT_TARGETS, options)
        return trace(lambda: self._logits(weights, folded), backward=False)

    # -- images --------------------------------------------------------------------------------------------------------

    def decode(self, rows: int, options: PassOptions) -> Trace:
        vqvae = self._parts(1).vqvae

        def one(rows: int, layers: int) -> Trace:
            grid = torch.zeros(rows, *self.grid, dtype=torch.long, device=META)
            shape = (*grid.shape, int(vqvae.config.latent_channels))
            return trace(lambda: vqvae.decode(grid, force_not_quantize=True, shape=shape).sample, backward=False)

        return self.along("decode", rows, 1, one)


def _first(values: Tensor, tokens: int) -> Tensor:
    """Take the logits [b, c, V] of c tokens out of [b, T, V], and as the scorer's gather does, copy them."""
    return values[:, :tokens].clone()  # the backward pass of a gather would copy once more while it is traced
