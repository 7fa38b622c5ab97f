"""clip, hps and aesthetic on tiny random open_clip models, through the files and folders that the real ones have."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import rewards
from helpers.messages import names
from rewards.base import PromptError
from rewards.models import weights as weights_module
from rewards.models.preprocess import Preprocess
from rewards.models.torchvision_mend import mend
from rewards.scorers import clip as clip_module

mend()
open_clip = importlib.import_module("open_clip")

SIZE = 16
TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
WORDS = ["[PAD]", "[UNK]", "a", "red", "blue", "star", "ring", "and", "[BOS]", "[EOS]"]
PROMPTS = ["a red star", "a blue ring and a red star", "ring", "a red star", "a blue star"]
ROWS: list[dict[str, Any]] = [{} for _ in PROMPTS]


def pictures(count: int = 5, height: int = SIZE, width: int = SIZE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def build(architecture: str, seed: int = 0, **options: Any) -> Any:
    """A model of open_clip's own making, with features that differ from picture to picture and from text to text."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(architecture, **options)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.5 if "embedding" in name or "conv1" in name else 0.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`test-tiny` and `test-tiny-quickgelu`, `test-alone` without such a twin, `test-larger` for larger images."""
    folder = tmp_path_factory.mktemp("configs")
    larger = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 2 * SIZE}}  # type: ignore[dict-item]
    kinds = {
        "test-tiny": TINY,
        "test-tiny-quickgelu": {**TINY, "quick_gelu": True},
        "test-alone": TINY,
        "test-larger": larger,
    }
    for name, config in kinds.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def state_dict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(build("test-tiny").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def hps_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both versions' files, as the hub repository has them."""
    folder = tmp_path_factory.mktemp("hps")
    torch.save({"state_dict": build("test-tiny", 1).state_dict()}, folder / "HPS_v2_compressed.pt")
    torch.save({"state_dict": build("test-tiny", 2).state_dict()}, folder / "HPS_v2.1_compressed.pt")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as clip-mini's: its own words, preprocessing and tokenizer, and "." for the tokenizer's name."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("mini")
    text = {
        "context_length": 9,
        "vocab_size": len(WORDS),
        "width": 16,
        "heads": 2,
        "layers": 2,
        "hf_tokenizer_name": ".",
    }
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
    config = {"model_cfg": {**TINY, "text_cfg": text, "quick_gelu": True}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 8), ("[EOS]", 9)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="[BOS]", eos_token="[EOS]", pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    model = build(f"local-dir:{folder}", 3)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def plain_features(model: Any, image: Tensor, resize: str = "shortest") -> Tensor:
    """[D] of one image at the model's size or another, through Pillow and open_clip's own transform."""
    config = open_clip.transform.PreprocessCfg(**{**model.visual.preprocess_cfg, "resize_mode": resize})
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    pixels = transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
    features = model.encode_image(pixels[None])[0]
    return features / features.norm()


def plain_cosines(model: Any, tokenizer: Any, images: Tensor, prompts: list[str], resize: str = "shortest") -> Tensor:
    """[B], image by image and text by text."""
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        text = model.encode_text(tokenizer([prompt]))[0]
        scores.append(plain_features(model, image, resize) @ (text / text.norm()))
    return torch.stack(scores)


def same(given: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert given.dtype == torch.float32 and given.shape == expected.shape
    assert expected.std() > 1e-2, "scores that hardly differ prove nothing"
    assert (given - expected).abs().max() <= tolerance


# --- clip


def test_clip_from_a_state_dict(state_dict: Path) -> None:
    reward = rewards.load("clip", checkpoint=str(state_dict), architecture="test-tiny", quick_gelu=False)
    output = reward(pictures(), PROMPTS, ROWS)
    expected = plain_cosines(build("test-tiny"), open_clip.get_tokenizer("test-tiny"), pictures(), PROMPTS)
    same(output.scores, expected)
    same(output.parts["cosine"], expected)
    assert not output.scores.requires_grad and not reward.encoder.model.training  # type: ignore[attr-defined]
    scaled = rewards.load("clip", checkpoint=str(state_dict), architecture="test-alone", scale=2.5)
    same(scaled(pictures(), PROMPTS, ROWS).scores, 2.5 * expected)


def test_clip_from_a_model_folder_that_was_moved(model_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "mini"
    shutil.copytree(model_folder, moved)
    reward = rewards.load("clip", checkpoint=str(moved))
    model = build(f"local-dir:{model_folder}", 3)
    assert model.visual.preprocess_cfg["mean"] == [0.5, 0.4, 0.3]
    expected = plain_cosines(model, open_clip.get_tokenizer(f"local-dir:{model_folder}"), pictures(), PROMPTS, "squash")
    same(reward(pictures(), PROMPTS, ROWS).scores, expected)


def test_clip_mini_is_the_default(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_module, "ASSETS", tmp_path)
    with pytest.raises(ValueError, match=r"no clip-mini \(.*is missing\); train it with `t2i-gcpo pretrain clip`"):
        rewards.load("clip")
    shutil.copytree(model_folder, tmp_path / "clip-mini")
    named = rewards.load("clip", checkpoint=str(model_folder))(pictures(), PROMPTS, ROWS).scores
    assert torch.equal(rewards.load("clip")(pictures(), PROMPTS, ROWS).scores, named)


def test_clip_from_a_tag(state_dict: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tag's own mean and resize mode count, and its repository and revision are asked for, the safe file first."""
    about = {"hf_hub": "owner/tiny/", "mean": (0.1, 0.2, 0.3), "resize_mode": "squash", "quick_gelu": False}
    gelu = {"hf_hub": "owner/gelu/weights.pt", "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "test-tiny", {"good": about, "gelu": gelu})
    asked = []

    def file(name: str, filename: str, *, revision: str | None = None, what: str = "") -> Path:
        asked.append((name, filename, revision))
        if filename.endswith(".safetensors"):
            raise ValueError("no such file")
        return state_dict

    monkeypatch.setattr(weights_module, "file", file)
    reward = rewards.load("clip", architecture="test-tiny", pretrained="good", revision="abc")
    assert asked == [
        ("owner/tiny", "open_clip_model.safetensors", "abc"),
        ("owner/tiny", "open_clip_pytorch_model.bin", "abc"),
    ]
    model = build("test-tiny", force_preprocess_cfg={"mean": (0.1, 0.2, 0.3)})
    expected = plain_cosines(model, open_clip.get_tokenizer("test-tiny"), pictures(), PROMPTS, "squash")
    same(reward(pictures(), PROMPTS, ROWS).scores, expected)
    assert reward.encoder.preprocess.resize == "squash"  # type: ignore[attr-defined]

    with pytest.raises(ValueError, match=names("'gelu'", "QuickGELU", "test-tiny-quickg")):
        rewards.load("clip", architecture="test-tiny", pretrained="gelu")
    with pytest.raises(ValueError, match=names("'good'", "QuickGELU", "quick_gelu false")):
        rewards.load("clip", architecture="test-tiny", pretrained="good", quick_gelu=True)
    rewards.load("clip", architecture="test-tiny", pretrained="gelu", quick_gelu=True)
    assert asked[-1] == ("owner/gelu", "weights.pt", None)
    with pytest.raises(ValueError, match=names("test-tiny", "'best'", "good", "gelu")):
        rewards.load("clip", architecture="test-tiny", pretrained="best")


def test_quick_gelu_of_a_state_dict_must_be_said(state_dict: Path) -> None:
    options: dict[str, Any] = {"checkpoint": str(state_dict), "architecture": "test-tiny"}
    with pytest.raises(ValueError, match="test-tiny exists with and without QuickGELU.*set quick_gelu to true"):
        rewards.load("clip", **options)
    plain = rewards.load("clip", **options, quick_gelu=False)(pictures(), PROMPTS, ROWS).scores
    quick = rewards.load("clip", **options, quick_gelu=True)(pictures(), PROMPTS, ROWS).scores
    assert (plain - quick).abs().max() > 1e-4
    named = rewards.load("clip", checkpoint=str(state_dict), architecture="test-tiny-quickgelu")
    assert torch.equal(named(pictures(), PROMPTS, ROWS).scores, quick)
    with pytest.raises(ValueError, match=names("test-tiny-quickgelu", "quick_gelu is false")):
        rewards.load("clip", checkpoint=str(state_dict), architecture="test-tiny-quickgelu", quick_gelu=False)


def test_quick_gelu_of_a_folder_is_its_own(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="says quick_gelu True, but the option says False"):
        rewards.load("clip", checkpoint=str(model_folder), quick_gelu=False)
    said = rewards.load("clip", checkpoint=str(model_folder), quick_gelu=True)(pictures(), PROMPTS, ROWS).scores
    assert torch.equal(said, rewards.load("clip", checkpoint=str(model_folder))(pictures(), PROMPTS, ROWS).scores)


@pytest.mark.parametrize("name", ["clip", "hps"])
def test_batches_order_and_texts(name: str, state_dict: Path, hps_folder: Path) -> None:
    """Batch size, order and the other prompts do not change a score; a text is encoded once."""
    options: dict[str, Any] = {
        "checkpoint": str(state_dict if name == "clip" else hps_folder),
        "architecture": "test-alone",
    }
    reward: Any = rewards.load(name, **options, batch_size=2)
    images = pictures(5, 20, 27)
    scores = reward(images, PROMPTS, ROWS).scores
    assert reward.texts.encoded == 4  # five prompts, one of them twice
    order = [3, 0, 4, 2, 1]
    shuffled = reward(images[order], [PROMPTS[k] for k in order], ROWS).scores
    assert reward.texts.encoded == 4
    assert torch.allclose(shuffled, scores[order], atol=1e-6)
    one_by_one = [reward(images[k : k + 1], PROMPTS[k : k + 1], ROWS[:1]).scores for k in range(5)]
    assert torch.allclose(torch.cat(one_by_one), scores, atol=1e-6)
    whole = rewards.load(name, **options, batch_size=64)(images, PROMPTS, ROWS).scores
    assert torch.allclose(whole, scores, atol=1e-6) and scores.std() > 1e-2


def test_bfloat16_is_close(state_dict: Path) -> None:
    options: dict[str, Any] = {"checkpoint": str(state_dict), "architecture": "test-alone"}
    exact = rewards.load("clip", **options)(pictures(), PROMPTS, ROWS).scores
    reward: Any = rewards.load("clip", **options, dtype="bfloat16")
    assert {parameter.dtype for parameter in reward.encoder.model.parameters()} == {torch.bfloat16}
    rough = reward(pictures(), PROMPTS, ROWS).scores
    assert not torch.equal(rough, exact)
    same(rough, exact, 0.05)


# --- texts that do not fit


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_a_cut_prompt_is_told(kind: str, state_dict: Path, model_folder: Path) -> None:
    """The start and the end take two tokens of the context."""
    context = 10 if kind == "bpe" else 9
    bpe: dict[str, Any] = {"checkpoint": str(state_dict), "architecture": "test-alone"}
    options = bpe if kind == "bpe" else {"checkpoint": str(model_folder)}
    full = " ".join(["star"] * (context - 2))
    reward = rewards.load("clip", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = reward(pictures(1), [full], [{}]).scores
    with pytest.warns(UserWarning, match=f"'{full} ring' is longer than the {context} tokens that the model reads"):
        cut = reward(pictures(1), [f"{full} ring"], [{}]).scores
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        reward(pictures(1), [f"{full} a ring"], [{}])
    assert torch.equal(cut, whole)
    strict = rewards.load("clip", **options, unfit_text="raise")
    strict(pictures(1), [full], [{}])
    with pytest.raises(ValueError, match=f"'clip': the prompt '{full} ring' is longer than"):
        strict(pictures(2), [full, f"{full} ring"], [{}, {}])
    with pytest.raises(PromptError, match="is longer than") as caught:
        strict.check_prompts([full, f"{full} ring"], [{}, {}])
    assert caught.value.index == 1
    reward.check_prompts([f"{full} ring"], [{}])


def test_exclamation_marks_count(state_dict: Path) -> None:
    """In CLIP's tokenizer "!" and the padding are both 0."""
    strict = rewards.load("clip", checkpoint=str(state_dict), architecture="test-alone", unfit_text="raise")
    strict(pictures(1), ["star ! ! ! ! ! ! !"], [{}])
    with pytest.raises(ValueError, match="longer than the 10 tokens"):
        strict(pictures(1), ["star ! ! ! ! ! ! ! !"], [{}])


def test_unknown_words_are_told(model_folder: Path) -> None:
    reward = rewards.load("clip", checkpoint=str(model_folder))
    with pytest.warns(UserWarning, match="'a green star' holds words outside the model's vocabulary"):
        reward(pictures(2), ["a red star", "a green star"], [{}, {}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        reward(pictures(1), ["a purple star"], [{}])
    with pytest.raises(ValueError, match="'a green star' holds words outside"):
        rewards.load("clip", checkpoint=str(model_folder), unfit_text="raise")(pictures(1), ["a green star"], [{}])


# --- images of other sizes


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_is_pillow_s(resize: Any, interpolation: Any) -> None:
    """At most two of 255 levels from open_clip's own transform.

    Bicubic on squares: beside them Pillow may change its order.
    """
    generator = np.random.default_rng(0)
    for height, width in [(16, 16), (40, 40), (9, 9), (33, 47), (47, 33), (21, 90), (18, 11)]:
        if interpolation == "bicubic" and height != width:
            continue
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        config = open_clip.transform.PreprocessCfg(
            size=SIZE, resize_mode=resize, interpolation=interpolation, mean=(0.2, 0.3, 0.4), std=(0.5, 0.5, 0.5)
        )
        expected = open_clip.transform.image_transform_v2(config, is_train=False)(Image.fromarray(image))
        given = Preprocess(SIZE, resize, interpolation, (0.2, 0.3, 0.4), (0.5, 0.5, 0.5))(
            torch.from_numpy(image).permute(2, 0, 1)[None]
        )[0]
        assert (given - expected).abs().max() * 0.5 * 255 <= 2.01, (height, width)


# --- hps


@pytest.mark.parametrize(("version", "seed"), [("v2", 1), ("v2.1", 2)])
def test_hps_versions(version: str, seed: int, hps_folder: Path) -> None:
    reward = rewards.load("hps", version=version, checkpoint=str(hps_folder), architecture="test-tiny")
    model, tokenizer = build("test-tiny", seed), open_clip.get_tokenizer("test-tiny")
    same(reward(pictures(), PROMPTS, ROWS).scores, plain_cosines(model, tokenizer, pictures(), PROMPTS))
    # A wide picture is padded, not cropped: here to SIZE without a resize, so that nothing is rounded.
    wide = pictures(5, SIZE - 6, SIZE)
    expected = plain_cosines(model, tokenizer, wide, PROMPTS, "longest")
    same(reward(wide, PROMPTS, ROWS).scores, expected)


def test_hps_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that are asked for without options, and the architecture that they are built into."""
    asked: list[Any] = []

    def file(name: str, filename: str, *, revision: str | None = None, what: str = "") -> Path:
        asked.append((name, filename, revision, what))
        raise ValueError("stop here")

    monkeypatch.setattr(weights_module, "file", file)
    for options in ({}, {"version": "v2", "revision": "abc"}):
        with pytest.raises(ValueError, match="stop here"):
            rewards.load("hps", **options)
    assert asked == [
        ("xswu/HPSv2", "HPS_v2.1_compressed.pt", None, "weights for reward 'hps'"),
        ("xswu/HPSv2", "HPS_v2_compressed.pt", "abc", "weights for reward 'hps'"),
    ]
    assert open_clip.get_model_config("ViT-H-14")["embed_dim"] == 1024


# --- aesthetic


class ImprovedPredictor(nn.Module):
    """The layers of LAION's improved predictor, with its dropout, for features of width 12."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(12, 32), (32, 16), (16, 8), (8, 4), (4, 1)]
        first, second, third, fourth, fifth = (nn.Linear(*size) for size in sizes)
        dropouts = [nn.Dropout(rate) for rate in (0.2, 0.2, 0.1)]
        self.layers = nn.Sequential(first, dropouts[0], second, dropouts[1], third, dropouts[2], fourth, fifth)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        improved, linear = ImprovedPredictor(), nn.Linear(12, 1)
        for parameter in improved.parameters():
            nn.init.normal_(parameter, std=0.5)
    torch.save(improved.state_dict(), folder / "aesthetic-model.pth")
    torch.save(linear.state_dict(), folder / "sa_0_4_vit_l_14_linear.pth")
    return folder


@pytest.mark.parametrize("kind", ["improved", "linear"])
def test_aesthetic_heads(kind: str, heads: Path, state_dict: Path) -> None:
    file = heads / "sa_0_4_vit_l_14_linear.pth"
    head: nn.Module = nn.Linear(12, 1) if kind == "linear" else ImprovedPredictor().eval()
    head.load_state_dict(torch.load(file if kind == "linear" else heads / "aesthetic-model.pth", weights_only=True))
    reward: Any = rewards.load(
        "aesthetic",
        checkpoint=str(file if kind == "linear" else heads),
        clip_architecture="test-tiny-quickgelu",
        clip_checkpoint=str(state_dict),
        batch_size=2,
    )
    model = build("test-tiny-quickgelu")
    module = head.layers if isinstance(head, ImprovedPredictor) else head
    images = pictures()
    with torch.no_grad():
        expected = torch.stack([module(plain_features(model, image))[0] for image in images])
    scores = reward(images, PROMPTS, ROWS).scores
    same(scores, expected)
    assert torch.equal(reward(images, ["other"] * 5, ROWS).scores, scores)
    assert torch.allclose(reward(images[[4, 1]], PROMPTS[:2], ROWS[:2]).scores, scores[[4, 1]], atol=1e-6)


def test_aesthetic_defaults(monkeypatch: pytest.MonkeyPatch, heads: Path, state_dict: Path) -> None:
    """The head at the revision that was looked at, and OpenAI's ViT-L/14 with QuickGELU under it."""
    asked: list[Any] = []
    about = open_clip.get_pretrained_cfg("ViT-L-14-quickgelu", "openai")
    assert about["quick_gelu"] and open_clip.get_model_config("ViT-L-14-quickgelu")["embed_dim"] == 768

    def file(name: str, filename: str, *, revision: str | None = None, what: str = "") -> Path:
        asked.append((name, filename, revision))
        if "aesthetic" in name:
            return heads / "aesthetic-model.pth"
        raise ValueError("stop here")

    monkeypatch.setattr(weights_module, "file", file)
    with pytest.raises(ValueError, match="stop here"):
        rewards.load("aesthetic")
    repository = about["hf_hub"].rstrip("/")
    assert asked == [
        ("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth", "7f639699bec8126062148a47ecb1a4312d8e6688"),
        (repository, "open_clip_model.safetensors", None),
        (repository, "open_clip_pytorch_model.bin", None),
    ]
    asked.clear()
    with pytest.raises(ValueError, match="stop here"):
        rewards.load("aesthetic", checkpoint="owner/aesthetic")
    assert asked[0] == ("owner/aesthetic", "aesthetic-model.pth", None)


def test_aesthetic_heads_that_do_not_fit(tmp_path: Path, heads: Path, state_dict: Path) -> None:
    features: dict[str, Any] = {"clip_architecture": "test-alone", "clip_checkpoint": str(state_dict)}
    relu = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 1))})
    torch.save(relu.state_dict(), tmp_path / "relu.pth")
    with pytest.raises(ValueError, match=names("relu.pth", "layers.0.bias", "layers 0, 2, 4, 6, 7")):
        rewards.load("aesthetic", checkpoint=str(tmp_path / "relu.pth"), **features)
    torch.save(nn.Linear(768, 1).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="takes features of width 768, but test-alone gives 12"):
        rewards.load("aesthetic", checkpoint=str(tmp_path / "wide.pth"), **features)
    with pytest.raises(ValueError, match="no head for reward 'aesthetic'.*holds no aesthetic-model.pth"):
        rewards.load("aesthetic", checkpoint=str(tmp_path), **features)


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "ViT-B-32"}, "architecture 'ViT-B-32' has no weights; add pretrained"),
        ({"architecture": "ViT-B-23", "pretrained": "openai"}, "no architecture 'ViT-B-23'; near it: .*ViT-B-32"),
        ({"pretrained": "openai"}, "pretrained 'openai' goes with an architecture"),
        ({"pretrained": "openai", "architecture": "ViT-B-32"}, "trained with QuickGELU, but ViT-B-32"),
        (
            {"checkpoint": "x/y", "pretrained": "openai", "architecture": "ViT-B-32"},
            "an architecture and no checkpoint",
        ),
        ({"checkpoint": "no/such/folder"}, "no open_clip model for reward 'clip' 'no/such/folder'"),
        ({"dtype": "float8"}, "dtype 'float8' of reward 'clip' is unknown; allowed: float32, float16, bfloat16"),
        ({"unfit_text": "cut"}, "unfit_text 'cut' of reward 'clip' is unknown; allowed: warn, raise"),
    ],
)
def test_clip_options(
    options: dict[str, Any], message: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_folder, tmp_path / "clip-mini")
    monkeypatch.setattr(clip_module, "ASSETS", tmp_path)
    with pytest.raises(ValueError, match=message):
        rewards.load("clip", **options)


