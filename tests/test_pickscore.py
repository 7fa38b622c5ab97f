"""pickscore on a tiny random CLIPModel, through the folders that the real one has.

The model, and another for its processor.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import rewards
from helpers.messages import names
from helpers.tiny_models import pictures, same, seeded, stir, word_tokenizer
from rewards.base import PromptError
from rewards.models import weights as weights_module

SIZE = 16
LENGTH = 9
#: The end of a text has the highest id, as in CLIP's vocabulary; "!" is 0 and pads, as in the repository of the
#: processor.
WORDS = ["!", "<|unk|>", "a", "red", "blue", "star", "ring", "and", "<|startoftext|>", "<|endoftext|>"]
PROMPTS = ["a red star", "a blue ring and a red star", "ring", "a red star", "a blue star"]
ROWS: list[dict[str, Any]] = [{} for _ in PROMPTS]
PREPROCESS = {
    "crop_size": SIZE,
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": SIZE,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from transformers import CLIPConfig, CLIPModel

    model, processor = tmp_path_factory.mktemp("pickscore"), tmp_path_factory.mktemp("processor")
    config = CLIPConfig(
        text_config={
            "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": LENGTH, "eos_token_id": 2, "projection_dim": 12,
        },
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIZE, "patch_size": 8, "projection_dim": 12,
        },
        projection_dim=12,
    )  # fmt: skip
    with seeded(0):
        clip = stir(CLIPModel(config))
    clip.logit_scale.data.fill_(3.0)
    clip.save_pretrained(model)
    word_tokenizer(
        processor, WORDS, size=LENGTH, template="<|startoftext|> $A <|endoftext|>",
        bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="!", unk_token="<|unk|>",
    )  # fmt: skip
    (processor / "preprocessor_config.json").write_text(json.dumps(PREPROCESS))
    return {"checkpoint": str(model), "processor": str(processor)}


def plain_cosines(folder: str, images: Tensor, prompts: list[str]) -> Tensor:
    """[B], image by image and text by text, without padding; the published code's steps."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        assert picture.size == (SIZE, SIZE), "nothing to resize, so nothing is rounded"
        pixels = (image.permute(1, 2, 0) / 255 - torch.tensor(PREPROCESS["image_mean"])) / torch.tensor(
            PREPROCESS["image_std"]
        )
        ids = [8, *(WORDS.index(word) for word in prompt.split()), 9]
        with torch.no_grad():
            seen = model.get_image_features(pixel_values=pixels.permute(2, 0, 1)[None]).pooler_output[0]
            said = model.get_text_features(input_ids=torch.tensor([ids])).pooler_output[0]
        scores.append(seen @ said / (seen.norm() * said.norm()))
    return torch.stack(scores)


def test_scores_are_those_of_a_plain_computation(folders: dict[str, str]) -> None:
    expected = plain_cosines(folders["checkpoint"], pictures(), PROMPTS)
    reward: Any = rewards.load("pickscore", **folders, score="cosine")
    output = reward(pictures(), PROMPTS, ROWS)
    same(output.scores, expected)
    published = rewards.load("pickscore", **folders)(pictures(), PROMPTS, ROWS)
    # exp(3) = 20.0855369...
    same(published.scores, 20.0855369 * expected, 2e-4)
    same(published.parts["cosine"], expected)
    assert not output.scores.requires_grad and not reward.model.training


def test_batches_order_padding_and_texts(folders: dict[str, str]) -> None:
    reward: Any = rewards.load("pickscore", **folders, score="cosine", batch_size=2)
    images = pictures(5, 20, 27)
    scores = reward(images, PROMPTS, ROWS).scores
    assert reward.texts.encoded == 4  # five prompts, one of them twice
    order = [3, 0, 4, 2, 1]
    assert torch.allclose(reward(images[order], [PROMPTS[k] for k in order], ROWS).scores, scores[order], atol=1e-6)
    assert reward.texts.encoded == 4
    whole = rewards.load("pickscore", **folders, score="cosine", batch_size=64)(images, PROMPTS, ROWS).scores
    same(whole, scores, 1e-6)
    alone = rewards.load("pickscore", **folders, score="cosine", batch_size=1)
    same(torch.cat([alone(images[k : k + 1], PROMPTS[k : k + 1], [{}]).scores for k in range(5)]), scores, 1e-6)
    rough = rewards.load("pickscore", **folders, score="cosine", dtype="bfloat16")(images, PROMPTS, ROWS).scores
    assert not torch.equal(rough, scores)
    same(rough, scores, 0.05)


