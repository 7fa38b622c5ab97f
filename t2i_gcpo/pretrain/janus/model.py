"""Give the embedded Janus models their shape: configs and processor of Janus, in hub layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from t2i_gcpo.data.shapes.prompts import vocabulary
from t2i_gcpo.data.shapes.scene import IMAGE_SIZE, Style

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image_placeholder>", "<begin_of_image>", "<end_of_image>")
GRID = IMAGE_SIZE // 8


@dataclass(frozen=True)
class LanguageModelShape:
    """The Llama inside; the defaults are those of `janus-mini`."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 352


@dataclass(frozen=True)
class VQSettings:
    """Says how the VQ model is trained; the defaults made `janus-mini`."""

    codebook: int = 1152
    embed_dim: int = 16
    channels: int = 32
    multiplier: tuple[int, ...] = (1, 1, 2, 4)
    kmeans_scenes: int = 6000
    crop: int = 48
    batch: int = 12
    full_batch: int = 6
    crop_steps: int = 800
    full_steps: int = 500
    lr: float = 1e-3
    muon_lr: float = 4e-3
    encoding_weight: float = 0.1
    """Weight of the encoder's loss beside the pictures'; they share the codebook's entries and nothing else."""
    temperature: float = 0.05
    """Temperature of the encoder's softmax over the codebook; its logits are inner products of unit vectors."""
    seed: int = 0
    style: Style = "plain"
    background_codes: int = 0
    """Codes for patches without any part of an object, apart from the others; 0: all patches share all codes."""

    @property
    def steps(self) -> int:
        return self.crop_steps + self.full_steps


def vq_config(settings: VQSettings, language_width: int) -> Any:
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig

    return JanusVQVAEConfig(
        embed_dim=settings.embed_dim,
        num_embeddings=settings.codebook,
        latent_channels=128,
        base_channels=settings.channels,
        channel_multiplier=list(settings.multiplier),
        num_res_blocks=1,
        num_patches=GRID,
        projection_dim=language_width,
        image_token_embed_dim=language_width,
    )


def janus_config(settings: VQSettings, shape: LanguageModelShape) -> Any:
    """Return the whole model's config.

    The vision tower (image understanding) is as small as it can be: nothing here uses it.
    """
    from transformers import JanusConfig, JanusVisionConfig, LlamaConfig

    tokens = [*SPECIAL_TOKENS, *vocabulary()]
    text = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=8,
        mlp_ratio=2.0,
        projection_dim=shape.width,
        num_image_tokens=GRID * GRID,
        depth=1,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq_config(settings, shape.width),
        image_token_id=tokens.index("<image_placeholder>"),
        tie_word_embeddings=False,
    )


def build_janus(settings: Any, shape: LanguageModelShape, seed: int, vq: Any | None) -> Any:
    """Build a `JanusForConditionalGeneration` with random weights but for its VQ model."""
    from transformers import JanusForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = JanusForConditionalGeneration(janus_config(settings, shape))
    if vq is not None:
        model.model.vqmodel.load_state_dict(vq.state_dict())
    model.generation_config = image_generation()
    return model


def image_generation() -> Any:
    """Return what `JanusForConditionalGeneration.generate(generation_mode="image")` must know."""
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=SPECIAL_TOKENS.index("<bos>"),
        eos_token_id=SPECIAL_TOKENS.index("<eos>"),
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        generation_kwargs={"boi_token_id": SPECIAL_TOKENS.index("<begin_of_image>")},
    )


def save_processor(folder: Path) -> None:
    """Save a word-level tokenizer over ShapeScenes' vocabulary and Janus' image processor, in hub layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import JanusImageProcessor, JanusProcessor, PreTrainedTokenizerFast

    tokens = [*SPECIAL_TOKENS, *vocabulary()]
    words = Tokenizer(models.WordLevel({token: k for k, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens={
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    image_processor = JanusImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, min_size=14
    )
    JanusProcessor(image_processor, tokenizer, chat_template=None).save_pretrained(folder)
