"""Names of Janus' weights in its authors' layout and in that of transformers, and how one becomes the other.

The authors' code (deepseek-ai/Janus) and published fine-tunes of it have one tensor for the queries, keys and values of
a layer of the vision tower, and a pooling of its output that Janus never reads; transformers has neither. A rule is a
pair of names in which `#` stands for a number and `*` for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

#: (authors' name, transformers' name). The first that fits counts.
RULES: tuple[tuple[str, str], ...] = (
    ("language_model.lm_head.*", "lm_head.*"),
    ("language_model.model.*", "model.language_model.*"),
    ("gen_embed.*", "model.generation_embeddings.*"),
    ("gen_aligner.layers.0.*", "model.generation_aligner.fc1.*"),
    ("gen_aligner.layers.2.*", "model.generation_aligner.hidden_layers.0.*"),
    ("gen_head.output_mlp_projector.*", "model.generation_head.proj_out.*"),
    ("gen_head.vision_head.*", "model.generation_head.vision_head.*"),
    ("aligner.layers.0.*", "model.aligner.fc1.*"),
    ("aligner.layers.2.*", "model.aligner.hidden_layers.0.*"),
    ("gen_vision_model.encoder.conv_blocks.#.res.*", "model.vqmodel.encoder.down.#.block.*"),
    ("gen_vision_model.encoder.conv_blocks.*", "model.vqmodel.encoder.down.*"),
    ("gen_vision_model.decoder.conv_blocks.#.res.*", "model.vqmodel.decoder.up.#.block.*"),
    ("gen_vision_model.decoder.conv_blocks.*", "model.vqmodel.decoder.up.*"),
    *(
        (f"gen_vision_model.{part}.mid.{index}.*", f"model.vqmodel.{part}.mid.{name}.*")
        for part in ("encoder", "decoder")
        for index, name in enumerate(("block_1", "attn_1", "block_2"))
    ),
    ("gen_vision_model.*", "model.vqmodel.*"),
    ("vision_model.vision_tower.patch_embed.proj.*", "model.vision_model.embeddings.patch_embedding.*"),
    ("vision_model.vision_tower.pos_embed", "model.vision_model.embeddings.position_embedding.weight"),
    ("vision_model.vision_tower.norm.*", "model.vision_model.post_layernorm.*"),
    (
        "vision_model.vision_tower.blocks.#.attn.proj.*",
        "model.vision_model.encoder.layers.#.self_attn.projection_layer.*",
    ),
    ("vision_model.vision_tower.blocks.#.norm1.*", "model.vision_model.encoder.layers.#.layer_norm1.*"),
    ("vision_model.vision_tower.blocks.#.norm2.*", "model.vision_model.encoder.layers.#.layer_norm2.*"),
    ("vision_model.vision_tower.blocks.#.mlp.*", "model.vision_model.encoder.layers.#.mlp.*"),
)

#: One tensor in the authors' layout, three in that of transformers.
JOINED = re.compile(r"vision_model\.vision_tower\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
THIRDS = ("q_proj", "k_proj", "v_proj")
THIRD = re.compile(r"model\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.(q_proj|k_proj|v_proj)\.(weight|bias)")
POSITIONS = "model.vision_model.embeddings.position_embedding.weight"

#: What the authors' layout has and no image or text depends on: pooling of the vision tower's output, a record of which
#: codes training used, and angles that the language model works out anew.
UNUSED = re.compile(
    r"vision_model\.vision_tower\.attn_pool\..*"
    r"|gen_vision_model\.quantize\.codebook_used"
    r"|language_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)


@dataclass(frozen=True)
class Place:
    """Says where a tensor of the authors' layout goes."""

    names: tuple[str, ...]
    """One name of transformers' layout, or three; none for what it lacks."""
    squeeze: bool = False
    """Whether a leading axis of length 1 goes."""


def place(name: str) -> Place:
    """Say where a tensor of the authors' layout goes. ValueError for a name that it has not."""
    if UNUSED.fullmatch(name):
        return Place(())
    joined = JOINED.fullmatch(name)
    if joined:
        layer, kind = joined.groups()
        return Place(tuple(f"model.vision_model.encoder.layers.{layer}.self_attn.{third}.{kind}" for third in THIRDS))
    new = _rewritten(name, _TO_TRANSFORMERS)
    if new is None:
        raise ValueError(f"{name} is no weight of Janus in its authors' layout")
    return Place((new,), squeeze=new == POSITIONS)


def to_transformers(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename, split and reshape the authors' weights; return those of transformers, and what they have no place for."""
    result: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        goes = place(name)
        if not goes.names:
            unused[name] = tensor
            continue
        parts = tensor.chunk(len(goes.names)) if len(goes.names) > 1 else (tensor,)
        for new, part in zip(goes.names, parts, strict=True):
            result[new] = part.squeeze(0) if goes.squeeze else part
    return result, unused


def to_original(weights: Mapping[str, Tensor], unused: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `to_transformers`. ValueError for a name that transformers' layout has not, or thirds without the others."""
    result = dict(unused)
    for name, tensor in weights.items():
        third = THIRD.fullmatch(name)
        if third is None:
            old = _rewritten(name, _TO_ORIGINAL)
            if old is None:
                raise ValueError(f"{name} is no weight of Janus in transformers' layout")
            result[old] = tensor.unsqueeze(0) if name == POSITIONS else tensor
        elif third[2] == THIRDS[0]:
            names = [name.replace(THIRDS[0], other) for other in THIRDS]
            missing = [other for other in names if other not in weights]
            if missing:
                raise ValueError(f"the weights have {name}, but not {missing[0]}")
            joined = f"vision_model.vision_tower.blocks.{third[1]}.attn.qkv.{third[3]}"
            result[joined] = torch.cat([weights[other] for other in names])
    return result


def is_original(names: Mapping[str, object] | list[str]) -> bool:
    """Say whether names of weights are of the authors' layout."""
    return any(name.startswith(("language_model.model.", "gen_embed.", "gen_vision_model.")) for name in names)


_Rule = tuple[re.Pattern[str], str]


def _compiled(pairs: Iterator[tuple[str, str]]) -> tuple[_Rule, ...]:
    """Turn (from, to) templates into patterns and replacements."""
    rules = []
    for source, target in pairs:
        pattern = re.escape(source).replace(r"\#", "(?P<n>[0-9]+)").replace("#", "(?P<n>[0-9]+)")
        pattern = pattern.replace(r"\*", "(?P<rest>.+)")
        rules.append((re.compile(pattern), target.replace("#", r"\g<n>").replace("*", r"\g<rest>")))
    return tuple(rules)


def _rewritten(name: str, rules: tuple[_Rule, ...]) -> str | None:
    return next((match.expand(new) for pattern, new in rules if (match := pattern.fullmatch(name))), None)


_TO_TRANSFORMERS = _compiled((old, new) for old, new in RULES)
_TO_ORIGINAL = _compiled((new, old) for old, new in RULES)