def test_a_cut_prompt_is_told(folders: dict[str, str]) -> None:
    full = " ".join(["star"] * (LENGTH - 2))
    reward = rewards.load("pickscore", **folders)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = reward(pictures(1), [full], [{}]).scores
    with pytest.warns(UserWarning, match=f"'{full} ring' is longer than the {LENGTH} tokens that the model reads"):
        cut = reward(pictures(1), [f"{full} ring"], [{}]).scores
    assert torch.equal(cut, whole)
    with pytest.raises(ValueError, match="shorten it"):
        rewards.load("pickscore", **folders, unfit_text="raise")(pictures(1), [f"{full} ring"], [{}])
    with pytest.raises(PromptError, match="shorten it") as caught:
        rewards.load("pickscore", **folders, unfit_text="raise").check_prompts([full, f"{full} ring"], [{}, {}])
    assert caught.value.index == 1
    reward.check_prompts([f"{full} ring"], [{}])


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for without options: the published repositories, safe weights first."""
    asked: list[Any] = []

    def folder(name: str, *, revision: str | None = None, files: Any = (), what: str = "") -> Path:
        asked.append((name, revision, files[-1], what))
        raise ValueError("stop here")

    monkeypatch.setattr(weights_module, "folder", folder)
    with pytest.raises(ValueError, match="stop here"):
        rewards.load("pickscore", revision="abc")
    assert asked == [("yuvalkirstain/PickScore_v1", "abc", "model*.safetensors", "model for reward 'pickscore'")]


def test_weights_in_the_older_form(folders: dict[str, str], tmp_path: Path) -> None:
    """A repository with `pytorch_model.bin` only."""
    from safetensors.torch import load_file

    source = Path(folders["checkpoint"])
    torch.save(load_file(source / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    options = {**folders, "checkpoint": str(tmp_path)}
    given = rewards.load("pickscore", **options)(pictures(), PROMPTS, ROWS).scores
    assert torch.equal(given, rewards.load("pickscore", **folders)(pictures(), PROMPTS, ROWS).scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "probability"}, "score 'probability' of reward 'pickscore' is unknown; allowed: logit, cosine"),
        ({"unfit_text": "cut"}, "unfit_text 'cut' of reward 'pickscore' is unknown"),
        ({"checkpoint": "no/such/model"}, "no model for reward 'pickscore' 'no/such/model'"),
        ({"processor": "no/such/model"}, "no preprocessing for reward 'pickscore' 'no/such/model'"),
        ({"dtype": "int8"}, "dtype 'int8' of reward 'pickscore' is unknown"),
        ({"batch_size": 0}, "batch_size of reward 'pickscore' is 0"),
    ],
)
def test_options(options: dict[str, Any], message: str, folders: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.load("pickscore", **{**folders, **options})(pictures(), PROMPTS, ROWS)


def test_input_that_does_not_fit(folders: dict[str, str]) -> None:
    reward = rewards.load("pickscore", **folders)
    with pytest.raises(ValueError, match="'pickscore' takes uint8 images"):
        reward(pictures().float(), PROMPTS, ROWS)
    with pytest.raises(ValueError, match="'pickscore' got 5 images and 4 prompts"):
        reward(pictures(), PROMPTS[:4], ROWS[:4])


def test_out_of_memory_says_which_batch_to_try(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    reward: Any = rewards.load("pickscore", **folders, batch_size=4)

    def full(**_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(reward.model, "get_image_features", full)
    with pytest.raises(ValueError, match=names("'pickscore'", "memory", "batch of 4", "batch_size 2")):
        reward(pictures(), PROMPTS, ROWS)


# --- folders that are no such model (rewards/models/transformers_model.py)


def test_folders_that_do_not_fit(folders: dict[str, str], tmp_path: Path) -> None:
    source = Path(folders["checkpoint"])
    config, weights = (source / "config.json").read_text(), (source / "model.safetensors").read_bytes()

    def load(name: str, **files: str | bytes) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            path = folder / file.replace("__", ".")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return rewards.load("pickscore", **{**folders, "checkpoint": str(folder)})

    with pytest.raises(ValueError, match=r"holds none of model\*.safetensors, pytorch_model\*.bin"):
        load("empty", config__json=config)
    with pytest.raises(ValueError, match=r"config.json is missing or no JSON"):
        load("bare", model__safetensors=weights)
    other = json.dumps({**json.loads(config), "model_type": "git"})
    with pytest.raises(ValueError, match=r"takes a checkpoint of model_type 'clip' \(CLIPModel\).*holds 'git'"):
        load("other", config__json=other, model__safetensors=weights)
    with pytest.raises(ValueError, match="torn does not fit CLIPModel"):
        load("torn", config__json=config, model__safetensors=weights[:1000])
    deeper = json.loads(config)
    deeper["vision_config"]["num_hidden_layers"] = 3
    with pytest.raises(ValueError, match=names(16, "CLIPModel", "vision_model.encoder.layers.2")):
        load("deeper", config__json=json.dumps(deeper), model__safetensors=weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": 8}, r"not of CLIP's kind .*: size 16, crop 8"),
        ({"size": {"height": 16, "width": 20}}, "not of CLIP's kind"),
        ({"resample": 0}, "not of CLIP's kind"),
        ({"image_mean": [0.5]}, "not of CLIP's kind"),
    ],
)
def test_preprocessing_of_another_kind(
    changes: dict[str, Any], message: str, folders: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PREPROCESS, **changes}))
    with pytest.raises(ValueError, match=message):
        rewards.load("pickscore", **{**folders, "processor": str(tmp_path)})


def test_preprocessing_in_all_its_spellings(tmp_path: Path) -> None:
    from rewards.models.transformers_model import read_preprocess

    sizes = {"crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 16}, "resample": 2}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**PREPROCESS, **sizes}}))
    given = read_preprocess("pickscore", str(tmp_path), side=16)
    assert (given.size, given.resize, given.interpolation, given.std) == (
        16,
        "shortest",
        "bilinear",
        tuple(PREPROCESS["image_std"]),  # type: ignore[arg-type]
    )
    squash = {"size": {"height": 16, "width": 16}, "do_center_crop": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PREPROCESS, **squash}))
    assert read_preprocess("pickscore", str(tmp_path), side=16).resize == "squash"
    with pytest.raises(ValueError, match="makes images of 16 pixels, but the model takes 20"):
        read_preprocess("pickscore", str(tmp_path), side=20)
