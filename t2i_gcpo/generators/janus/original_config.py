"""The config.json of Janus in its authors' layout, and that of transformers: one from the other.

The authors' file names classes of their code with a few numbers each; what it leaves out are the sizes of SigLIP-L/16
and of LlamaGen's VQ-16, which all published models have.
"""

from __future__ import annotations

from typing import Any

MODEL_TYPE = "multi_modality"
#: Keys of a language model's config that both layouts have, under the same names.
LANGUAGE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
)
#: Tokens a side of an image: 384 pixels, 16 to a token.
PATCHES = 24
#: Sizes that the authors' code has no numbers for; a model that has others carries them along under this key.
SIZES = "sizes"
VISION_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "mlp_ratio",
    "patch_size",
    "num_image_tokens",
)
VQ_SIZES = ("base_channels", "channel_multiplier", "num_res_blocks", "latent_channels", "num_patches", "in_channels")


def to_transformers(original: dict[str, Any], tokens: dict[str, int | None]) -> Any:
    """Return the `JanusConfig` of the authors' config.json.

    tokens: ids of "pad", "bos", "eos" and "image". ValueError where a part of the file is missing.
    """
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

    try:
        language = original["language_config"]
        vision, aligner = original["vision_config"]["params"], original["aligner_config"]["params"]
        codes, gen_aligner = original["gen_vision_config"]["params"], original["gen_aligner_config"]["params"]
        head = original["gen_head_config"]["params"]
        text = LlamaConfig(
            **{key: language[key] for key in LANGUAGE if key in language},
            pad_token_id=tokens["pad"],
            bos_token_id=tokens["bos"],
            eos_token_id=tokens["eos"],
            tie_word_embeddings=False,
        )
        sizes = original.get(SIZES, {})
        return JanusConfig(
            text_config=text,
            vision_config=JanusVisionConfig(
                image_size=vision.get("image_size", 384),
                projection_dim=aligner["n_embed"],
                depth=aligner["depth"],
                **sizes.get("vision", {}),
            ),
            vq_config=JanusVQVAEConfig(
                embed_dim=codes["n_embed"],
                num_embeddings=codes["image_token_size"],
                projection_dim=gen_aligner["n_embed"],
                num_hidden_layers=gen_aligner["depth"],
                image_token_embed_dim=head["image_token_embed"],
                **{"num_patches": PATCHES, **sizes.get("vq", {})},
            ),
            image_token_id=tokens["image"],
            tie_word_embeddings=False,
        )
    except KeyError as error:
        raise ValueError(
            f"the config.json of the authors' layout has no {error.args[0]!r} where one is needed"
        ) from error


def to_original(config: Any, dtype: str) -> dict[str, Any]:
    """Return the authors' config.json of a `JanusConfig`. dtype: of the weights, e.g. "bfloat16"."""
    from transformers import JanusVisionConfig, JanusVQVAEConfig

    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    projector = {"depth": vision.depth, "input_dim": vision.hidden_size, "n_embed": vision.projection_dim}
    gen_projector = {"depth": vq.num_hidden_layers, "input_dim": vq.embed_dim, "n_embed": vq.projection_dim}
    result: dict[str, Any] = {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "aligner_config": _part("aligner", "MlpProjector", {**projector, "projector_type": "mlp_gelu"}),
        "gen_aligner_config": _part("gen_aligner", "MlpProjector", {**gen_projector, "projector_type": "mlp_gelu"}),
        "gen_head_config": _part(
            "gen_head",
            "vision_head",
            {
                "image_token_embed": vq.image_token_embed_dim,
                "image_token_size": vq.num_embeddings,
                "n_embed": text.hidden_size,
            },
        ),
        "gen_vision_config": _part(
            "gen_vision", "VQ-16", {"image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim}
        ),
        "language_config": {
            "model_type": "llama",
            "torch_dtype": dtype,
            **{key: getattr(text, key) for key in LANGUAGE},
        },
        "vision_config": _part(
            "vision",
            "CLIPVisionTower",
            {
                "image_size": vision.image_size,
                "model_name": "siglip_large_patch16_384",
                "select_feature": "same",
                "select_layer": -1,
            },
        ),
    }
    sizes = {
        "vision": _other(vision, JanusVisionConfig(image_size=vision.image_size), VISION_SIZES),
        "vq": _other(vq, JanusVQVAEConfig(num_patches=PATCHES), VQ_SIZES),
    }
    return {**result, **({SIZES: sizes} if any(sizes.values()) else {})}


def _part(model_type: str, cls: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"cls": cls, "model_type": model_type, "params": params}


def _other(config: Any, published: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the sizes that are not the published ones."""
    return {key: getattr(config, key) for key in keys if getattr(config, key) != getattr(published, key)}
