"""Colours of objects by CLIP, and the geneval reward with detectors whose objects have none.

A tiny random open_clip model.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rewards
from helpers.messages import names
from helpers.tiny_models import pictures, seeded, stir
from rewards.geneval import Detection
from rewards.geneval import reward as reward_module
from rewards.geneval.colors import COLOR_NAMES, ClipColors, crop
from rewards.geneval.reward import GenEvalReward
from rewards.geneval.rules import colorless

open_clip = importlib.import_module("open_clip")

SIZE = 16
TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of ClipColors for a state_dict of a tiny model."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "color-tiny.json").write_text(json.dumps({**TINY, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    torch.save(build().state_dict(), folder / "tiny.pt")
    return {"architecture": "color-tiny", "checkpoint": str(folder / "tiny.pt")}


def build() -> Any:
    with seeded(0):
        return stir(open_clip.create_model("color-tiny"))


def masked(box: tuple[int, int, int, int], height: int, width: int, hole: bool = False) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    if hole:
        mask[box[1] + 1 : box[1] + 4, box[0] + 2 : box[0] + 6] = False
    return mask


def plain_color(model: Any, image: Tensor, one: Detection) -> str:
    """GenEval's own steps, one object at a time.

    Pillow's composite and crop, open_clip's transform, the mean of three texts.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    if one.mask is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, color="#999"), Image.fromarray(one.mask))
    config = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    pixels = open_clip.transform.image_transform_v2(config, is_train=False)(picture.crop(one.box))
    feature = model.encode_image(pixels[None])[0]
    tokenizer = open_clip.get_tokenizer("color-tiny")
    scores = []
    for color in ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]:
        texts = [
            f"a photo of a {color} {one.class_name}",
            f"a photo of a {color}-colored {one.class_name}",
            f"a photo of a {color} object",
        ]
        features = model.encode_text(tokenizer(texts))
        mean = (features / features.norm(dim=1, keepdim=True)).mean(dim=0)
        scores.append((color, float(feature @ mean / mean.norm())))
    return max(scores, key=lambda row: row[1])[0]


# A crop of SIZE pixels a side is not resized, so nothing is rounded.
BOXES = [(2, 3, 18, 19), (0, 0, 16, 16), (10, 8, 26, 24)]


def cut_outs(images: Tensor) -> list[tuple[Tensor, Detection]]:
    """Every picture, box and class; masks with and without a hole, and none."""
    height, width = images.shape[-2:]
    found = []
    for image in images:
        for index, box in enumerate(BOXES):
            mask = None if index == 1 else masked(box, height, width, hole=index == 0)
            name = ["cat", "wine glass", "bus"][index]
            found.append((image, Detection(name, 0.9, tuple(map(float, box)), mask)))  # type: ignore[arg-type]
    return found


def test_colors_are_those_of_a_plain_computation(options: dict[str, Any]) -> None:
    images = pictures(4, 24, 30)
    rows = cut_outs(images)
    model = build()
    expected = [plain_color(model, image, one) for image, one in rows]
    assert len(set(expected)) >= 4, "colours alike prove nothing"
    namer = ClipColors(**options, batch_size=4)
    assert namer([image for image, _ in rows], [one for _, one in rows]) == expected
    assert namer.texts.encoded == 3  # a class's texts once
    order = [7, 2, 11, 0]
    given = ClipColors(**options, batch_size=3)([rows[k][0] for k in order], [rows[k][1] for k in order])
    assert given == [expected[k] for k in order]
    assert namer([], []) == []


def test_a_crop_by_hand() -> None:
    image = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    mask = np.zeros((4, 5), dtype=bool)
    mask[1, 1], mask[2, 3] = True, True
    given = crop(image, Detection("cat", 0.9, (1.0, 1.0, 4.0, 3.0), mask))
    assert given[0].tolist() == [[6, 153, 153], [153, 153, 13]]
    assert crop(image, Detection("cat", 0.9, (1.0, 1.0, 4.0, 3.0)))[0].tolist() == [[6, 7, 8], [11, 12, 13]]
    assert torch.equal(image, torch.arange(60, dtype=torch.uint8).reshape(3, 4, 5))  # untouched


def test_the_colours_are_geneval_s() -> None:
    assert COLOR_NAMES == ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


def seen(name: str, score: float, color: str | None = None) -> Detection:
    return Detection(name, score, (0.0, 0.0, 8.0, 8.0), color=color)


def clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def test_which_colours_a_verdict_asks_for() -> None:
    cats = [seen("cat", 0.9), seen("cat", 0.8), seen("cat", 0.7), seen("cat", 0.2)]
    bus, named = seen("bus", 0.9), seen("cup", 0.9, "red")
    found = [*cats, bus, named]

    def asked(*include: dict[str, Any], tag: str = "colors") -> list[float]:
        return [one.score for one in colorless(found, {"tag": tag, "include": list(include)})]

    assert asked(clause("cat", 2, color="red")) == [0.9, 0.8]
    assert asked(clause("cat", 2)) == [] and asked(clause("cat", color=None)) == []
    assert asked(clause("cat", 4, color="red")) == []  # too few: the verdict falls before the colour
    assert asked(clause("cup", color="blue")) == []  # it has one
    assert asked(clause("cat", color="red"), clause("cat", 2, color="blue")) == [0.9, 0.8]  # each once
    assert asked(clause("cat", color="red"), tag="counting") == []  # 0.9 is not above 0.9
    assert colorless(found, {"exclude": [clause("cat", 1, color="red")]}) == []


