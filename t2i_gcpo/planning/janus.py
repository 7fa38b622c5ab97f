"""Janus on the meta device: what its passes hold and compute.

b rows, L columns of prompt, T tokens, D hidden width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewards.models.torchvision_mend import mend
from t2i_gcpo.generators.integrity import load_part
from t2i_gcpo.generators.janus import random_model
from t2i_gcpo.generators.janus.head import Fp32Head
from t2i_gcpo.generators.janus.kv_cache import buffer_columns
from t2i_gcpo.generators.janus.sampler import WIDTH_MULTIPLE
from t2i_gcpo.generators.policy_weights import LLAMA_TARGETS
from t2i_gcpo.generators.random_models import fresh_weights
from t2i_gcpo.generators.tokens.logprobs import token_logprob
from t2i_gcpo.planning.models import (
    DRAWING,
    PassOptions,
    PlannedModel,
    adapted_layers,
    branch_values,
    count,
    rows_of_whole_chunks,
    tensor_sizes,
    trained,
)
from t2i_gcpo.planning.sources import Source
from t2i_gcpo.planning.trace import META, Trace, trace

POLICY = "model.language_model"


class PlannedJanus(PlannedModel):
    """Holds Janus' sizes, and makes the model on the meta device at the depth that is asked for."""

    chunked_head = True

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        super().__init__()
        self.source, self.dtype = source, dtype
        self.config = self._config()
        text, model = self.config.text_config, self._model(self.config.text_config.num_hidden_layers)
        self.layers, self.codebook = text.num_hidden_layers, int(self.config.vq_config.num_embeddings)
        self.tokens = int(self.config.vq_config.num_patches) ** 2
        self.heads, self.head = text.num_key_value_heads, text.head_dim or text.hidden_size // text.num_attention_heads
        policy = model.get_submodule(POLICY)
        self.policy, self.sizes = count(policy), tensor_sizes(policy)
        self.words = count(policy.get_input_embeddings())
        self.adapted = adapted_layers(policy, LLAMA_TARGETS)
        inner = model.model
        self.frozen = {
            "image decoder and encoder": count(inner.vqmodel),
            "vision tower": count(inner.vision_model) + count(inner.aligner),
            "image embeddings and head": count(inner.generation_embeddings)
            + count(inner.generation_aligner)
            + count(inner.generation_head),
            "word head": 0 if model.lm_head.weight is policy.get_input_embeddings().weight else count(model.lm_head),
        }
        self.image_head = self.fp32 = count(inner.generation_head)
        self.idle = ("vision tower", "word head")

    def _config(self) -> Any:
        mend()  # transformers imports torchvision
        from transformers import JanusConfig

        if self.source.folder is not None:
            return JanusConfig.from_pretrained(self.source.folder, local_files_only=True, trust_remote_code=False)
        if self.source.random is not None:
            return random_model.config(self.source.random, random_model.byte_processor().tokenizer)
        raise ValueError(f"{self.source.note}: there is no configuration to plan with")

    def _model(self, layers: int) -> Any:
        from transformers import JanusForConditionalGeneration

        self.config.text_config.num_hidden_layers = layers
        with fresh_weights(META, self.dtype, 0):
            return JanusForConditionalGeneration(self.config).eval()

    # -- the update ----------------------------------------------------------------------------------------------------

    def update(self, rows: int, options: PassOptions) -> Trace:
        return self._traced(rows, options, True)

    def score(self, rows: int, options: PassOptions) -> Trace:
        return self._traced(rows, options, False)

    def _traced(self, rows: int, options: PassOptions, backward: bool) -> Trace:
        at = rows_of_whole_chunks(self.tokens, options.head_chunk)
        return self.along((options, backward), rows, self.layers, partial(self._pass, options, backward), at)

    def _pass(self, options: PassOptions, backward: bool, rows: int, layers: int) -> Trace:
        model = self._model(layers)
        weights = trained(model, POLICY, LLAMA_TARGETS, options)
        if options.gradient_checkpointing:
            weights.checkpoint_activations()
        head = Fp32Head(model)
        policy: Any = weights.module.train(options.gradient_checkpointing and backward)
        width, length = options.prompt_columns, options.prompt_columns + self.tokens - 1

        def hidden(branch_rows: int) -> Tensor:
            ids = torch.zeros(branch_rows, width, dtype=torch.long, device=META)
            tokens = torch.zeros(branch_rows, self.tokens - 1, dtype=torch.long, device=META)
            words = policy.get_input_embeddings()(ids)
            embeds = torch.cat([words, model.prepare_embeddings_for_image_generation(tokens)], dim=1)
            # A mask as transformers makes it of rows with padding: one for all heads.
            mask = torch.ones(branch_rows, 1, length, length, dtype=torch.bool, device=META)
            positions = torch.zeros(branch_rows, length, dtype=torch.long, device=META)
            output = policy(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
            return output.last_hidden_state[:, -self.tokens :]

        def forward() -> Tensor:
            conditional, unconditional = branch_values(hidden, rows, options)
            tokens = torch.zeros(rows, self.tokens, dtype=torch.long, device=META)
            guidance = 1.0 if unconditional is None else options.guidance
            return token_logprob(
                conditional, head, tokens, unconditional=unconditional, guidance=guidance, chunk=options.head_chunk
            )

        parameters = weights.trainable_parameters()
        return trace(forward, backward=backward, parameters=parameters, codebook=self.codebook)

    # -- sampling ------------------------------------------------------------------------------------------------------

    def cache(self, folded: int, options: PassOptions, *, compiled: bool, on_cpu: bool) -> int:
        width = options.prompt_columns
        if compiled:
            width = -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        columns = buffer_columns(width - 1 + self.tokens, whole=compiled and not on_cpu)
        return self._keys_and_values(folded, columns)

    def sample(self, folded: int, prompts: int, options: PassOptions) -> int:
        prefix = self._keys_and_values(folded + prompts, options.prompt_columns - 1)  # copied from prompts to rows
        drawn = folded * self.codebook * (1 + DRAWING) * torch.float32.itemsize  # logits, and what is made of them
        return max(prefix, drawn, self._repeated(folded, options))

    def _repeated(self, folded: int, options: PassOptions) -> int:
        """Count the keys and values of one layer, repeated for the heads that share them; 0 where each has its own."""
        text = self.config.text_config
        groups = text.num_attention_heads // text.num_key_value_heads
        layer = self._keys_and_values(folded, options.prompt_columns + self.tokens) / self.layers
        return round(groups * layer) if groups > 1 else 0

    def sampling_work(self, folded: int, options: PassOptions) -> tuple[float, float]:
        read = self.policy - self.words + self.image_head  # of the words only a row a token is read
        mean = options.prompt_columns + self.tokens / 2
        scores = 4 * self.layers * self.config.text_config.hidden_size * mean
        flops = self.tokens * folded * (2 * read + scores)
        cached = self._keys_and_values(folded, 1) * mean
        once = (read - self.image_head) * self.dtype.itemsize + self.image_head * torch.float32.itemsize
        return flops, self.tokens * (once + cached)

    def _keys_and_values(self, rows: int, columns: float) -> int:
        return round(2 * self.layers * rows * self.heads * columns * self.head * self.dtype.itemsize)

    # -- images --------------------------------------------------------------------------------------------------------

    def decode(self, rows: int, options: PassOptions) -> Trace:
        model = self._model(1)

        def one(rows: int, layers: int) -> Trace:
            tokens = torch.zeros(rows, self.tokens, dtype=torch.long, device=META)
            return trace(lambda: model.decode_image_tokens(tokens), backward=False)

        return self.along("decode", rows, 1, one)


def processor(source: Source) -> Any:
    """Return the `JanusProcessor` of a source."""
    if source.folder is None:
        return random_model.byte_processor()
    mend()
    from transformers import JanusProcessor

    return load_part(JanusProcessor, source.folder)
