"""Makes aMUSEd of the published shapes with random weights."""

from __future__ import annotations

import torch

from rewards.models.torchvision_mend import mend
from t2i_gcpo.generators.amused.parts import AmusedParts
from t2i_gcpo.generators.random_models import RandomModel, byte_tokenizer, fresh_weights, heads

#: Positions and vocabulary of the text encoder, OpenAI's CLIP ViT-L/14.
LENGTH, VOCABULARY = 77, 49408
#: Layers of the transformer, and width of a head.
LAYERS, HEAD = 22, 64
#: Codes, and the transformer's vocabulary, whose last entry is the mask.
CODES, ENTRIES = 8192, 8256
#: Width of the transformer, of its convolutional ends, of its feed-forward layers, and of the text encoder.
WIDTH, ENDS, INTERMEDIATE, TEXT = 1024, 768, 2816, 768
#: Channels of the VQ model's levels as published, and in a model of cut width.
CHANNELS, CUT_CHANNELS = (128, 256, 256, 512, 768), (32,) * 5
#: Tokens a side, and whether the transformer halves them at its ends.
SIDES: dict[str, tuple[int, bool]] = {"amused-256": (16, False), "amused-512": (32, True)}


def build(random: RandomModel, *, device: torch.device, dtype: torch.dtype) -> AmusedParts:
    """Return the parts of a checkpoint on the device."""
    mend()  # transformers and diffusers import torchvision
    from diffusers import AmusedScheduler, UVit2DModel, VQModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    side, halved = SIDES[random.shape]
    layers = random.depth(LAYERS)
    width = random.breadth(WIDTH)
    ends, text_width = (random.width, random.width) if random.width else (ENDS, TEXT)
    words = byte_tokenizer(extra={}, begins=True, ends=True, padding_side="right", length=LENGTH)
    text = CLIPTextConfig(
        vocab_size=len(words) if random.width else VOCABULARY,
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        projection_dim=text_width,
        num_hidden_layers=min(layers, 12),
        num_attention_heads=heads(text_width, HEAD),
        max_position_embeddings=LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with fresh_weights(device, dtype, random.seed):
        transformer = UVit2DModel(
            hidden_size=width,
            cond_embed_dim=text_width,
            encoder_hidden_size=text_width,
            vocab_size=ENTRIES,
            codebook_size=CODES,
            in_channels=ends,
            block_out_channels=ends,
            num_res_blocks=1 if random.width else 3,
            downsample=halved,
            upsample=halved,
            block_num_heads=heads(ends, HEAD),
            num_hidden_layers=layers,
            num_attention_heads=heads(width, HEAD),
            intermediate_size=width * INTERMEDIATE // WIDTH,
            sample_size=side,
        )
        channels = CUT_CHANNELS if random.width else CHANNELS
        vqvae = VQModel(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            layers_per_block=1 if random.width else 2,
            latent_channels=64,
            num_vq_embeddings=CODES,
            sample_size=32,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        )
        encoder = CLIPTextModelWithProjection(text)
    return AmusedParts(transformer, vqvae, encoder, words, AmusedScheduler(mask_token_id=ENTRIES - 1))
