"""Janus and Janus-Pro (2410.13848, 2501.17811) of transformers as an `ImageGenerator`.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, L columns of prompt, T = rows * columns tokens, V codebook, D
hidden width, H, W pixels. Only `model.language_model` is trained; the generation head, embeddings and VQ model are frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from rewards.models.torchvision_mend import mend
from t2i_gcpo.generators import deltas
from t2i_gcpo.generators.base import (
    Distribution,
    Negative,
    as_negatives,
    as_prompts,
    check_tokens,
    in_chunks,
    seeded,
)
from t2i_gcpo.generators.checkpoints import Checkpoint, locate
from t2i_gcpo.generators.compilation import Compilation
from t2i_gcpo.generators.decoding import DecodeDtype, check_decode_dtype, decoding
from t2i_gcpo.generators.janus.batching import RowSampler
from t2i_gcpo.generators.janus.prompts import PromptEncoder
from t2i_gcpo.generators.janus.sampler import StepSampler
from t2i_gcpo.generators.janus.scorer import RowScorer
from t2i_gcpo.generators.policy_weights import LLAMA_TARGETS, PolicyWeights
from t2i_gcpo.generators.tokens.logprobs import DEFAULT_CHUNK
from t2i_gcpo.records import Prompt, Rollout, Sampling

#: Images decoded at once on a CPU.
DECODE_ROWS_CPU = 8


class Janus:
    """See `generators.base.ImageGenerator` for the methods' contracts."""

    kind = "janus"

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        base: Checkpoint | None = None,
        max_batch: int | None = None,
        compile: bool | Literal["auto"] = "auto",
        head_chunk: int = DEFAULT_CHUNK,
        gradient_checkpointing: bool = False,
        decode_dtype: DecodeDtype = "auto",
    ) -> None:
        """`model` is a `JanusForConditionalGeneration`, `processor` its `JanusProcessor`.

        max_batch: rows sampled or decoded at once (None: all); results do not depend on it beyond rounding.
        compile: whether the sampling step is compiled. "auto" compiles where torch can and it pays; see `Compilation`.
        head_chunk: tokens whose logits exist at once when tokens are scored.
        gradient_checkpointing: compute the language model's activations again in the backward pass, for less memory.
        decode_dtype: precision of the image decoder; see `decoding`.
        """
        self.compiles = Compilation(compile, model.device)
        self.model = model.eval()
        model.model.vqmodel.to(memory_format=torch.channels_last)  # what convolutions are fast in
        self.processor = processor
        self.base = base
        self.max_batch = max_batch
        self.gradient_checkpointing = gradient_checkpointing
        check_decode_dtype(decode_dtype)
        self.decode_dtype = decode_dtype
        side = int(model.config.vq_config.num_patches)
        self.grid = (side, side)
        self.codebook_size = int(model.config.vq_config.num_embeddings)
        self.weights = PolicyWeights(model, "model.language_model")
        self.prompts = PromptEncoder(processor, model.device)
        self.scorer = RowScorer(model, self.prompts, self.weights, head_chunk=head_chunk)
        self.sampler = RowSampler(self.prompts, StepSampler(model, side * side))
        if gradient_checkpointing:
            # Active in train mode only, which `token_logprobs` switches to: so no other train-mode behaviour may differ.
            if model.config.text_config.attention_dropout:
                raise ValueError(
                    "gradient checkpointing needs a model without attention dropout (text_config.attention_dropout = 0)"
                )
            self.weights.checkpoint_activations()

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
    ) -> Janus:
        """As `generators.load`, for a checkpoint known to be Janus. `options` go to `__init__`."""
        checkpoint = locate(str(name_or_path), revision=revision)
        return cls.from_checkpoint(checkpoint, device=torch.device(device), dtype=dtype, **options)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, **options: Any
    ) -> Janus:
        mend()  # transformers imports torchvision
        from transformers import JanusForConditionalGeneration, JanusProcessor

        model: Any = JanusForConditionalGeneration.from_pretrained(
            checkpoint.folder, dtype=dtype, local_files_only=True
        )
        processor = JanusProcessor.from_pretrained(checkpoint.folder, local_files_only=True)
        generator = cls(model.to(device), processor, base=checkpoint, **options)
        if checkpoint.delta is not None:
            deltas.apply(generator.policy, checkpoint.delta, checkpoint.folder)
        if checkpoint.adapter is not None:
            generator.weights.load_lora(checkpoint.adapter, device)
        return generator

    def save(self, path: str | Path) -> None:
        """A folder in the hub's layout; with LoRA an adapter folder that names its base."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        if self.weights.peft is None:
            self.model.save_pretrained(path)
            self.processor.save_pretrained(path)
        elif self.base is None:
            raise ValueError(
                "a LoRA adapter needs the name of its base: load the model with generators.load, or merge_lora() first"
            )
        else:
            self.weights.save_lora(path, base=self.base.name, revision=self.base.revision)

    # -- the trained weights -------------------------------------------------------------------------------------------

    @property
    def policy(self) -> nn.Module:
        """The language model. Set it to a wrapper of the same module (DDP) to train through that."""
        return self.weights.module

    @policy.setter
    def policy(self, module: nn.Module) -> None:
        self.weights.module = module

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def trainable_parameters(self) -> list[nn.Parameter]:
        return self.weights.trainable_parameters()

    def add_lora(
        self, rank: int = 16, alpha: float = 32.0, *, targets: Sequence[str] = LLAMA_TARGETS, seed: int = 0
    ) -> None:
        """Train LoRA adapters on the language model's projections. Does nothing if a loaded adapter has the same shape."""
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
        `negative_prompts` (None: the null prompt); the stat `entropy` is the raw conditional distribution's.

        The null prompt's branch runs if guidance is not 1 or a stat needs it, and `logprob_negative` is then free. A negative
        text costs one teacher-forced forward pass, or a third branch if a stat needs it.
        """
        prompts = as_prompts(prompts)
        negatives = as_negatives(negative_prompts, len(prompts))
        sampling = seeded(sampling, rng)
        with self._eval_mode() as policy:
            drawn = self.sampler.draw(
                policy,
                [prompt.text for prompt in prompts],
                negatives,
                sampling,
                first_prompt_index=first_prompt_index,
                max_batch=self.max_batch,
                compile=self.compiles(),
            )
        tokens, records = drawn.tokens, dict(drawn.records)
        rollout = Rollout(
            tokens=tokens,
            logprob_positive=records.pop("positive"),
            logprob_negative=records.pop("negative", None),
            logprob_behaviour=records.pop("behaviour"),
            commit_step=repeat(torch.arange(tokens.shape[1], device=self.device), "t -> b t", b=len(tokens)).clone(),
            prompts=prompts,
            grid=self.grid,
            sampling=sampling,
            negative_prompts=negatives,
            stats=records,
        )
        if rollout.logprob_negative is None and sampling.contrast:
            index = torch.arange(rollout.batch)
            negative = in_chunks(
                lambda part: self.token_logprobs(rollout.rows(part), prompt="negative"), index, self.max_batch
            )
            rollout = replace(rollout, logprob_negative=negative)
        return rollout

    # -- scoring -------------------------------------------------------------------------------------------------------

    def token_logprobs(
        self,
        rollout: Rollout,
        *,
        prompt: str | list[str] = "positive",
        distribution: Distribution = "conditional",
    ) -> Tensor:
        """[B, T] fp32, nats, differentiable in the policy: the log-probs of `rollout.tokens`, teacher-forced.

        prompt: "positive", "negative" (the rollout's negative prompts, else the null prompt), or texts, one for each prompt or row.
        distribution: "conditional", raw; "guided", the one that tokens were drawn from (guidance, temperature and truncation of
        `rollout.sampling`); "guided_detached", the same without gradient through the unconditional branch.
        """
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        with self._train_mode():
            return self.scorer.token_logprobs(rollout, prompt, distribution)

    @torch.no_grad()
    def token_entropy(self, rollout: Rollout) -> Tensor:
        """[B, T] fp32, nats: the entropy of the raw conditional distribution that each of `rollout.tokens` comes from."""
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        with self._train_mode():
            return self.scorer.token_entropy(rollout)

    def check_prompts(self, prompts: Sequence[Prompt | str]) -> None:
        """ValueError, naming them, where the tokenizer does not know words of the prompts."""
        self.prompts.encode([prompt.text for prompt in as_prompts(prompts)])

    @contextmanager
    def _eval_mode(self) -> Iterator[nn.Module]:
        """The unwrapped policy for sampling: in train mode gradient checkpointing drops the cache, in silence."""
        policy = self.weights.unwrapped()
        training = policy.training
        policy.eval()
        try:
            yield policy
        finally:
            policy.train(training)

    @contextmanager
    def _train_mode(self) -> Iterator[None]:
        """The policy for scoring. Gradient checkpointing works in train mode only; it differs in nothing else."""
        policy = self.weights.module
        training = policy.training
        policy.train(self.gradient_checkpointing and torch.is_grad_enabled())
        try:
            yield
        finally:
            policy.train(training)

    # -- images --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 -> [B, 3, H, W] uint8, on the model's device. ValueError for another T, or indices outside the codebook."""
        check_tokens(tokens, self.grid, self.codebook_size)

        def decode_rows(part: Tensor) -> Tensor:
            pixels = self.model.decode_image_tokens(part)  # about [-1, 1], unclamped
            return ((rearrange(pixels, "b h w c -> b c h w").float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

        # On a CPU the activations of a few images stay in the cache.
        rows = DECODE_ROWS_CPU if self.device.type == "cpu" else self.max_batch
        with decoding(self.decode_dtype, self.device, self.dtype):
            return in_chunks(decode_rows, tokens.to(self.device), rows)
