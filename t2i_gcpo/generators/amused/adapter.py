"""The adapter that makes aMUSEd (2401.01808) of diffusers, a masked generator like MaskGIT, an `ImageGenerator`.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, T = rows * columns tokens, N sampling steps, V
codebook, H, W pixels. Only the transformer is trained; the text encoder and VQ model are frozen.

`token_logprobs` are taken in the state in which a token was committed: so it has one under the prompt and one under the
negative prompt, like a token of an autoregressive generator. What is trained may be another row of
`likelihoods.LIKELIHOODS`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from t2i_gcpo.generators.amused import random_model
from t2i_gcpo.generators.amused.likelihoods import passes, resolve
from t2i_gcpo.generators.amused.parts import AmusedParts, TextEncoder
from t2i_gcpo.generators.amused.sampler import StepSampler
from t2i_gcpo.generators.amused.scorer import StateScorer
from t2i_gcpo.generators.base import (
    Distribution,
    Negative,
    TrainingScores,
    as_indices,
    as_negatives,
    as_prompts,
    check_tokens,
    seeded,
)
from t2i_gcpo.generators.checkpoints import Checkpoint
from t2i_gcpo.generators.compilation import CompileChoice, batches
from t2i_gcpo.generators.decoding import DecodeDtype
from t2i_gcpo.generators.merging import MergeAdapters
from t2i_gcpo.generators.random_models import RandomModel
from t2i_gcpo.generators.tokens.branches import SampledRows
from t2i_gcpo.generators.trainable import TrainableGenerator
from t2i_gcpo.records import Events, Prompt, Rollout, Sampling, Vectors

#: The attention projections and feed-forward layers of a `UVit2DModel`.
UVIT_TARGETS: tuple[str, ...] = (
    "to_q",
    "to_k",
    "to_v",
    r"to_out\.0",
    r"ff\.net\.0\.proj",
    r"ff\.net\.2",
)


class Amused(TrainableGenerator):
    """Sample, score and decode with aMUSEd; `generators.base.ImageGenerator` says what each method owes.

    How tokens are unmasked is `Sampling.unmasking`.
    """

    kind = "amused"
    masked = True
    lora_targets = UVIT_TARGETS

    def __init__(
        self,
        parts: AmusedParts,
        *,
        base: Checkpoint | None = None,
        max_batch: int | None = None,
        compile: CompileChoice = "auto",
        gradient_checkpointing: bool = True,
        decode_dtype: DecodeDtype = "auto",
        merge_adapters: MergeAdapters = "auto",
        masked_policy: str = "commit_step",
        masked_passes: int = 0,
        fold_passes: bool = False,
    ) -> None:
        """Take the parts of a checkpoint and choose what of an image is trained, and at which cost.

        max_batch: rows sampled or decoded at once (None: all); images do not depend on it beyond rounding.
        compile: whether the sampling step is compiled. "auto" compiles where torch can and it pays, "graphs" also
            records Janus' step as a CUDA graph; see `Compilation`.
        gradient_checkpointing: keep the activations of one forward pass at a time in the backward pass, and compute
            those of
            the others again. Off: the activations of all passes, one a sampling step, exist at once.
        decode_dtype: precision of the image decoder; see `decoding`.
        merge_adapters: whether LoRA adapters are in the weights while tokens are sampled; see `merging`.
        masked_policy: the likelihood whose log-probs `training_scores` gives, a row of `likelihoods.LIKELIHOODS`.
        masked_passes: forward passes of an update; see `likelihoods.passes`. 0: as many as the likelihood says.
        fold_passes: score all passes in one batch, whose activations then exist at once.
        ValueError: an unknown likelihood, or both gradient_checkpointing and fold_passes.
        """
        if fold_passes and gradient_checkpointing:
            raise ValueError(
                "fold_passes holds the activations of all passes at once, and "
                "gradient_checkpointing those of one; set one of the two"
            )
        super().__init__(
            parts,
            "transformer",
            parts.text_encoder.device,
            base=base,
            max_batch=max_batch,
            compile=compile,
            decode_dtype=decode_dtype,
            merge_adapters=merge_adapters,
        )
        self.parts = parts.eval()
        self.grid = parts.grid
        self.codebook_size = int(parts.transformer.config.codebook_size)
        self.texts = TextEncoder(parts)
        self.likelihood, self.masked_passes = resolve(masked_policy), masked_passes
        self.sampler = StepSampler(parts, self.texts, with_gain=self.likelihood.name == "key_steps")
        self.scorer = StateScorer(
            parts,
            self.texts,
            self.weights,
            likelihood=self.likelihood,
            masked_passes=masked_passes,
            gradient_checkpointing=gradient_checkpointing,
            fold_passes=fold_passes,
        )

    # -- loading and saving --------------------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, folder: Path, *, device: torch.device, dtype: torch.dtype, **options: Any) -> Amused:
        """Load the whole model in a folder of diffusers' layout. `options` go to `__init__`."""
        return cls(AmusedParts.load(folder, dtype, device), **options)

    @classmethod
    def from_random(cls, random: RandomModel, *, device: torch.device, dtype: torch.dtype, **options: Any) -> Amused:
        """Make a model of a published shape with random weights. `options` go to `__init__`."""
        return cls(random_model.build(random, device=device, dtype=dtype), **options)

    @torch.no_grad()
    def code_vectors(self, kind: Vectors) -> Tensor:
        if kind == "codebook":
            return self.parts.vqvae.quantize.embedding.weight.float()
        return self.weights.unwrapped().embed.embeddings.weight[: self.codebook_size].float()

    def save_model(self, folder: Path) -> None:
        """Write all parts in diffusers' layout."""
        parts: Any = self.weights.model
        parts.save(folder)

    def snapshot(self) -> Amused:
        twin = super().snapshot()
        parts: Any = twin.weights.model
        parts.tokenizer = self._written_tokenizer
        return twin

    @cached_property
    def _written_tokenizer(self) -> Any:
        """Copy it once, for a thread that writes while another encodes; a large vocabulary takes half a second."""
        return copy.deepcopy(self.parts.tokenizer)

    @property
    def device(self) -> torch.device:
        return self.parts.text_encoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.text_encoder.dtype

    # -- sampling ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt | str],
        sampling: Sampling,
        *,
        rng: torch.Generator | None = None,
        prompt_indices: Sequence[int] | None = None,
        negative_prompts: Negative = None,
    ) -> Rollout:
        """Sample B = P * G token grids for P prompts.

        `logprob_negative` and the stats `exact_kl` and `js` contrast the prompt with `negative_prompts` (None: the null
        prompt); the stat `entropy` is the raw conditional distribution's. All of them are of the step that committed
        the token. The null prompt's branch runs if guidance is not 1 or a stat needs it, and `logprob_negative` is then
        free. A negative text costs N forward passes without gradient, or a third branch if a stat needs it.

        ValueError: more steps than tokens, or a plan of unmasking that the likelihood does not go with.
        """
        prompts = as_prompts(prompts)
        negatives = as_negatives(negative_prompts, len(prompts))
        sampling = seeded(sampling, rng)
        passes(
            self.likelihood, self.masked_passes, sampling.unmasking.steps, sampling.unmasking.order
        )  # or a ValueError
        rows = [(prompt, image) for prompt in range(len(prompts)) for image in range(sampling.group_size)]
        sampled = self._sample_rows(prompts, negatives, sampling, rows, as_indices(prompt_indices, len(prompts)))
        return self.as_rollout(sampled, prompts, negatives, sampling)

    def _sample_rows(
        self,
        prompts: tuple[Prompt, ...],
        negatives: tuple[str, ...] | None,
        sampling: Sampling,
        rows: list[tuple[int, int]],
        prompt_indices: Sequence[int],
    ) -> SampledRows:
        """Sample all rows (prompt, image), in batches."""
        parts = []
        with self.eval_mode() as policy:
            for batch in batches(rows, self.max_batch, self.compiles(), self.compiles.usual_rows):
                part = self.sampler.draw(
                    policy, prompts, negatives, sampling, batch.rows, prompt_indices, compile=batch.compile
                )
                parts.append(part.first(batch.asked))
        return SampledRows.cat(parts)

    # -- scoring -------------------------------------------------------------------------------------------------------

    def token_logprobs(
        self,
        rollout: Rollout,
        *,
        prompt: str | list[str] = "positive",
        distribution: Distribution = "conditional",
    ) -> Tensor:
        """Compute the log-prob [B, T] fp32, nats, of each token in the state that committed it, with gradient.

        prompt: "positive", "negative" (the rollout's negative prompts, else the null prompt), or texts, one for each
            prompt or row.
        distribution: "conditional", raw; "guided", the one that tokens were drawn from (guidance, temperature and
            truncation of `rollout.sampling`); "guided_detached", the same without gradient through the unconditional
            branch.

        N forward passes, one a step, and as many backward.
        """
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        return self.scorer.token_logprobs(rollout, prompt, distribution)

    def training_scores(
        self, rollout: Rollout, *, distribution: Distribution = "conditional", events: Events | None = None
    ) -> TrainingScores:
        """Return the log-probs of `rollout` that an update trains, and each token's factor in the loss.

        The likelihood decides them. The passes drawn depend on the rollout's seed alone: the old, the reference's and
        the new log-probs are of the same states. ValueError: a rollout or plan of unmasking that the likelihood does
        not go with.
        """
        if events is not None:
            self.check_events()
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        return self.scorer.training_scores(rollout, distribution, events)

    def check_events(self) -> None:
        if self.likelihood.by_step:
            raise ValueError(
                f"masked policy {self.likelihood.name} trains the tokens of a step together, and has no events of "
                "single tokens; set algorithm.event_width to 0, or choose commit_step"
            )

    @torch.no_grad()
    def token_entropy(self, rollout: Rollout) -> Tensor:
        """Compute the entropy [B, T] fp32, nats, of the raw conditional distribution that each token comes from."""
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        return self.scorer.token_entropy(rollout)

    def check_prompts(self, prompts: Sequence[Prompt | str]) -> None:
        """Raise a ValueError for a prompt that is too long, or has words that the tokenizer does not know."""
        self.texts.check([prompt.text for prompt in as_prompts(prompts)])

    # -- images --------------------------------------------------------------------------------------------------------

    def decode_rows(self, tokens: Tensor) -> Tensor:
        """Decode a batch of rows: valid tokens [b, T] on the model's device -> [b, 3, H, W] uint8."""
        channels = int(self.parts.vqvae.config.latent_channels)
        grid = rearrange(tokens, "b (h w) -> b h w", h=self.grid[0])
        # In [0, 1].
        pixels = self.parts.vqvae.decode(grid, force_not_quantize=True, shape=(*grid.shape, channels)).sample
        return (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
