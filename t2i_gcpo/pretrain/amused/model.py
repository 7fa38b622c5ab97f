"""Build `amused-mini`: a small masked transformer and text encoder, and janus-mini's VQ model as diffusers' own.

And janus-mini's VQ model as a `VQModel` of diffusers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from t2i_gcpo.data.shapes.prompts import vocabulary
from t2i_gcpo.generators.amused.parts import AmusedParts
from t2i_gcpo.pretrain.janus.model import GRID

#: <eos> must not be 2: `CLIPTextModel` takes that for a wrong number of old checkpoints, and pools the token of the
#: largest id instead.
SPECIAL_TOKENS = ("<pad>", "<bos>", "<unk>", "<eos>")
#: <bos>, at most ten words, <eos>, and some to spare.
TEXT_LENGTH = 14

#: Names in `JanusVQVAE` -> in `VQModel`, applied in this order. Both are the VQGAN of 2012.09841, with the same
#: arithmetic.
RENAMED: tuple[tuple[str, str], ...] = (
    (r"\.down\.(\d)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d)\.attn\.", r".down_blocks.\1.attentions."),
    (r"\.down\.(\d)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d)\.attn\.", r".up_blocks.\1.attentions."),
    (r"\.up\.(\d)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", r".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", r".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", r".mid_block.attentions.0."),
    (r"\.norm_out\.", r".conv_norm_out."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
    (r"(attentions\.\d)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d)\.proj_out\.", r"\1.to_out.0."),
)


@dataclass(frozen=True)
class MaskedModelShape:
    """The transformer and the text encoder inside `amused-mini`.

    `UVit2DModel` has no embedding of positions: a token knows what stands where around it, and where the border is, by
    the convolutions of the blocks on both sides of its transformer, one cell further with each. So most layers are in
    those blocks, which attend to image and prompt too.
    """

    width: int = 96
    layers: int = 1
    heads: int = 3
    mlp: int = 256
    res_blocks: int = 3
    """On each side of the transformer, a convolution, a feed-forward layer and two attentions each: six reach from the
    border to the middle."""
    text_width: int = 96
    text_layers: int = 3
    text_heads: int = 3
    micro_conditions: int = 8
    """Width of each micro-condition's embedding: they are constants here."""


def tokenizer() -> Any:
    """Build a word-level tokenizer over ShapeScenes' vocabulary, which frames a text in <bos> and <eos>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL_TOKENS, *vocabulary()]
    words = Tokenizer(models.WordLevel({token: k for k, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[(name, tokens.index(name)) for name in ("<bos>", "<eos>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
    )


def vq_from_janus(janus_vq: nn.Module) -> Any:
    """Turn the `JanusVQVAE` into a `VQModel`.

    The same codes for a picture, and the same picture for codes, in [0, 1] instead of [-1, 1].

    Janus compares directions, diffusers distances: between unit vectors the nearest is the same, so the entries are
    normalised. `VQModel` looks entries up as vectors of `latent_channels`, so the 1x1 convolutions on both sides of the
    codebook are multiplied into the 3x3 ones next to them. An entry's last number is a constant 1: it carries the
    second one's bias, which the padding must not.
    """
    from diffusers import VQModel

    config: Any = janus_vq.config
    channels = tuple(config.base_channels * factor for factor in config.channel_multiplier)
    plain = len(channels) - 1
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * plain,
        block_out_channels=channels,
        layers_per_block=config.num_res_blocks,
        latent_channels=config.embed_dim + 1,
        num_vq_embeddings=config.num_embeddings,
        norm_num_groups=32,
        sample_size=config.num_patches * 2**plain,
        lookup_from_codebook=True,
    )
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for name, value in janus_vq.state_dict().items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        state[name] = value.detach().clone()
    _fold(state)
    state = {
        name: value.reshape(shapes[name]) for name, value in state.items()
    }  # 1x1 convolutions of attention become linear
    model.load_state_dict(state)
    return model.eval()


def _fold(state: dict[str, Tensor]) -> None:
    """Multiply the 1x1 convolutions into their neighbours, and leave identities of D + 1 channels in their place."""
    entries = nn.functional.normalize(state["quantize.embedding.weight"], dim=-1)
    state["quantize.embedding.weight"] = torch.cat([entries, torch.ones(len(entries), 1)], dim=1)

    inner, inner_bias = state["quant_conv.weight"][:, :, 0, 0], state["quant_conv.bias"]
    outer, outer_bias = state["encoder.conv_out.weight"], state["encoder.conv_out.bias"]
    weight = torch.einsum("d l, l c y x -> d c y x", inner, outer)
    state["encoder.conv_out.weight"] = torch.cat([weight, torch.zeros_like(weight[:1])])
    state["encoder.conv_out.bias"] = torch.cat([inner @ outer_bias + inner_bias, torch.ones(1)])

    inner = torch.cat([state["post_quant_conv.weight"][:, :, 0, 0], state["post_quant_conv.bias"][:, None]], dim=1)
    state["decoder.conv_in.weight"] = torch.einsum("o l y x, l d -> o d y x", state["decoder.conv_in.weight"], inner)
    for name in ("quant_conv", "post_quant_conv"):
        state[f"{name}.weight"] = torch.eye(inner.shape[1])[:, :, None, None]
        state[f"{name}.bias"] = torch.zeros(inner.shape[1])
    state["decoder.conv_out.weight"] = state["decoder.conv_out.weight"] / 2
    state["decoder.conv_out.bias"] = state["decoder.conv_out.bias"] / 2 + 0.5


#: Standard deviation of the token embeddings at the start: `nn.Embedding`'s 1 would be some 500 steps of AdamW away
#: from any other place.
EMBEDDING_STD = 0.1


@torch.no_grad()
def start_from_patches(transformer: Any, codes: Tensor) -> None:
    """Let codes that look alike begin alike.

    The embeddings and the rows of the output layer begin as the principal components of what each code stands for,
    `codes` [V, 192].
    """
    left, values, _ = torch.linalg.svd(codes.float() - codes.float().mean(dim=0), full_matrices=False)
    embedded, output = transformer.embed.embeddings.weight, transformer.mlm_layer.conv2.weight
    width = min(len(values), embedded.shape[1])
    components = (left * values)[:, :width]
    components = components / components.std()
    embedded.mul_(EMBEDDING_STD / embedded.std())
    embedded[: len(codes), :width] = components * EMBEDDING_STD
    output[:, :width, 0, 0] = components * output.std()


def build_amused(shape: MaskedModelShape, janus_vq: nn.Module, seed: int) -> AmusedParts:
    """Build the whole checkpoint, with random weights but for its VQ model."""
    from diffusers import AmusedScheduler, UVit2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vq = vq_from_janus(janus_vq)
    codes = int(vq.config.num_vq_embeddings)
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=shape.text_width,
        intermediate_size=4 * shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=shape.text_width,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = UVit2DModel(
            hidden_size=shape.width,
            cond_embed_dim=shape.text_width,
            micro_cond_encode_dim=shape.micro_conditions,
            micro_cond_embed_dim=5 * shape.micro_conditions,
            encoder_hidden_size=shape.text_width,
            vocab_size=codes + 1,
            codebook_size=codes,
            in_channels=shape.width,
            block_out_channels=shape.width,
            num_res_blocks=shape.res_blocks,
            block_num_heads=shape.heads,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.mlp,
            sample_size=GRID,
        )
        encoder = CLIPTextModelWithProjection(text)
    return AmusedParts(transformer, vq, encoder, words, AmusedScheduler(mask_token_id=codes))
