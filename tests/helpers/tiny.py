"""Make a tiny, random Janus checkpoint in the hub's layout, in code.

4 x 4 tokens, 32 codes, 8 x 8 pixels, a word-level tokenizer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewards.models.torchvision_mend import mend

WORDS = "a an and photo of one two red green blue white circle square star left right above below no text".split()
SPECIAL = {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>", "unk": "<unk>"}
IMAGE = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}

#: As Janus-Pro's template does, it frames the text in roles and drops everything else.
CHAT_TEMPLATE = "{% for m in messages %}photo of {% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %} and"


def tokenizer() -> Any:
    """Word-level `PreTrainedTokenizerFast` that puts BOS first, pads on the left."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *IMAGE.values(), *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bos = SPECIAL["bos"]
    backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
    names = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, extra_special_tokens=IMAGE, padding_side="left")


def processor(*, grid: int = 4, chat_template: str | None = None) -> Any:
    from transformers import JanusImageProcessor, JanusProcessor

    image_processor = JanusImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": 2 * grid, "width": 2 * grid}, min_size=2
    )
    return JanusProcessor(image_processor, tokenizer(), chat_template=chat_template, num_image_tokens=grid * grid)


def model(
    *,
    grid: int = 4,
    codebook: int = 32,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
) -> Any:
    """A `JanusForConditionalGeneration` with grouped-query attention, whose logits are far from uniform.

    Leaves the global generator as it was.
    """
    from transformers import (
        GenerationConfig,
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
    )

    words = tokenizer()
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=grid * grid + 64,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=2 * grid,
        patch_size=2,
        projection_dim=width,
        num_image_tokens=grid * grid,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=codebook,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        projection_dim=width,
        image_token_embed_dim=width,
    )
    config = JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=words.convert_tokens_to_ids(IMAGE["image_token"]),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        result = JanusForConditionalGeneration(config).eval()
        for name, parameter in result.named_parameters():
            if parameter.dim() == 2 and ("language_model" in name or "generation_" in name):
                nn.init.normal_(parameter, std=1.2 / math.sqrt(parameter.shape[1]))
    boi = words.convert_tokens_to_ids(IMAGE["boi_token"])
    result.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        generation_kwargs={"boi_token_id": boi},
    )
    return result


def checkpoint(path: Path, *, chat_template: str | None = None, **options: Any) -> Path:
    """Write model and processor to a folder and return it. `options` go to `model`."""
    mend()
    model(**options).save_pretrained(path)
    processor(grid=options.get("grid", 4), chat_template=chat_template).save_pretrained(path)
    return path
