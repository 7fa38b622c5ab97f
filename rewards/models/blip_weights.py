"""Makes two BLIP towers of transformers and a head of ImageReward's checkpoint, in the layout of its authors' code.

B images, D_v and D_t the widths of the vision and the text tower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rewards.models.batches import require

#: Attention heads of both of BLIP's towers have this width, in every size of it.
HEAD_WIDTH = 64

#: Pattern -> replacement: names in BLIP's own vision transformer (timm's) to those of `BlipVisionModel`.
VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)

#: Names in BLIP's own text encoder are those of `BlipTextModel`, but for a buffer.
TEXT_BUFFER = "embeddings.position_ids"

#: Places of the head's linear layers; those between them are dropout, which rests here.
HEAD_LAYERS = (0, 2, 4, 6, 7)


@dataclass(frozen=True)
class BlipScorer:
    """Holds the three parts of ImageReward, on the CPU, in float32."""

    vision: Any
    """[B, 3, S, S] pixels -> [B, patches + 1, D_v]."""
    text: Any
    """Tokens and what the vision tower gives -> [B, T, D_t], by attention to both."""
    head: nn.Sequential
    """[B, D_t] -> [B, 1]."""


def build(state: Mapping[str, Tensor], where: object) -> BlipScorer:
    """Build the model of a state_dict with `blip.visual_encoder.*`, `blip.text_encoder.*` and `mlp.layers.*`.

    Other names are left out.

    Sizes are read from the tensors' shapes, so that BLIP's base and large vision towers both fit. ValueError, naming
    `where` it came from, for names or shapes that are missing or of another model.
    """
    transformers = require("transformers", "image_reward")
    try:
        vision = _part(state, "blip.visual_encoder.")
        text = _part(state, "blip.text_encoder.")
        text.pop(TEXT_BUFFER, None)
        layers = _part(state, "mlp.layers.")
        eyes = transformers.BlipVisionModel(_vision_config(transformers, vision))
        eyes.load_state_dict({_renamed(key): value for key, value in vision.items()})
        reader = transformers.BlipTextModel(
            _text_config(transformers, text, vision["cls_token"].shape[-1]), add_pooling_layer=False
        )
        reader.load_state_dict(text)
        head = _head(layers)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = f"{error}" if not isinstance(error, KeyError) else f"{error.args[0]} is missing"
        raise ValueError(
            f"reward 'image_reward': {where} is no ImageReward checkpoint (BLIP's vision and text encoder and a head "
            f"of linear layers): {' '.join(reason.split())[:300]}"
        ) from error
    return BlipScorer(eyes, reader, head)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not part:
        raise KeyError(f"{prefix}*")
    return part


def _renamed(key: str) -> str:
    for pattern, replacement in VISION_NAMES:
        renamed, changes = re.subn(pattern, replacement, key)
        if changes:
            return renamed
    return key


def _depth(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(match[1]) for key in state if (match := re.match(pattern, key))), default=-1)


def _vision_config(transformers: Any, state: Mapping[str, Tensor]) -> Any:
    width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    return transformers.BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_depth(state, r"blocks\.(\d+)\."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * round((state["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,  # BLIP's own; transformers' default is another
    )


def _text_config(transformers: Any, state: Mapping[str, Tensor], vision_width: int) -> Any:
    words, width = state["embeddings.word_embeddings.weight"].shape
    return transformers.BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=vision_width,
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_depth(state, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # builds the attention to the image; the text's own attention stays two-sided
    )


def _head(state: Mapping[str, Tensor]) -> nn.Sequential:
    expected = {f"{place}.{kind}" for place in HEAD_LAYERS for kind in ("weight", "bias")}
    if set(state) != expected:
        raise ValueError(f"the head holds {', '.join(sorted(state))}, not linear layers at {_listed(HEAD_LAYERS)}")
    head = nn.Sequential()
    for place in HEAD_LAYERS:
        outputs, inputs = state[f"{place}.weight"].shape
        layer = nn.Linear(inputs, outputs)
        layer.load_state_dict({kind: state[f"{place}.{kind}"] for kind in ("weight", "bias")})
        head.append(layer)
    return head


def _listed(places: Sequence[int]) -> str:
    return ", ".join(map(str, places))
