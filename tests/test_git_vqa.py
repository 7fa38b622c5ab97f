"""git_vqa on a tiny random GIT, through the folder that the real one has."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rewards
from helpers.messages import names
from helpers.tiny_models import pictures, same, seeded, stir, word_tokenizer
from rewards.base import PromptError
from rewards.models import weights as weights_module
from rewards.models.preprocess import CLIP_MEAN, CLIP_STD

SIZE = 16
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "yes", "no", "?", "red", "blue", "car", "dog", "teddy", "bear"]
PREPROCESS = {
    "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE},
    "size": {"shortest_edge": SIZE},
    "resample": 3,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
}


def save(path: Path, words: list[str] = WORDS, template: str = "[CLS] $A [SEP]") -> None:
    from transformers import GitConfig, GitForCausalLM

    config = GitConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 8,
        },
        vocab_size=len(words),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=2,
        eos_token_id=3,
    )
    with seeded(1):
        model = stir(GitForCausalLM(config), 0.4)
    model.save_pretrained(path)
    word_tokenizer(
        path,
        words,
        size=16,
        template=template,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("git")
    save(path)
    return str(path)


ROWS: list[dict[str, Any]] = [
    {"task_type": "color", "nouns": ["car", "bear"], "attr_nouns": ["red car", "blue teddy bear"]},
    {"task_type": "non", "nouns": ["dog"]},
    {"task_type": "spatial", "nouns": ["dog", "car"]},
    {"task_type": "complex", "nouns": ["dog", "teddy bear", "car"], "attr_nouns": None},
    {"task_type": "numeracy", "nouns": ["dog"]},
    {"task_type": "non", "nouns": []},
    {"task_type": "color", "nouns": ["car"], "attr_nouns": ["blue car"]},
]
PROMPTS = [f"prompt {k}" for k in range(len(ROWS))]
#: What T2I-R1 asks for, row by row; None: a fixed score.
ASKED = [["red car", "blue teddy bear"], ["dog"], None, ["dog", "teddy bear", "car"], None, None, ["blue car"]]


@functools.cache
def model_of(folder: str) -> Any:
    from transformers import GitForCausalLM

    return GitForCausalLM.from_pretrained(folder).eval()


def plain(folder: str, image: Tensor, things: list[str]) -> float:
    """T2I-R1's own steps: one picture, one question at a time, no padding, no end mark.

    The next token's probabilities.
    """
    model = model_of(folder)
    pixels = (image.permute(1, 2, 0) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    answers = []
    for thing in things:
        ids = [2, *(WORDS.index(word) for word in thing.split()), WORDS.index("?")]
        with torch.no_grad():
            logits = model(pixel_values=pixels.permute(2, 0, 1)[None], input_ids=torch.tensor([ids])).logits[0, -1]
        probabilities = logits.softmax(dim=0)
        yes, no = float(probabilities[WORDS.index("yes")]), float(probabilities[WORDS.index("no")])
        answers.append(yes / (yes + no))
    return sum(answers) / len(answers)


def test_scores_are_those_of_a_plain_computation(folder: str) -> None:
    images = pictures(len(ROWS), SIZE, SIZE)
    fixed = {2: 0.0, 4: 0.0, 5: 1.0}  # spatial, numeracy; nothing to ask for
    expected = torch.tensor(
        [fixed[k] if things is None else plain(folder, images[k], things) for k, things in enumerate(ASKED)]
    )
    reward: Any = rewards.load("git_vqa", checkpoint=folder)
    output = reward(images, PROMPTS, ROWS)
    same(output.scores, expected)
    asked = torch.tensor([things is not None for things in ASKED])
    same(output.parts["yes"][asked], expected[asked])
    assert output.parts["yes"][~asked].isnan().all()
    assert not output.scores.requires_grad and not reward.model.training


def test_batches_order_and_padding(folder: str) -> None:
    images = pictures(len(ROWS), 20, 27)
    scores = rewards.load("git_vqa", checkpoint=folder, batch_size=2)(images, PROMPTS, ROWS).scores
    order = [3, 0, 6, 5, 2, 1, 4]
    reward = rewards.load("git_vqa", checkpoint=folder, batch_size=3)
    shuffled = reward(images[order], [PROMPTS[k] for k in order], [ROWS[k] for k in order]).scores
    same(shuffled, scores[order])
    same(rewards.load("git_vqa", checkpoint=folder, batch_size=1)(images, PROMPTS, ROWS).scores, scores)
    rough: Any = rewards.load("git_vqa", checkpoint=folder, dtype="bfloat16")
    assert rough.model.dtype == torch.bfloat16
    same(rough(images, PROMPTS, ROWS).scores, scores, 0.1)


def test_each_picture_is_looked_at_once(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reward: Any = rewards.load("git_vqa", checkpoint=folder, batch_size=8)
    looked: list[int] = []
    see = reward.model.git.image_encoder.forward

    def forward(pixels: Tensor, **options: Any) -> Any:
        looked.append(len(pixels))
        return see(pixels, **options)

    monkeypatch.setattr(reward.model.git.image_encoder, "forward", forward)
    reward(pictures(len(ROWS), SIZE, SIZE), PROMPTS, ROWS)
    assert looked == [4]  # four pictures with seven questions


def test_nothing_to_ask_is_no_error(folder: str) -> None:
    output = rewards.load("git_vqa", checkpoint=folder)(pictures(2), ["a", "b"], [ROWS[2], ROWS[5]])
    assert output.scores.tolist() == [0, 1] and output.parts["yes"].isnan().all()


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def look(name: str, *, revision: str | None = None, files: Any = (), what: str = "") -> Path:
        asked.append((name, revision, what))
        raise ValueError("stop here")

    monkeypatch.setattr(weights_module, "folder", look)
    with pytest.raises(ValueError, match="stop here"):
        rewards.load("git_vqa", revision="abc")
    assert asked == [("microsoft/git-large-vqav2", "abc", "model for reward 'git_vqa'")]


def test_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    save(tmp_path / "silent", [word if word != "yes" else "yeah" for word in WORDS])
    with pytest.raises(ValueError, match=r"the tokenizer makes \[2, 1, 3\] of 'yes'; one token between"):
        rewards.load("git_vqa", checkpoint=str(tmp_path / "silent"))
    save(tmp_path / "endless", template="[CLS] $A")
    with pytest.raises(ValueError, match=r"the tokenizer makes \[2, 4\] of 'yes'"):
        rewards.load("git_vqa", checkpoint=str(tmp_path / "endless"))


def test_input_that_does_not_fit(folder: str, tmp_path: Path) -> None:
    reward: Any = rewards.load("git_vqa", checkpoint=folder)
    with pytest.raises(ValueError, match="'git_vqa' takes uint8 images"):
        reward(pictures(1).float(), ["a"], ROWS[:1])
    with pytest.raises(ValueError, match="'git_vqa' got 2 images and 1 prompts"):
        reward(pictures(2), ["a"], ROWS[:1])
    with pytest.raises(ValueError, match=names("'git_vqa'", "'nouns'", "'a dog'")):
        reward(pictures(2), ["a car", "a dog"], [ROWS[0], {"tag": "colors"}])
    with pytest.raises(ValueError, match="'attr_nouns' .* it is 'red car'"):
        reward(pictures(1), ["a car"], [{"attr_nouns": "red car"}])
    for row in ({"tag": "colors"}, {"attr_nouns": "red car"}, {"nouns": [3]}):
        with pytest.raises(PromptError, match="'git_vqa' needs the field") as caught:
            reward.check_prompts(["a car", "a dog"], [ROWS[0], row])
        assert caught.value.index == 1
    reward.check_prompts(["a"] * len(ROWS), ROWS)
    with pytest.raises(ValueError, match="batch_size of reward 'git_vqa' is 0"):
        rewards.load("git_vqa", checkpoint=folder, batch_size=0)(pictures(1), ["a"], ROWS[:1])
    with pytest.raises(ValueError, match="no model for reward 'git_vqa' 'no/such/model'"):
        rewards.load("git_vqa", checkpoint="no/such/model")


def test_out_of_memory_says_which_batch_to_try(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reward: Any = rewards.load("git_vqa", checkpoint=folder, batch_size=4)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(reward.model.git, "forward", full)
    with pytest.raises(ValueError, match=names("'git_vqa'", "memory", "batch of 4", "batch_size 2")):
        reward(pictures(len(ROWS), SIZE, SIZE), PROMPTS, ROWS)
