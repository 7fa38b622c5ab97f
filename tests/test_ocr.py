"""ocr on drawn text, with the real recogniser and no network; texts to look for, and the score worked out by hand."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import rewards
from helpers.messages import names
from rewards.base import PromptError
from rewards.scorers.ocr import OcrReward, plain
from rewards.scorers.quotes import quoted


@pytest.fixture(scope="module")
def reward() -> OcrReward:
    # By default pictures are enlarged to 736 pixels before text is looked for, which takes seconds.
    given = rewards.load("ocr", threads=1, engine_options={"Det.limit_side_len": 160})
    assert isinstance(given, OcrReward)
    return given


def drawn(*lines: str, color: str = "black", size: tuple[int, int] = (320, 160)) -> Tensor:
    """[3, H, W] white picture with lines of text."""
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        pen.text((20, 15 + 60 * index), line, fill=color, font=ImageFont.load_default(size=40))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(size[1], size[0], 3).permute(2, 0, 1)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the recogniser went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_drawn_text_is_read(reward: OcrReward) -> None:
    images = torch.stack([drawn("Open Late"), drawn("Open Later"), drawn(), drawn("BAKERY", "no 12", color="#b01020")])
    prompts = ['a shop with the sign "open late"', 'a shop with the sign "open late"', 'a wall with "HI"', "a bakery"]
    output = reward(images, prompts, [{}, {}, {}, {"text": ["Bakery", "No 12"]}])
    # "openlater" is one letter more than "openlate", of 8; nothing is read on the wall.
    assert output.scores.tolist() == pytest.approx([1.0, 1 - 1 / 8, 0.0, 1.0])
    assert output.parts["exact"].tolist() == [1, 0, 0, 1]
    assert output.parts["letters"].tolist() == [8, 9, 0, 10]
    assert output.scores.dtype == torch.float32


@pytest.mark.usefixtures("no_network")
def test_the_engine_as_it_comes() -> None:
    reward = rewards.load("ocr", threads=1)
    assert reward(drawn("Go 24", size=(150, 150))[None], ['"Go 24"'], [{}]).scores.tolist() == [1.0]


def test_the_colours_come_in_the_right_order(reward: OcrReward, monkeypatch: pytest.MonkeyPatch) -> None:
    """RapidOCR takes rows of BGR pixels."""
    seen = []

    class Nothing:
        txts = None

    monkeypatch.setattr(reward, "engine", lambda pixels: seen.append(pixels) or Nothing)
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    image[0, 1, 2], image[2, 3, 5] = 200, 100
    assert reward.read(image) == ""
    assert (
        seen[0].shape == (4, 6, 3) and seen[0][1, 2].tolist() == [0, 0, 200] and seen[0][3, 5].tolist() == [100, 0, 0]
    )


def test_order_does_not_matter(reward: OcrReward) -> None:
    images, prompts = torch.stack([drawn("ONE"), drawn("seven")]), ['"one"', '"eleven"']
    scores = reward(images, prompts, [{}, {}]).scores
    assert scores.tolist() == pytest.approx([1.0, 1 - 2 / 6])  # sev-en, elev-en: two letters apart
    assert reward(images.flip(0), prompts[::-1], [{}, {}]).scores.tolist() == scores.flip(0).tolist()


@pytest.mark.parametrize(
    ("read", "target", "count", "ignore"),
    [
        ("hello", "hello", 1.0, 1.0),
        ("hallo", "hello", 0.8, 0.8),
        ("", "hello", 0.0, 0.0),
        ("xhellox", "hello", 0.6, 1.0),  # two letters more, of five
        ("wxyzwxyz", "hi", 0.0, 0.0),  # eight letters apart: never below 0
        ("hell", "hello", 0.8, 0.8),
    ],
)
def test_scores_by_hand(
    read: str, target: str, count: float, ignore: float, reward: OcrReward, monkeypatch: Any
) -> None:
    assert reward.score(read, target) == pytest.approx(count)
    monkeypatch.setattr(reward, "extra_text", "ignore")
    assert reward.score(read, target) == pytest.approx(ignore)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "Open" and a door "24 h"', ["Open", "24 h"]),
        ("a sign “Open”, „zu“, «ouvert»", ["Open", "zu", "ouvert"]),
        ("a sign 'Open' and ‘24 h’", ["Open", "24 h"]),
        ("the dogs' house isn't 'far'", ["far"]),
        ("a shirt with 'Don't panic'", ["Don't panic"]),
        ("""a mug with "Don't panic" on it""", ["Don't panic"]),
        ("it isn't there, and it's fine", []),
        ('an empty "" quote', []),
        ("no quotes", []),
        ("the dogs' and the cats' food", []),
        ('a 12" pizza with "OPEN" sign', ["OPEN"]),
        ('"SALE 50" on a 12" pizza', ["SALE 50"]),
        ('a sign "12" and a 5\'10" man', ["12"]),
        ("12” pizza with “OPEN”", ["OPEN"]),
        ("rock 'n' roll poster, 'LIVE'", ["LIVE"]),
        ("rock ‘n’ roll, ‘LIVE’", ["LIVE"]),
        ("Guns 'N' Roses on a shirt, 'LIVE'", ["LIVE"]),
        ("a key with the letter 'N' on it", ["N"]),
        ("a key with the letter 'n' on it", ["n"]),
        ("'90s diner, 'OPEN'", ["OPEN"]),
        ("a shirt with '24'", ["24"]),
        ("get 'em at the dogs' house", []),
        ("'BOOKS' and 'OPEN'", ["BOOKS", "OPEN"]),
        ("the sign 'Joe's Diner'", ["Joe's Diner"]),
        ('two "OPEN"s', ["OPEN"]),
        ('""OPEN"" of a table', ["OPEN"]),
        ('写着"你好"的牌子和「再见」', ["你好", "再见"]),
        ("»a« and ”b”", ["a", "b"]),
    ],
)
def test_quotes(prompt: str, texts: list[str]) -> None:
    assert quoted(prompt) == texts


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ('a sign "OPEN', "never closed"),
        ('a sign "a 12" pizza" here', "never closed"),
        ("a sign “OPEN", "never closed"),
        ("a sign 'the dogs' house'", "may end in two places"),
    ],
)
def test_quotes_that_nobody_can_tell_are_refused(prompt: str, says: str, reward: OcrReward) -> None:
    with pytest.raises(ValueError, match=says):
        quoted(prompt)
    with pytest.raises(PromptError, match="cannot tell which text the prompt .* asks for") as caught:
        reward.check_prompts(['"a"', prompt], [{}, {}])
    assert caught.value.index == 1
    reward.check_prompts([prompt], [{"text": "OPEN"}])  # the row says it


def test_prompts_without_a_text_are_refused_before_a_picture_is_read(reward: OcrReward) -> None:
    for row in ({}, {"text": 24}, {"text": ["a", 3]}, {"text": {}}, {"text": "  "}):
        with pytest.raises(PromptError, match="'a red car'") as caught:
            reward.check_prompts(["a 'b'", "a red car"], [{}, row])
        assert caught.value.index == 1


def test_targets(reward: OcrReward) -> None:
    assert reward.target('a sign "Open  Late"', {}) == "openlate"
    assert reward.target('a sign "Open"', {"text": "CLOSED now"}) == "closednow"  # the row goes first
    assert reward.target("a sign", {"text": ["A b", "C"]}) == "abc"
    assert reward.target('a sign "Open"', {"text": None}) == "open"
    assert reward.target('a "b" and "c"', {}) == "bc"
    assert plain(" STRAßE\tno.\u3000 5\n") == "strasseno.5"
    other = rewards.load("ocr", field="sign", threads=1)
    assert isinstance(other, OcrReward) and other.target("a", {"sign": "Go", "text": "stop"}) == "go"


@pytest.mark.parametrize(
    ("prompt", "row", "message"),
    [
        (
            "a red car",
            {"tag": "x"},
            r"no text to look for: the prompt 'a red car' has nothing.*no field 'text' \(fields: tag\)",
        ),
        ("a red car", {}, r"\(fields: none\); put the text in quotes"),
        ('a " " car', {}, "no text to look for"),
        ("a car", {"text": 5}, "field 'text' of the prompt 'a car' is 5; it must be a text or a list"),
        ("a car", {"text": ["a", 5]}, "it must be a text or a list"),
    ],
)
def test_rows_without_a_text(prompt: str, row: dict[str, Any], message: str, reward: OcrReward) -> None:
    with pytest.raises(ValueError, match=message):
        reward(drawn()[None], [prompt], [row])


def test_options(reward: OcrReward) -> None:
    with pytest.raises(ValueError, match=names("extra_text", "'keep'", "'ocr'", "count", "ignore")):
        rewards.load("ocr", extra_text="keep")
    with pytest.raises(ValueError, match=names("device", "'tpu'", "cpu", "cuda", "cuda:N")):
        rewards.load("ocr", device="tpu")
    with pytest.raises(ValueError, match=r"RapidOCR takes no settings \{'Dat.box': 1\}"):
        rewards.load("ocr", engine_options={"Dat.box": 1})
    with pytest.raises(ValueError, match="'ocr' takes uint8 images"):
        reward(drawn()[None].float(), ["a"], [{}])
    with pytest.raises(ValueError, match="'ocr' got 1 images and 2 prompts"):
        reward(drawn()[None], ["a", "b"], [{}, {}])


def test_cuda_needs_a_runtime_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="this onnxruntime has no CUDA; install onnxruntime-gpu"):
        rewards.load("ocr", device="cuda:1")


def test_cuda_without_a_number_is_the_card_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of several processes has another card than the first."""
    import onnxruntime
    import rapidocr

    seen: list[int] = []

    def engine(params: dict[str, Any]) -> None:
        seen.append(params["EngineConfig.onnxruntime.cuda_ep_cfg.device_id"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(rapidocr, "RapidOCR", engine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for device in ("cuda", "cuda:1"):
        rewards.load("ocr", device=device)
    assert seen == [3, 1]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ImportError, match=names("'ocr'", "rapidocr", "pip install 't2i-gcpo[rewards]'")):
        rewards.load("ocr")
