"""Make a tiny, random aMUSEd checkpoint in diffusers' layout, in code.

4 x 4 tokens, 32 codes, 8 x 8 pixels, a word-level tokenizer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers import tiny
from rewards.models.torchvision_mend import mend
from t2i_gcpo.generators.amused.adapter import Amused
from t2i_gcpo.generators.amused.parts import AmusedParts

LENGTH = 12


def tokenizer() -> Any:
    """As `tiny.tokenizer`, with EOS at the end, which CLIP's pooling looks for, and padding on the right."""
    from tokenizers import processors

    words = tiny.tokenizer()
    bos, eos = words.bos_token, words.eos_token
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, words.bos_token_id), (eos, words.eos_token_id)]
    )
    words.padding_side, words.model_max_length = "right", LENGTH
    return words


def parts(*, grid: int = 4, codebook: int = 32, seed: int = 0, width: int = 32) -> AmusedParts:
    """All modules, with logits far from uniform. Leaves the global generator as it was."""
    mend()
    from diffusers import AmusedScheduler, UVit2DModel, VQModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=12,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = UVit2DModel(
            hidden_size=width,
            cond_embed_dim=12,
            micro_cond_encode_dim=8,
            micro_cond_embed_dim=40,
            encoder_hidden_size=16,
            vocab_size=codebook + 1,
            codebook_size=codebook,
            in_channels=width,
            block_out_channels=width,
            num_res_blocks=1,
            block_num_heads=2,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * width,
            sample_size=grid,
        )
        vqvae = VQModel(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=4,
            num_vq_embeddings=codebook,
            norm_num_groups=4,
            sample_size=2 * grid,
            lookup_from_codebook=True,
            mid_block_add_attention=False,
        )
        encoder = CLIPTextModelWithProjection(text)
        for module in (transformer, encoder):
            for name, parameter in module.named_parameters():
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=1.0 / math.sqrt(parameter.shape[1]))
                elif name == "mlm_layer.conv2.weight":
                    nn.init.normal_(parameter, std=1.5 / math.sqrt(parameter.shape[1]))
                elif name.endswith("gamma"):  # zero at the start: the response norm would do nothing
                    nn.init.normal_(parameter, std=0.3)
    return AmusedParts(transformer, vqvae, encoder, words, AmusedScheduler(mask_token_id=codebook)).eval()


def generator(**options: Any) -> Amused:
    """`options` of `parts` go there, others to `Amused`."""
    own = {name: options.pop(name) for name in ("grid", "codebook", "seed", "width") if name in options}
    return Amused(parts(**own), **options)


def checkpoint(path: Path, **options: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    parts(**options).save(path)
    return path
