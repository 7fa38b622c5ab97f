"""aMUSEd (2401.01808) of diffusers as an `ImageGenerator`: a masked generator in the manner of MaskGIT and Muse.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, T = rows * columns tokens, N sampling steps, V codebook, H, W pixels.
Only the transformer is trained; the text encoder and VQ model are frozen.

`token_logprobs` are taken in the state in which a token was committed: so it has one under the prompt and one under the negative prompt,
like a token of an autoregressive generator. What is trained may be another row of `likelihoods.POLICIES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from t2i_gcpo.generators import deltas
from t2i_gcpo.generators.amused.likelihoods import passes, resolve
from t2i_gcpo.generators.amused.parts import AmusedParts, TextEncoder
from t2i_gcpo.generators.amused.sampler import StepSampler
from t2i_gcpo.generators.amused.scorer import StateScorer
from t2i_gcpo.generators.base import (
    Distribution,
    Negative,
    TrainingScores,
    as_negatives,
    as_prompts,
    check_tokens,
    in_chunks,
    seeded,
)
from t2i_gcpo.generators.checkpoints import Checkpoint, locate
from t2i_gcpo.generators.compilation import Compilation, batches
from t2i_gcpo.generators.decoding import DecodeDtype, check_decode_dtype, decoding
from t2i_gcpo.generators.policy_weights import PolicyWeights
from t2i_gcpo.generators.tokens.branches import Drawn
from t2i_gcpo.records import Prompt, Rollout, Sampling

#: The attention projections and feed-forward layers of a `UVit2DModel`.
UVIT_TARGETS: tuple[str, ...] = (
    "to_q",
    "to_k",
    "to_v",
    r"to_out\.0",
    "wi_0",
    "wi_1",
    "wo",
    r"ff\.net\.0\.proj",
    r"ff\.net\.2",
)


class Amused:
    """See `generators.base.ImageGenerator` for the methods' contracts; how tokens are unmasked stands in `Sampling.unmasking`."""

    kind = "amused"
    masked = True
    """Takes the options `masked_policy`, `masked_passes` and `fold_passes`."""

    def __init__(
        self,
        parts: AmusedParts,
        *,
        base: Checkpoint | None = None,
        max_batch: int | None = None,
        compile: bool | Literal["auto"] = "auto",
        gradient_checkpointing: bool = True,
        decode_dtype: DecodeDtype = "auto",
        masked_policy: str = "commit_step",
        masked_passes: int = 0,
        fold_passes: bool = False,
    ) -> None:
        """
        max_batch: rows sampled or decoded at once (None: all); images do not depend on it beyond rounding.
        compile: whether the sampling step is compiled. "auto" compiles where torch can and it pays; see `Compilation`.
        gradient_checkpointing: keep the activations of one forward pass at a time in the backward pass, and compute those of the others
            again. Off: the activations of all passes, one a sampling step, exist at once.
        decode_dtype: precision of the image decoder; see `decoding`.
        masked_policy: a row of `likelihoods.POLICIES`: whose log-probs `training_scores` gives.
        masked_passes: forward passes of an update; see `likelihoods.passes`. 0: as many as the policy says.
        fold_passes: score all passes in one batch, whose activations then exist at once.
        ValueError: an unknown policy, or both gradient_checkpointing and fold_passes.
        """
        if fold_passes and gradient_checkpointing:
            raise ValueError(
                "fold_passes holds the activations of all passes at once, and gradient_checkpointing those of one; set one of the two"
            )
        check_decode_dtype(decode_dtype)
        self.decode_dtype = decode_dtype
        self.parts = parts.eval()
        self.compiles = Compilation(compile, parts.text_encoder.device)
        self.base, self.max_batch = base, max_batch
        self.grid = parts.grid
        self.codebook_size = int(parts.transformer.config.codebook_size)
        self.weights = PolicyWeights(parts, "transformer")
        self.texts = TextEncoder(parts)
        self.masked_policy, self.masked_passes = resolve(masked_policy), masked_passes
        self.sampler = StepSampler(parts, self.texts, with_gain=self.masked_policy.name == "key_steps")
        self.scorer = StateScorer(
            parts,
            self.texts,
            self.weights,
            masked_policy=self.masked_policy,
            masked_passes=masked_passes,
            gradient_checkpointing=gradient_checkpointing,
            fold_passes=fold_passes,
        )

    # -- loading and saving --------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        **options: Any,
    ) -> Amused:
        """As `generators.load`, for a checkpoint known to be aMUSEd. `options` go to `__init__`."""
        checkpoint = locate(str(name_or_path), revision=revision)
        return cls.from_checkpoint(checkpoint, device=torch.device(device), dtype=dtype, **options)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, **options: Any
    ) -> Amused:
        generator = cls(AmusedParts.load(checkpoint.folder, dtype).to(device), base=checkpoint, **options)
        if checkpoint.delta is not None:
            deltas.apply(generator.policy, checkpoint.delta, checkpoint.folder)
        if checkpoint.adapter is not None:
            generator.weights.load_lora(checkpoint.adapter, device)
        return generator

    def save(self, path: str | Path) -> None:
        """A folder in diffusers' layout; with LoRA an adapter folder that names its base."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        if self.weights.peft is None:
            self.parts.save(path)
        elif self.base is None:
            raise ValueError(
                "a LoRA adapter needs the name of its base: load the model with generators.load, or merge_lora() first"
            )
        else:
            self.weights.save_lora(path, base=self.base.name, revision=self.base.revision)

    # -- the trained weights -------------------------------------------------------------------------------------------

    @property
    def policy(self) -> nn.Module:
        """The transformer. Set it to a wrapper of the same module (DDP) to train through that."""
        return self.weights.module

    @policy.setter
    def policy(self, module: nn.Module) -> None:
        self.weights.module = module

    @property
    def device(self) -> torch.device:
        return self.parts.text_encoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.text_encoder.dtype

    def trainable_parameters(self) -> list[nn.Parameter]:
        return self.weights.trainable_parameters()

    def add_lora(
        self, rank: int = 16, alpha: float = 32.0, *, targets: Sequence[str] = UVIT_TARGETS, seed: int = 0
    ) -> None:
        """Train LoRA adapters on the transformer's projections. Does nothing if a loaded adapter has the same shape."""
        self.weights.add_lora(rank, alpha, targets, seed)

    def merge_lora(self) -> None:
        self.weights.merge_lora()

    def keep_reference(self) -> None:
        self.weights.keep_reference()

    def reference(self) -> AbstractContextManager[None]:
        return self.weights.reference()

    # -- sampling ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt | str],
        sampling: Sampling,
        *,
        rng: torch.Generator | None = None,
        first_prompt_index: int = 0,
        negative_prompts: Negative = None,
    ) -> Rollout:
        """P prompts -> B = P * G token grids. `logprob_negative` and the stats `exact_kl` and `js` contrast the prompt with
        `negative_prompts` (None: the null prompt); the stat `entropy` is the raw conditional distribution's. All of them are of the
        step that committed the token.

        The null prompt's branch runs if guidance is not 1 or a stat needs it, and `logprob_negative` is then free. A negative
        text costs N forward passes without gradient, or a third branch if a stat needs it.
        ValueError: more steps than tokens, or a plan of unmasking that the masked policy does not go with.
        """
        prompts = as_prompts(prompts)
        negatives = as_negatives(negative_prompts, len(prompts))
        sampling = seeded(sampling, rng)
        passes(
            self.masked_policy, self.masked_passes, sampling.unmasking.steps, sampling.unmasking.order
        )  # or a ValueError
        rows = [(prompt, image) for prompt in range(len(prompts)) for image in range(sampling.group_size)]
        drawn = self._draw(prompts, negatives, sampling, rows, first_prompt_index)
        records = drawn.records
        rollout = Rollout(
            tokens=drawn.tokens,
            logprob_positive=records.pop("positive"),
            logprob_negative=records.pop("negative", None),
            logprob_behaviour=records.pop("behaviour"),
            commit_step=records.pop("commit_step"),
            prompts=prompts,
            grid=self.grid,
            sampling=sampling,
            negative_prompts=negatives,
            stats=records,
        )
        if rollout.logprob_negative is None and sampling.contrast:
            negative = in_chunks(
                lambda part: self.token_logprobs(rollout.rows(part), prompt="negative"),
                torch.arange(rollout.batch),
                self.max_batch,
            )
            rollout = replace(rollout, logprob_negative=negative)
        return rollout

    def _draw(
        self,
        prompts: tuple[Prompt, ...],
        negatives: tuple[str, ...] | None,
        sampling: Sampling,
        rows: list[tuple[int, int]],
        first_prompt_index: int,
    ) -> Drawn:
        """All rows (prompt, image), `commit_step` among their records."""
        found = []
        with self._eval_mode() as policy:
            for batch in batches(rows, self.max_batch, self.compiles()):
                drawn = self.sampler.draw(
                    policy, prompts, negatives, sampling, batch.rows, first_prompt_index, compile=batch.compile
                )
                found.append(drawn.first(batch.asked))
        return Drawn.cat(found)

    # -- scoring -------------------------------------------------------------------------------------------------------

    def token_logprobs(
        self,
        rollout: Rollout,
        *,
        prompt: str | list[str] = "positive",
        distribution: Distribution = "conditional",
    ) -> Tensor:
        """[B, T] fp32, nats, differentiable in the policy: the log-prob of each of `rollout.tokens` in the state that committed it.

        prompt: "positive", "negative" (the rollout's negative prompts, else the null prompt), or texts, one for each prompt or row.
        distribution: "conditional", raw; "guided", the one that tokens were drawn from (guidance, temperature and truncation of
        `rollout.sampling`); "guided_detached", the same without gradient through the unconditional branch.

        N forward passes, one a step, and as many backward.
        """
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        return self.scorer.token_logprobs(rollout, prompt, distribution)

    def training_scores(self, rollout: Rollout, *, distribution: Distribution = "conditional") -> TrainingScores:
        """What an update trains: the log-probs that the masked policy makes of `rollout`, and each token's factor in the loss.

        The passes drawn depend on the rollout's seed alone: the old, the reference's and the new log-probs are of the same states.
        ValueError: a rollout or plan of unmasking that the policy does not go with.
        """
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        return self.scorer.training_scores(rollout, distribution)

    @torch.no_grad()
    def token_entropy(self, rollout: Rollout) -> Tensor:
        """[B, T] fp32, nats: the entropy of the raw conditional distribution that each of `rollout.tokens` comes from."""
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        return self.scorer.token_entropy(rollout)

    def check_prompts(self, prompts: Sequence[Prompt | str]) -> None:
        """ValueError for a prompt that is too long, or has words that the tokenizer does not know."""
        self.texts.check([prompt.text for prompt in as_prompts(prompts)])

    @contextmanager
    def _eval_mode(self) -> Iterator[nn.Module]:
        policy = self.weights.unwrapped()
        training = policy.training
        policy.eval()
        try:
            yield policy
        finally:
            policy.train(training)

    # -- images --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 -> [B, 3, H, W] uint8, on the model's device. ValueError for another T, or indices outside the codebook."""
        check_tokens(tokens, self.grid, self.codebook_size)
        channels = int(self.parts.vqvae.config.latent_channels)

        def decode_rows(part: Tensor) -> Tensor:
            grid = rearrange(part, "b (h w) -> b h w", h=self.grid[0])
            pixels = self.parts.vqvae.decode(
                grid, force_not_quantize=True, shape=(*grid.shape, channels)
            ).sample  # [0, 1]
            return (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)

        with decoding(self.decode_dtype, self.device, self.dtype):
            return in_chunks(decode_rows, tokens.to(self.device), self.max_batch)
