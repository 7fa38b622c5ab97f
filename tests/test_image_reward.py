"""image_reward on a tiny random model.

Saved in the layout of ImageReward's own checkpoint and computed as its own code does.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

import rewards
from helpers.tiny_models import pictures, same, word_tokenizer
from rewards.models import weights as weights_module
from rewards.models.preprocess import CLIP_MEAN, CLIP_STD

SIZE, PATCH, WIDTH, TEXT_WIDTH, DEPTH, HEADS = 32, 16, 192, 128, 2, {192: 3, 128: 2}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "star", "ring", "and"]
PROMPTS = ["a red star", "a blue ring and a red star", "ring", "a red star", "a blue star"]
ROWS: list[dict[str, Any]] = [{} for _ in PROMPTS]


def layout() -> dict[str, tuple[int, ...]]:
    """The names and shapes of ImageReward.pt, smaller.

    Timm's vision transformer, BERT with attention to the image, the head.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    eye = "blip.visual_encoder"
    shapes[f"{eye}.cls_token"] = (1, 1, WIDTH)
    shapes[f"{eye}.pos_embed"] = (1, (SIZE // PATCH) ** 2 + 1, WIDTH)
    shapes[f"{eye}.patch_embed.proj.weight"] = (WIDTH, 3, PATCH, PATCH)
    shapes[f"{eye}.patch_embed.proj.bias"] = (WIDTH,)
    for layer in range(DEPTH):
        block = f"{eye}.blocks.{layer}"
        norm(f"{block}.norm1", WIDTH)
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        norm(f"{block}.norm2", WIDTH)
        linear(f"{block}.mlp.fc1", 40, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, 40)
    norm(f"{eye}.norm", WIDTH)
    text = "blip.text_encoder"
    shapes[f"{text}.embeddings.position_ids"] = (1, 40)
    shapes[f"{text}.embeddings.word_embeddings.weight"] = (len(WORDS) + 2, TEXT_WIDTH)  # [DEC] and [ENC] come on top
    shapes[f"{text}.embeddings.position_embeddings.weight"] = (40, TEXT_WIDTH)
    norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    for layer in range(DEPTH):
        block = f"{text}.encoder.layer.{layer}"
        for attention, inputs in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            linear(f"{block}.{attention}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            linear(f"{block}.{attention}.self.key", TEXT_WIDTH, inputs)
            linear(f"{block}.{attention}.self.value", TEXT_WIDTH, inputs)
            linear(f"{block}.{attention}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            norm(f"{block}.{attention}.output.LayerNorm", TEXT_WIDTH)
        linear(f"{block}.intermediate.dense", 48, TEXT_WIDTH)
        linear(f"{block}.output.dense", TEXT_WIDTH, 48)
        norm(f"{block}.output.LayerNorm", TEXT_WIDTH)
    linear("blip.vision_proj", 8, WIDTH)  # of BLIP's pre-training: of no use here
    linear("blip.text_proj", 8, TEXT_WIDTH)
    sizes = [(TEXT_WIDTH, 24), (24, 16), (16, 8), (8, 4), (4, 1)]
    for place, (inputs, outputs) in zip((0, 2, 4, 6, 7), sizes, strict=True):
        linear(f"mlp.layers.{place}", outputs, inputs)
    return shapes


def checkpoint() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in layout().items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("position_ids"):
            values = torch.arange(shape[1])[None]
        elif "norm" in name.lower():
            values = 0.2 * values + (1 if name.endswith("weight") else 0)
        else:
            values = values * (0.3 if len(shape) < 2 or "mlp.layers" in name else 1.5 / shape[-1] ** 0.5)
        state[name] = values
    return state


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("image_reward")
    torch.save(checkpoint(), folder / "ImageReward.pt")
    word_tokenizer(
        folder / "bert",
        WORDS,
        size=40,
        template="[CLS] $A [SEP]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    return {"checkpoint": str(folder), "tokenizer": str(folder / "bert")}


class Plain:
    """ImageReward's own steps on its own names, for one picture and one prompt without padding."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[n, D], [m, D], [m, D] -> [n, D], head by head."""
        heads = []
        for q, k, v in zip(*(x.chunk(HEADS[query.shape[1]], dim=1) for x in (query, key, value)), strict=True):
            heads.append((q @ k.T / q.shape[1] ** 0.5).softmax(dim=1) @ v)
        return torch.cat(heads, dim=1)

    def see(self, pixels: Tensor) -> Tensor:
        eye = "blip.visual_encoder"
        patches = [
            self.linear_patch(f"{eye}.patch_embed.proj", pixels[:, r : r + PATCH, c : c + PATCH])
            for r in range(0, SIZE, PATCH)
            for c in range(0, SIZE, PATCH)
        ]
        x = torch.stack([self.state[f"{eye}.cls_token"][0, 0], *patches]) + self.state[f"{eye}.pos_embed"][0]
        for layer in range(DEPTH):
            block = f"{eye}.blocks.{layer}"
            q, k, v = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=1)
            x = x + self.linear(f"{block}.attn.proj", self.attend(q, k, v))
            inner = functional.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", inner)
        return self.norm(f"{eye}.norm", x, 1e-6)

    def linear_patch(self, name: str, patch: Tensor) -> Tensor:
        return self.state[f"{name}.weight"].flatten(1) @ patch.flatten() + self.state[f"{name}.bias"]

    def read(self, ids: list[int], seen: Tensor) -> Tensor:
        text = "blip.text_encoder"
        x = self.state[f"{text}.embeddings.word_embeddings.weight"][ids]
        x = x + self.state[f"{text}.embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(f"{text}.embeddings.LayerNorm", x, 1e-12)
        for layer in range(DEPTH):
            block = f"{text}.encoder.layer.{layer}"
            for attention, source in (("attention", None), ("crossattention", seen)):
                name, other = f"{block}.{attention}", x if source is None else source
                query = self.linear(f"{name}.self.query", x)
                key, value = self.linear(f"{name}.self.key", other), self.linear(f"{name}.self.value", other)
                out = self.linear(f"{name}.output.dense", self.attend(query, key, value))
                x = self.norm(f"{name}.output.LayerNorm", out + x, 1e-12)
            inner = functional.gelu(self.linear(f"{block}.intermediate.dense", x))
            x = self.norm(f"{block}.output.LayerNorm", self.linear(f"{block}.output.dense", inner) + x, 1e-12)
        return x

    def score(self, image: Tensor, prompt: str) -> Tensor:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        assert picture.size == (SIZE, SIZE), "nothing to resize, so nothing is rounded"
        pixels = (image.permute(1, 2, 0) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        x = self.read([2, *map(WORDS.index, prompt.split()), 3], self.see(pixels.permute(2, 0, 1)))[0]
        for place in (0, 2, 4, 6, 7):
            x = self.linear(f"mlp.layers.{place}", x)
        return (x[0] - 0.16717362830052426) / 1.0333394966054072


def test_scores_are_those_of_the_original_s_steps(options: dict[str, str]) -> None:
    images = pictures(5, SIZE, SIZE)
    plain = Plain(checkpoint())
    expected = torch.stack([plain.score(image, prompt) for image, prompt in zip(images, PROMPTS, strict=True)])
    reward: Any = rewards.load("image_reward", **options)
    output = reward(images, PROMPTS, ROWS)
    same(output.scores, expected, spread=0.05)
    assert not output.scores.requires_grad and not (reward.vision.training or reward.text.training)
    # Both the picture and the prompt count.
    assert abs(plain.score(images[0], PROMPTS[2]) - expected[0]) > 1e-2
    assert abs(plain.score(images[3], PROMPTS[0]) - expected[0]) > 1e-2


def test_batches_order_and_padding(options: dict[str, str]) -> None:
    images = pictures(5, 40, 51)
    reward = rewards.load("image_reward", **options, batch_size=2)
    scores = reward(images, PROMPTS, ROWS).scores
    order = [3, 0, 4, 2, 1]
    same(reward(images[order], [PROMPTS[k] for k in order], ROWS).scores, scores[order])
    same(rewards.load("image_reward", **options, batch_size=64)(images, PROMPTS, ROWS).scores, scores)
    alone = rewards.load("image_reward", **options, batch_size=1)(images, PROMPTS, ROWS).scores
    same(alone, scores)
    rough: Any = rewards.load("image_reward", **options, dtype="bfloat16")
    assert rough.vision.dtype == torch.bfloat16 and rough.head[0].weight.dtype == torch.float32
    given = rough(images, PROMPTS, ROWS).scores
    assert not torch.equal(given, scores)
    same(given, scores, 0.3)


def test_a_cut_prompt_is_told(options: dict[str, str]) -> None:
    full = " ".join(["star"] * 33)  # and a start and an end
    reward = rewards.load("image_reward", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = reward(pictures(1, SIZE, SIZE), [full], [{}]).scores
    with pytest.warns(UserWarning, match="star ring' is longer than the 35 tokens"):
        cut = reward(pictures(1, SIZE, SIZE), [f"{full} ring"], [{}]).scores
    assert torch.equal(cut, whole)


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def file(name: str, filename: str, *, revision: str | None = None, what: str = "") -> Path:
        asked.append((name, filename, revision, what))
        raise ValueError("stop here")

    monkeypatch.setattr(weights_module, "file", file)
    with pytest.raises(ValueError, match="stop here"):
        rewards.load("image_reward", revision="abc")
    assert asked == [("THUDM/ImageReward", "ImageReward.pt", "abc", "weights for reward 'image_reward'")]


def test_the_full_size_has_the_published_sizes() -> None:
    """The configuration that is read from tensors of ImageReward v1.0's shapes (on no memory)."""
    import transformers

    from rewards.models.blip_weights import _text_config, _vision_config

    def shaped(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    vision = {
        "cls_token": shaped(1, 1, 1024),
        "pos_embed": shaped(1, 197, 1024),
        "patch_embed.proj.weight": shaped(1024, 3, 16, 16),
        "blocks.0.mlp.fc1.weight": shaped(4096, 1024),
        "blocks.23.norm1.weight": shaped(1024),
    }
    eyes = _vision_config(transformers, vision)
    assert (eyes.image_size, eyes.patch_size, eyes.num_hidden_layers, eyes.num_attention_heads) == (224, 16, 24, 16)
    text = {
        "embeddings.word_embeddings.weight": shaped(30524, 768),
        "embeddings.position_embeddings.weight": shaped(512, 768),
        "encoder.layer.0.intermediate.dense.weight": shaped(3072, 768),
        "encoder.layer.11.output.dense.bias": shaped(768),
    }
    reader = _text_config(transformers, text, 1024)
    assert (reader.num_hidden_layers, reader.num_attention_heads, reader.encoder_hidden_size) == (12, 12, 1024)


def test_files_that_do_not_fit(options: dict[str, str], tmp_path: Path) -> None:
    def load(state: dict[str, Tensor], name: str) -> Any:
        torch.save(state, tmp_path / name)
        return rewards.load("image_reward", checkpoint=str(tmp_path / name), tokenizer=options["tokenizer"])

    good = checkpoint()
    none = "is no ImageReward checkpoint"
    with pytest.raises(ValueError, match=f"other.pt {none}.*blip.visual_encoder.* is missing"):
        load({"weight": torch.zeros(2)}, "other.pt")
    with pytest.raises(ValueError, match=f"{none}.*cls_token is missing"):
        load({key: value for key, value in good.items() if not key.endswith("cls_token")}, "cut.pt")
    with pytest.raises(ValueError, match=f"{none}.*encoder.layer.1.crossattention.self.key.weight"):
        load({key: value for key, value in good.items() if "layer.1.crossattention.self.key" not in key}, "blind.pt")
    with pytest.raises(ValueError, match=f"{none}.*the head holds 0.bias, .*not linear layers at 0, 2, 4, 6, 7"):
        load({key: value for key, value in good.items() if "layers.7" not in key}, "headless.pt")
    short = "blip.text_encoder.embeddings.word_embeddings.weight"
    with pytest.raises(ValueError, match="has 10 tokens, the model of .* knows 8; take the tokenizer of bert"):
        load({**good, short: good[short][:8]}, "short.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "no/such/file"}, "no weights for reward 'image_reward' 'no/such/file'"),
        ({"filename": "other.pt"}, "holds no other.pt"),
        ({"tokenizer": "no/such/folder"}, "no tokenizer for reward 'image_reward' 'no/such/folder'"),
        ({"unfit_text": "cut"}, "unfit_text 'cut' of reward 'image_reward' is unknown"),
        ({"dtype": "int8"}, "dtype 'int8' of reward 'image_reward' is unknown"),
    ],
)
def test_options(changes: dict[str, Any], message: str, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.load("image_reward", **{**options, **changes})


def test_input_that_does_not_fit(options: dict[str, str]) -> None:
    reward = rewards.load("image_reward", **options)
    with pytest.raises(ValueError, match="'image_reward' takes uint8 images"):
        reward(pictures().float(), PROMPTS, ROWS)
    with pytest.raises(ValueError, match="'image_reward' got 5 images and 4 prompts"):
        reward(pictures(), PROMPTS[:4], ROWS[:4])