def test_files_that_are_no_weights(tmp_path: Path, state_dict: Path, model_folder: Path) -> None:
    def load(path: Path, **options: Any) -> Any:
        return rewards.load("clip", checkpoint=str(path), **{"architecture": "test-alone", **options})

    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(ValueError, match="text.pt cannot be read as weights"):
        load(tmp_path / "text.pt")
    torch.save({"state_dict": {"weight": Path("x")}}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="code.pt cannot be read as weights"):
        load(tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="list.pt holds no state_dict"):
        load(tmp_path / "list.pt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=re.compile(r"other.pt does not fit test-alone.{1,340}$", re.S)):
        load(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=names("tiny.pt", "test-larger", "visual.positional_embedding", "[5, 32]")):
        load(state_dict, architecture="test-larger")
    with pytest.raises(ValueError, match="tiny.pt is a file; say its architecture"):
        load(state_dict, architecture=None)

    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    (broken / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"open_clip_config.json is missing or has no model_cfg"):
        load(broken, architecture=None)
    shutil.copy(model_folder / "open_clip_config.json", broken)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"the tokenizer of .*broken cannot be loaded"):
        load(broken, architecture=None)
    (broken / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"broken holds none of open_clip_model.safetensors"):
        load(broken, architecture=None)


def test_hps_and_images(hps_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=names("'v3'", "'hps'", "v2", "v2.1")):
        rewards.load("hps", version="v3")
    with pytest.raises(ValueError, match=r"holds no HPS_v2.1_compressed.pt"):
        rewards.load("hps", checkpoint=str(tmp_path), architecture="test-tiny")
    reward = rewards.load("hps", checkpoint=str(hps_folder), architecture="test-tiny")
    with pytest.raises(ValueError, match="'hps' takes uint8 images"):
        reward(pictures().float(), PROMPTS, ROWS)
    with pytest.raises(ValueError, match="got 5 images and 4 prompts"):
        reward(pictures(), PROMPTS[:4], ROWS[:4])
    with pytest.raises(ValueError, match="'hps' cannot run on device 'cuda:99'"):
        rewards.load("hps", checkpoint=str(hps_folder), architecture="test-tiny", device="cuda:99")
    with pytest.raises(ValueError, match="'hps' cannot run on device 'meta': tensors on it have no values"):
        rewards.load("hps", checkpoint=str(hps_folder), architecture="test-tiny", device="meta")
