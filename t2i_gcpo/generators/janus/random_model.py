"""Makes Janus and Janus-Pro of the published shapes with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rewards.models.torchvision_mend import mend
from t2i_gcpo.generators.random_models import RandomModel, byte_tokenizer, fresh_weights, heads

IMAGE = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
#: Frames a text in two roles, as Janus-Pro's own template does.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|User|>: {% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}\n\n"
    "<|Assistant|>:"
)

#: Sizes that the models share: words, pixels a side, and pixels a side of a token.
VOCABULARY, PIXELS, PATCH = 102400, 384, 16
#: Columns that the language model has positions for.
POSITIONS = 16384
#: Channels of the image decoder's first level, as published and in a model of cut width.
CHANNELS, CUT_CHANNELS = 128, 32


@dataclass(frozen=True)
class Sizes:
    """Holds the sizes of a published language model (the text_config of its config.json)."""

    width: int
    layers: int
    heads: int
    intermediate: int


SIZES: dict[str, Sizes] = {
    "janus-pro-1b": Sizes(width=2048, layers=24, heads=16, intermediate=5632),
    "janus-1.3b": Sizes(width=2048, layers=24, heads=16, intermediate=5632),
    "janus-pro-7b": Sizes(width=4096, layers=30, heads=32, intermediate=11008),
}


def build(random: RandomModel, *, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a `JanusForConditionalGeneration` on the device and its `JanusProcessor`."""
    mend()  # transformers imports torchvision
    from transformers import GenerationConfig, JanusForConditionalGeneration

    processor = byte_processor()
    words = processor.tokenizer
    with fresh_weights(device, dtype, random.seed):
        model = JanusForConditionalGeneration(config(random, words)).eval()
    model.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        generation_kwargs={"boi_token_id": words.convert_tokens_to_ids(IMAGE["boi_token"])},
    )
    return model, processor


def byte_processor() -> Any:
    """Return a `JanusProcessor` whose tokenizer takes a token a byte."""
    mend()
    from transformers import JanusImageProcessor, JanusProcessor

    words = byte_tokenizer(extra=IMAGE, begins=True, ends=False, padding_side="left", length=POSITIONS)
    pictures = JanusImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": PIXELS, "width": PIXELS})
    tokens = (PIXELS // PATCH) ** 2
    return JanusProcessor(pictures, words, chat_template=CHAT_TEMPLATE, num_image_tokens=tokens)


def config(random: RandomModel, words: Any) -> Any:
    """Return the `JanusConfig` of a shape with the special tokens of a tokenizer."""
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

    sizes, layers = SIZES[random.shape], random.depth(SIZES[random.shape].layers)
    width = random.breadth(sizes.width)
    count = heads(width, sizes.width // sizes.heads)
    text = LlamaConfig(
        vocab_size=len(words) if random.width else VOCABULARY,
        hidden_size=width,
        intermediate_size=width * sizes.intermediate // sizes.width,
        num_hidden_layers=layers,
        num_attention_heads=count,
        num_key_value_heads=count,
        max_position_embeddings=POSITIONS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=False,  # as published; so is the model's own below
    )
    small_vision = {"hidden_size": CUT_CHANNELS, "num_attention_heads": 1} if random.width else {}
    vision = JanusVisionConfig(
        image_size=PIXELS,
        patch_size=PATCH,
        projection_dim=width,
        num_hidden_layers=min(layers, JanusVisionConfig().num_hidden_layers),
        **small_vision,
    )
    vq = JanusVQVAEConfig(
        base_channels=CUT_CHANNELS if random.width else CHANNELS,
        num_res_blocks=1 if random.width else 2,
        projection_dim=width,
        image_token_embed_dim=width,
    )
    image_token = words.convert_tokens_to_ids(IMAGE["image_token"])
    return JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, image_token_id=image_token, tie_word_embeddings=False
    )