class Fixed:
    """A detector without colours: the first rows of `found`."""

    names_colors = False
    classes = ("cat", "bus", "dog")

    def __init__(self, found: list[list[Detection]]) -> None:
        self.found = found

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        return self.found[: len(images)]


ROWS = [
    {"tag": "colors", "include": [clause("cat", color="red")]},
    {"tag": "color_attr", "include": [clause("cat", color="red"), clause("bus", color="blue")]},
    {"tag": "two_object", "include": [clause("cat"), clause("bus")], "exclude": [clause("dog", 1)]},
]


def test_colours_of_a_whole_batch_are_read_together(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(3, 24, 30)
    found = [
        [seen("cat", 0.9)],
        [seen("cat", 0.9), seen("bus", 0.8), seen("cat", 0.7)],
        [seen("cat", 0.9), seen("bus", 0.9), seen("dog", 0.5)],
    ]
    reward = GenEvalReward(detector=Fixed(found), color_options=options)
    calls: list[Any] = []

    def names(pictures: list[Tensor], objects: list[Detection]) -> list[str]:
        calls.append((pictures, [one.class_name for one in objects]))
        return ["red", "red", "green"]

    monkeypatch.setattr(reward, "clip_colors", names)
    output = reward(images, ["a"] * 3, ROWS)
    assert len(calls) == 1 and calls[0][1] == ["cat", "cat", "bus"]
    assert [torch.equal(given, images[k]) for given, k in zip(calls[0][0], (0, 1, 1), strict=True)] == [True] * 3
    assert output.scores.tolist() == [1, 0, 0]
    assert output.parts["clauses"].tolist() == pytest.approx([1, 0.5, 2 / 3])
    parts = [output.parts[f"clause/{k}"] for k in range(3)]
    assert parts[0].tolist() == [1, 1, 1] and parts[1][1:].tolist() == [0, 1] and parts[2][2:].tolist() == [0]
    assert parts[1].isnan().tolist() == [True, False, False] and parts[2].isnan().tolist() == [True, True, False]
    assert found[0][0].color is None  # what the detector returned is untouched


def test_clip_s_colours_decide(options: dict[str, Any]) -> None:
    """The whole way: the verdict is right for the colour that a plain computation finds, and wrong for any other."""
    images = pictures(2, 24, 30)
    model = build()
    one = Detection("cat", 0.9, (2.0, 3.0, 18.0, 19.0), masked((2, 3, 18, 19), 24, 30))
    colors = [plain_color(model, image, one) for image in images]
    other = next(color for color in COLOR_NAMES if color not in colors)
    reward = GenEvalReward(detector=Fixed([[one], [one]]), color_options=options, batch_size=1)
    assert reward.clip_colors is not None and reward.clip_colors.batch_size == 1

    def score(first: str, second: str) -> list[float]:
        rows = [{"tag": "colors", "include": [clause("cat", color=color)]} for color in (first, second)]
        return reward(images, ["a"] * 2, rows).scores.tolist()

    assert score(colors[0], colors[1]) == [1, 1]
    assert score(other, colors[1]) == [0, 1] and score(colors[0], other) == [1, 0]


def test_mask2former_by_name_with_its_options(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, **given: Any) -> Fixed:
        asked.append((name, given))
        return Fixed([[seen("cat", 0.9)]] * 3)

    monkeypatch.setattr(reward_module, "load_detector", load)
    reward: Any = rewards.load(
        "geneval",
        detector="mask2former",
        dtype="bfloat16",
        batch_size=2,
        detector_options={"checkpoint": "mine", "batch_size": 1},
        color_options=options,
    )
    assert asked == [("mask2former", {"dtype": "bfloat16", "batch_size": 1, "checkpoint": "mine"})]
    assert reward.clip_colors.encoder.dtype == torch.bfloat16 and reward.clip_colors.batch_size == 2
    mine = GenEvalReward(detector=Fixed([[seen("cat", 0.9)]]), colors=lambda found: ["red"] * len(found))
    assert mine.clip_colors is None and mine(pictures(1), ["a"], ROWS[:1]).scores.tolist() == [1]


def test_reward_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="detector 'shapes' has no option device; allowed: none"):
        rewards.load("geneval", device="cpu")
    with pytest.raises(ValueError, match="has no use for score_threshold: .* built already has its own"):
        GenEvalReward(detector=Fixed([]), color_options=options, detector_options={"score_threshold": 0.5})
    with pytest.raises(ValueError, match="has no use for batch_size"):
        GenEvalReward(detector=Fixed([]), colors=lambda found: [], batch_size=2)
    with pytest.raises(ValueError, match="with 'shapes' has no use for architecture, checkpoint: colour options"):
        rewards.load("geneval", color_options=options)
    reward = GenEvalReward(detector=Fixed([[]]), color_options=options)
    for field in ("include", "exclude"):
        row = {"tag": "x", "include": [clause("cat")], field: [clause("unicorn")]}
        with pytest.raises(ValueError, match="'a unicorn' asks for the class 'unicorn'.*it knows: cat, bus, dog"):
            reward(pictures(1), ["a unicorn"], [row])
    with pytest.raises(ValueError, match=names("'cat'", "circle")):
        rewards.load("geneval")(pictures(1), ["a cat"], ROWS[:1])
