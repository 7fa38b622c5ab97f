"""grounding_dino on a tiny random model, through the folder that the real one has."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rewards
from helpers.messages import names
from helpers.tiny_models import pictures, seeded, word_tokenizer
from rewards.base import PromptError
from rewards.models import weights as weights_module
from rewards.t2i_r1.object_scores import Boxes

SIDE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Where the model's code expects BERT's marks: the words around a full stop see each other only.
PLACES = {
    0: "[PAD]",
    100: "[UNK]",
    101: "[CLS]",
    102: "[SEP]",
    1012: ".",
    1029: "?",
    200: "car",
    201: "dog",
    202: "teddy",
    203: "bear",
}
IDS = {word: index for index, word in PLACES.items()}
THRESHOLD = 0.02


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        SwinConfig,
    )

    path = tmp_path_factory.mktemp("grounding_dino")
    backbone = SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = BertConfig(vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text.to_dict(), d_model=64, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=12,
        max_text_len=16,
    )  # fmt: skip
    with seeded(0):
        model = GroundingDinoForObjectDetection(config)
        for head in model.bbox_embed:
            head.layers[-1].weight.data.normal_(std=0.5)  # zero at first: boxes that no picture moves
    model.save_pretrained(path)
    GroundingDinoImageProcessor(size={"shortest_edge": SIDE, "longest_edge": 96}).save_pretrained(path)
    word_tokenizer(
        path, [PLACES.get(index, f"[unused{index}]") for index in range(1100)], size=512, template="[CLS] $A [SEP]",
        cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
    )  # fmt: skip
    return str(path)


@functools.cache
def model_of(folder: str) -> Any:
    from transformers import GroundingDinoForObjectDetection

    return GroundingDinoForObjectDetection.from_pretrained(folder).eval()


def plain(folder: str, image: Tensor, nouns: list[str]) -> dict[str, Boxes]:
    """One picture and one caption without padding; tokens and their places counted by hand."""
    model = model_of(folder)
    height, width = image.shape[-2:]
    assert height == SIDE, "nothing to resize, so nothing is rounded"
    pixels = (image.permute(1, 2, 0) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    ids, places = [IDS["[CLS]"]], {}
    for noun in nouns:
        words = [IDS[word] for word in noun.split()]
        places[noun] = range(len(ids), len(ids) + len(words))
        ids += [*words, IDS["."]]
    with torch.no_grad():
        output = model(pixel_values=pixels.permute(2, 0, 1)[None], input_ids=torch.tensor([[*ids, IDS["[SEP]"]]]))
    found = {}
    for noun, tokens in places.items():
        boxes, scores = [], []
        for query in range(12):
            score = sum(float(torch.sigmoid(output.logits[0, query, token])) for token in tokens) / len(tokens)
            x, y, w, h = output.pred_boxes[0, query].tolist()
            if score > THRESHOLD:
                boxes.append([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])
                scores.append(score)
        found[noun] = Boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores))
    return found


def compare(given: dict[str, Boxes], expected: dict[str, Boxes], tolerance: float = 1e-5) -> None:
    assert list(given) == list(expected)
    for noun, one in given.items():
        other = expected[noun]
        assert one.scores.shape == other.scores.shape and one.boxes.shape == other.boxes.shape
        assert torch.allclose(one.scores, other.scores, rtol=0, atol=tolerance)
        assert torch.allclose(one.boxes, other.boxes, rtol=0, atol=100 * tolerance)  # pixels of some dozens


NOUNS = [["car", "dog"], ["teddy bear", "car", "dog"], ["dog"], ["car", "teddy bear"]]


@pytest.mark.parametrize("width", [SIDE, 96])
def test_objects_are_those_of_a_plain_computation(folder: str, width: int) -> None:
    """Captions of several lengths in one batch: padding changes nothing."""
    images = pictures(4, SIDE, width)
    reward: Any = rewards.load("grounding_dino", checkpoint=folder, box_threshold=THRESHOLD)
    expected = [plain(folder, image, nouns) for image, nouns in zip(images, NOUNS, strict=True)]
    numbers = [len(one.scores) for objects in expected for one in objects.values()]
    assert 0 < min(numbers) < 12 and len(set(numbers)) > 2, f"the threshold tells nothing apart: {numbers}"
    for given, other in zip(reward.detect(images, NOUNS), expected, strict=True):
        compare(given, other)
    assert not reward.model.training and not any(p.requires_grad for p in reward.model.parameters())


def rows() -> list[dict[str, Any]]:
    return [
        {"task_type": "spatial", "nouns": NOUNS[0], "spatial_info": {"obj1": "car", "obj2": "dog", "locality": "near"}},
        {"task_type": "color", "nouns": NOUNS[1], "attr_nouns": ["red car"]},
        {"task_type": "numeracy", "nouns": NOUNS[2], "numeracy_info": [{"obj_name": "dog", "num": 3}]},
        {"task_type": "non", "nouns": []},
        {"task_type": "complex", "nouns": NOUNS[3]},
    ]


def test_scores_batches_and_order(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rewards.scorers import grounding_dino
    from rewards.t2i_r1.fields import Row
    from rewards.t2i_r1.object_scores import scorer

    images, prompts = pictures(5, SIDE, SIDE, seed=4), [f"prompt {k}" for k in range(5)]
    threshold = 0.05  # some of the nouns are found, some not
    monkeypatch.setitem(globals(), "THRESHOLD", threshold)
    expected = []
    for image, prompt, row in zip(images, prompts, rows(), strict=True):
        objects = plain(folder, image, row["nouns"]) if row["nouns"] else {}
        expected.append(scorer(Row("grounding_dino", prompt, row), side=SIDE)(objects))
    reward: Any = rewards.load("grounding_dino", checkpoint=folder, box_threshold=threshold, batch_size=2)
    sizes: list[int] = []
    detect = grounding_dino.GroundingDinoReward.detect
    monkeypatch.setattr(
        reward, "detect", lambda images, nouns: sizes.append(len(images)) or detect(reward, images, nouns)
    )
    output = reward(images, prompts, rows())
    assert output.scores.tolist() == pytest.approx(expected, abs=1e-5) and len(set(expected)) > 2
    assert sizes == [2, 2]  # the row without nouns is not looked at
    assert output.parts["found"][3] == 1 and output.parts["found"][1] == output.scores[1]
    order = [4, 0, 3, 2, 1]
    shuffled = reward(images[order], [prompts[k] for k in order], [rows()[k] for k in order]).scores
    assert torch.allclose(shuffled, output.scores[order], atol=1e-6)
    alone: Any = rewards.load("grounding_dino", checkpoint=folder, box_threshold=threshold, batch_size=1)
    assert torch.allclose(alone(images, prompts, rows()).scores, output.scores, atol=1e-6)


def test_bfloat16_is_close(folder: str) -> None:
    images = pictures(1, SIDE, SIDE)
    exact: Any = rewards.load("grounding_dino", checkpoint=folder, box_threshold=0.0)
    rough: Any = rewards.load("grounding_dino", checkpoint=folder, box_threshold=0.0, dtype="bfloat16")
    given, expected = (reward.detect(images, NOUNS[:1])[0]["car"] for reward in (rough, exact))
    assert rough.model.dtype == torch.bfloat16 and given.scores.dtype == torch.float32
    assert given.scores.max() == pytest.approx(float(expected.scores.max()), abs=0.05)


def test_a_folder_of_pictures_of_one_batch_may_be_of_any_size(folder: str) -> None:
    reward: Any = rewards.load("grounding_dino", checkpoint=folder, box_threshold=0.0)
    boxes = reward.detect(pictures(1, 40, 60), [["car"]])[0]["car"].boxes
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (centres > 0).all() and (centres[:, 0] < 60).all() and (centres[:, 1] < 40).all()
    assert centres[:, 0].max() > 40  # pixels of the picture's width


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def look(name: str, *, revision: str | None = None, files: Any = (), what: str = "") -> Path:
        asked.append((name, revision, what))
        raise ValueError("stop here")

    monkeypatch.setattr(weights_module, "folder", look)
    with pytest.raises(ValueError, match="stop here"):
        rewards.load("grounding_dino", revision="abc")
    assert asked == [("IDEA-Research/grounding-dino-tiny", "abc", "model for reward 'grounding_dino'")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_threshold": 1.0}, r"box_threshold of reward 'grounding_dino' is 1.0; it must be in \[0, 1\)"),
        ({"batch_size": 0}, "batch_size of reward 'grounding_dino' is 0"),
        ({"dtype": "int8"}, "dtype 'int8' of reward 'grounding_dino' is unknown"),
        ({"checkpoint": "no/such/model"}, "no model for reward 'grounding_dino' 'no/such/model'"),
    ],
)
def test_options(options: dict[str, Any], message: str, folder: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.load("grounding_dino", **{"checkpoint": folder, **options})


def test_input_that_does_not_fit(folder: str) -> None:
    reward: Any = rewards.load("grounding_dino", checkpoint=folder)
    good = {"task_type": "object", "nouns": ["car"]}
    with pytest.raises(ValueError, match="'grounding_dino' takes uint8 images"):
        reward(pictures(1).float(), ["a"], [good])
    with pytest.raises(ValueError, match="got 2 images and 1 prompts"):
        reward(pictures(2), ["a"], [good])
    with pytest.raises(ValueError, match="needs the field 'nouns' of T2I-R1's data for the prompt 'a dog'"):
        reward(pictures(2), ["a car", "a dog"], [good, {}])
    with pytest.raises(ValueError, match="cannot tell 1 nouns apart in 'car . dog .'"):
        reward(pictures(1), ["a"], [{"nouns": ["car . dog"]}])
    many = {"nouns": [f"car{' teddy' * k}" for k in range(5)]}
    with pytest.raises(ValueError, match="longer than the 16 tokens that the model reads.*shorten it"):
        reward(pictures(1), ["a"], [many])
    spatial = {"task_type": "spatial", "nouns": ["car", "dog"]}
    numeracy = {"task_type": "numeracy", "nouns": ["car"]}
    rows: list[dict[str, Any]] = [
        {},
        {"nouns": ["car . dog"]},
        many,
        spatial,
        {**spatial, "spatial_info": {"obj1": "car", "obj2": "dog", "locality": ["left of"]}},
        {**spatial, "spatial_info": {"obj1": ["car"], "obj2": "dog", "locality": "left of"}},
        numeracy,
        *({**numeracy, "numeracy_info": [{"obj_name": "car", "num": n}]} for n in (-1, 0, 0.5, "two", True)),
    ]
    for row in rows:  # all of it is known before a picture is
        with pytest.raises(PromptError) as caught:
            reward.check_prompts(["a car", "a dog"], [good, row])
        assert caught.value.index == 1
    reward.check_prompts(["a", "b"], [good, {"nouns": []}])


def test_out_of_memory_says_which_batch_to_try(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reward: Any = rewards.load("grounding_dino", checkpoint=folder, batch_size=2)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(reward, "detect", full)
    with pytest.raises(ValueError, match=names("'grounding_dino'", "memory", "batch of 2", "batch_size 1")):
        reward(pictures(3), ["a"] * 3, [{"nouns": ["car"]}] * 3)
