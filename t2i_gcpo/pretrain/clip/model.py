"""Build `clip-mini` in open_clip's folder layout: the config, the words and the untrained model.

In open_clip's folder layout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rewards.models.open_clip_model import WEIGHTS_NAMES
from rewards.models.torchvision_mend import mend
from t2i_gcpo.data.shapes.scene import IMAGE_SIZE
from t2i_gcpo.pretrain.amused.model import TEXT_LENGTH, tokenizer


@dataclass(frozen=True)
class ClipShape:
    """The two towers; the defaults are those of the embedded checkpoint."""

    features: int = 64
    """D, of both towers' last layers."""
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    """Blocks in each of the ResNet's four stages (CLIP's own variant, with attention pooling)."""
    width: int = 16
    head_width: int = 32
    """Width of a head of the attention pooling."""
    text_layers: int = 3
    text_width: int = 96
    text_heads: int = 3


def config(shape: ClipShape) -> dict[str, Any]:
    """Return what `open_clip_config.json` holds. The tokenizer lies in the same folder."""
    words = tokenizer()
    return {
        "model_cfg": {
            "embed_dim": shape.features,
            "vision_cfg": {
                "image_size": IMAGE_SIZE,
                "layers": list(shape.blocks),
                "width": shape.width,
                "head_width": shape.head_width,
            },
            "text_cfg": {
                "context_length": TEXT_LENGTH,
                "vocab_size": len(words),
                "width": shape.text_width,
                "heads": shape.text_heads,
                "layers": shape.text_layers,
                "pool_type": "eos",
                "pad_id": words.pad_token_id,
                "eos_id": words.eos_token_id,
                "hf_tokenizer_name": ".",
            },
        },
        # A picture of another size is stretched or shrunk whole: nothing of a scene is cut off.
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def build(shape: ClipShape, seed: int) -> Any:
    """Build the open_clip model with random weights."""
    mend()
    from open_clip.model import CLIP

    cfg = config(shape)["model_cfg"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIP(cfg["embed_dim"], cfg["vision_cfg"], cfg["text_cfg"])


def save(model: Any, shape: ClipShape, folder: Path) -> None:
    """Write the folder that `rewards.load("clip", checkpoint=folder)` reads."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config(shape), indent=2) + "\n", encoding="utf-8")
    tokenizer().save_pretrained(folder)
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS_NAMES[0])
