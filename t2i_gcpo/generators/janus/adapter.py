"""The adapter that makes Janus and Janus-Pro (2410.13848, 2501.17811) of transformers an `ImageGenerator`.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, L columns of prompt, T = rows * columns tokens, V
codebook, D hidden width, H, W pixels. Only `model.language_model` is trained; the generation head, embeddings and VQ
model are frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from rewards.models.torchvision_mend import mend
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
from t2i_gcpo.generators.compilation import CompileChoice
from t2i_gcpo.generators.decoding import DecodeDtype
from t2i_gcpo.generators.integrity import load_model, load_part
from t2i_gcpo.generators.janus import random_model
from t2i_gcpo.generators.janus.batching import RowSampler
from t2i_gcpo.generators.janus.head import Fp32Head
from t2i_gcpo.generators.janus.prompts import PromptEncoder
from t2i_gcpo.generators.janus.sampler import StepSampler
from t2i_gcpo.generators.janus.scorer import RowScorer
from t2i_gcpo.generators.merging import MergeAdapters
from t2i_gcpo.generators.policy_weights import LLAMA_TARGETS
from t2i_gcpo.generators.random_models import RandomModel
from t2i_gcpo.generators.tokens.logprobs import DEFAULT_CHUNK
from t2i_gcpo.generators.trainable import TrainableGenerator
from t2i_gcpo.records import Events, Prompt, Rollout, Sampling, Vectors

#: Images decoded at once on a CPU.
DECODE_ROWS_CPU = 8
#: Images that go on at once at most, on a CPU and elsewhere: of fewer, more have the same beginning.
ON_ROWS_CPU, ON_ROWS = 48, 256


class Janus(TrainableGenerator):
    """Sample, score and decode with Janus; `generators.base.ImageGenerator` says what each method owes."""

    kind = "janus"
    lora_targets = LLAMA_TARGETS

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        base: Checkpoint | None = None,
        max_batch: int | None = None,
        compile: CompileChoice = "auto",
        head_chunk: int = DEFAULT_CHUNK,
        gradient_checkpointing: bool = False,
        decode_dtype: DecodeDtype = "auto",
        merge_adapters: MergeAdapters = "auto",
    ) -> None:
        """Take a `JanusForConditionalGeneration` and its `JanusProcessor`.

        max_batch: rows sampled or decoded at once (None: all); results do not depend on it beyond rounding.
        compile: whether the sampling step is compiled. "auto" compiles where torch can and it pays, "graphs" also
            records Janus' step as a CUDA graph; see `Compilation`.
        head_chunk: tokens whose logits exist at once when tokens are scored.
        gradient_checkpointing: compute the language model's activations again in the backward pass, for less memory.
        decode_dtype: precision of the image decoder; see `decoding`.
        merge_adapters: whether LoRA adapters are in the weights while tokens are sampled; see `merging`.
        """
        device = next(model.model.language_model.parameters()).device
        super().__init__(
            model,
            "model.language_model",
            device,
            base=base,
            max_batch=max_batch,
            compile=compile,
            decode_dtype=decode_dtype,
            merge_adapters=merge_adapters,
        )
        self.model = model.eval()
        model.model.vqmodel.to(memory_format=torch.channels_last)  # what convolutions are fast in
        self.processor = processor
        self.gradient_checkpointing = gradient_checkpointing
        side = int(model.config.vq_config.num_patches)
        self.grid = (side, side)
        self.codebook_size = int(model.config.vq_config.num_embeddings)
        self.prompts = PromptEncoder(processor, device)
        self.head = Fp32Head(model)
        self.scorer = RowScorer(model, self.prompts, self.weights, self.head, head_chunk=head_chunk)
        self.sampler = RowSampler(self.prompts, StepSampler(model, self.head, side * side, device))
        self.sampler.steps.graphs = compile == "graphs"
        if gradient_checkpointing:
            # Active in train mode only, which `token_logprobs` switches to: so no other train-mode behaviour may
            # differ.
            if model.config.text_config.attention_dropout:
                raise ValueError(
                    "gradient checkpointing needs a model without attention dropout (text_config.attention_dropout = 0)"
                )
            self.weights.checkpoint_activations()

    # -- loading and saving --------------------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, folder: Path, *, device: torch.device, dtype: torch.dtype, **options: Any) -> Janus:
        """Load the whole model in a folder of the hub's layout. `options` go to `__init__`."""
        mend()  # transformers imports torchvision
        from transformers import JanusForConditionalGeneration, JanusProcessor

        model = load_model(JanusForConditionalGeneration, folder, dtype=dtype, device=device)
        processor = load_part(JanusProcessor, folder)
        return cls(place(model, device), processor, **options)

    @classmethod
    def from_random(cls, random: RandomModel, *, device: torch.device, dtype: torch.dtype, **options: Any) -> Janus:
        """Make a model of a published shape with random weights. `options` go to `__init__`."""
        model, processor = random_model.build(random, device=device, dtype=dtype)
        return cls(place(model, device), processor, **options)

    def save_model(self, folder: Path) -> None:
        """Write model and processor in the hub's layout."""
        model: Any = self.weights.model
        with Fp32Head.in_dtype_of(model):
            model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def snapshot(self) -> Janus:
        twin = super().snapshot()
        twin.processor = self._written_processor
        return twin

    @cached_property
    def _written_processor(self) -> Any:
        """Copy it once, for a thread that writes while another encodes; a large vocabulary takes half a second."""
        return copy.deepcopy(self.processor)

    @property
    def device(self) -> torch.device:
        return self.prompts.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

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
        prompt); the stat `entropy` is the raw conditional distribution's. The null prompt's branch runs if guidance is
        not 1 or a stat needs it, and `logprob_negative` is then free. A negative text costs one teacher-forced forward
        pass, or a third branch if a stat needs it.
        """
        prompts = as_prompts(prompts)
        negatives = as_negatives(negative_prompts, len(prompts))
        sampling = seeded(sampling, rng)
        with self.eval_mode() as policy:
            rows = self.sampler.draw(
                policy,
                [prompt.text for prompt in prompts],
                negatives,
                sampling,
                prompt_indices=as_indices(prompt_indices, len(prompts)),
                max_batch=self.max_batch,
                compile=self.compiles(),
                usual=self.compiles.usual_rows,
            )
        return self.as_rollout(rows, prompts, negatives, sampling)

    # -- scoring -------------------------------------------------------------------------------------------------------

    def token_logprobs(
        self,
        rollout: Rollout,
        *,
        prompt: str | list[str] = "positive",
        distribution: Distribution = "conditional",
    ) -> Tensor:
        """Compute the log-probs [B, T] fp32, nats, of the tokens, teacher-forced and differentiable in the policy.

        prompt: "positive", "negative" (the rollout's negative prompts, else the null prompt), or texts, one for each
            prompt or row.
        distribution: "conditional", raw; "guided", the one that tokens were drawn from (guidance, temperature and
            truncation of `rollout.sampling`); "guided_detached", the same without gradient through the unconditional
            branch.
        """
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        with self._train_mode():
            return self.scorer.token_logprobs(rollout, prompt, distribution)

    def training_scores(
        self, rollout: Rollout, *, distribution: Distribution = "conditional", events: Events | None = None
    ) -> TrainingScores:
        if events is None:
            return super().training_scores(rollout, distribution=distribution)
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        with self._train_mode():
            event, token = self.scorer.event_scores(rollout, distribution, events)
        return TrainingScores(event, token_logprob=token)

    def check_events(self) -> None:
        """Events are there whatever the rollout is."""

    @torch.no_grad()
    def token_entropy(self, rollout: Rollout) -> Tensor:
        """Compute the entropy [B, T] fp32, nats, of the raw conditional distribution that each token comes from."""
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        with self._train_mode():
            return self.scorer.token_entropy(rollout)

    @torch.no_grad()
    def code_vectors(self, kind: Vectors) -> Tensor:
        if kind == "codebook":
            return self.model.model.vqmodel.quantize.embedding.weight.float()
        every = torch.arange(self.codebook_size, device=self.device)
        return rearrange(self.model.prepare_embeddings_for_image_generation(every[None]).float(), "1 v d -> v d")

    def redraw(self, rollout: Rollout, uniform: Tensor) -> Tensor:
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        parts = torch.arange(rollout.batch).split(self.max_batch or rollout.batch)
        with self.eval_mode():
            return torch.cat(
                [self.scorer.redraw(rollout.rows(part), uniform[part.to(uniform.device)]) for part in parts]
            )

    @torch.no_grad()
    def sample_on(self, rollout: Rollout, rows: Tensor, begun: Tensor, keys: Tensor) -> Tensor:
        check_tokens(begun.clamp(min=0), self.grid, self.codebook_size)
        texts = [prompt.text for prompt in rollout.row_prompts]
        most = ON_ROWS_CPU if self.device.type == "cpu" else ON_ROWS
        with self.eval_mode() as policy:
            return self.sampler.draw_on(
                policy,
                [texts[row] for row in rows.tolist()],
                begun,
                keys,
                replace(rollout.sampling, group_size=1, contrast=False, stats=()),
                max_batch=min(self.max_batch or most, most),
                compile=self.compiles(),
            )

    def check_prompts(self, prompts: Sequence[Prompt | str]) -> None:
        """Raise a ValueError that names the words of the prompts that the tokenizer does not know, if there are any."""
        self.prompts.encode([prompt.text for prompt in as_prompts(prompts)])

    @contextmanager
    def _train_mode(self) -> Iterator[None]:
        """Put the policy into train mode if activations are checkpointed, which works there alone."""
        policy = self.weights.module
        training = policy.training
        policy.train(self.gradient_checkpointing and torch.is_grad_enabled())
        try:
            yield
        finally:
            policy.train(training)

    # -- images --------------------------------------------------------------------------------------------------------

    @property
    def decode_batch(self) -> int | None:
        """The number of rows decoded at once: on a CPU the activations of a few images stay in the cache."""
        return DECODE_ROWS_CPU if self.device.type == "cpu" else self.max_batch

    def decode_rows(self, tokens: Tensor) -> Tensor:
        """Decode a batch of rows: valid tokens [b, T] on the model's device -> [b, 3, H, W] uint8."""
        pixels = self.model.decode_image_tokens(tokens)  # about [-1, 1], unclamped
        return ((rearrange(pixels, "b h w c -> b c h w").float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def place(model: Any, device: torch.device) -> Any:
    """Move a `JanusForConditionalGeneration` to the device, but for the parts that read images and write text.

    Those are never run here, and are kept in the host's memory to be saved with the rest.
    """
    text_head = model.lm_head.weight is model.model.language_model.get_input_embeddings().weight
    idle = {id(part) for part in (model.model.vision_model, model.model.aligner)}
    idle |= set() if text_head else {id(model.lm_head)}
    for name, part in [*model.named_children(), *model.model.named_children()]:
        if name != "model":
            part.to("cpu" if id(part) in idle else device)
    return model
