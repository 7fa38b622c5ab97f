"""UnifiedReward in this process: a tiny random Qwen2.5-VL in the true layout, through the real loading path."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rewards
from helpers.tiny_models import pictures, stir
from rewards.models.torchvision_mend import mend
from rewards.scorers.unified_reward import UnifiedReward

MARKS = "<pad> <unk> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>".split()
WORDS = "Final Score: 1 2 3 4 5 Text Caption: [a red star] blue".split()
CHAT = (
    "{% for m in messages %}<|im_start|> {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %} {{ c['text'] }}{% endif %}{% endfor %}<|im_end|> "
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
PROMPTS = ["a red star", "a blue star, a red star and a blue", "blue"]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: k for k, word in enumerate(MARKS + WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=MARKS[2:], **named)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 32 features; images of 16 x 16 pixels are 4 patches."""
    mend()
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    ids = {word: k for k, word in enumerate(MARKS)}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": len(MARKS + WORDS), "rope_parameters": rope, "pad_token_id": 0}
    sight = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
    sight |= {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config={**text, "bos_token_id": 2, "eos_token_id": 3},
        vision_config=sight,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    folder = tmp_path_factory.mktemp("unified_reward")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = stir(Qwen2_5_VLForConditionalGeneration(config))
    model.generation_config.suppress_tokens = list(range(len(MARKS)))  # random weights like the marks too well
    model.save_pretrained(folder)
    processing = Qwen2VLImageProcessor(patch_size=4, min_pixels=64, max_pixels=1024)
    videos = Qwen2VLVideoProcessor(patch_size=4)
    Qwen2_5_VLProcessor(processing, tokenizer(), videos, chat_template=CHAT).save_pretrained(folder)
    return folder


def load(checkpoint: Path, **options: Any) -> UnifiedReward:
    reward = rewards.load(
        "unified_reward", **{"checkpoint": str(checkpoint), "dtype": "float32", "max_tokens": 6, **options}
    )
    assert isinstance(reward, UnifiedReward)
    return reward


def test_what_is_written_is_a_plain_greedy_loop(checkpoint: Path) -> None:
    """Without a cache, padding or a batch: one picture and one prompt, the likeliest token six times."""
    reward = load(checkpoint, batch_size=3)
    images = pictures(3)
    written = reward.write(images, PROMPTS)
    from PIL import Image

    for image, prompt, got in zip(images, PROMPTS, written, strict=True):
        text = chat_of(reward, prompt)
        inputs = reward.processor(
            text=[text], images=[Image.fromarray(image.permute(1, 2, 0).numpy())], return_tensors="pt"
        )
        tokens = inputs["input_ids"]
        start = tokens.shape[1]
        for _ in range(6):
            more = tokens.shape[1] - start
            kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, more))
            with torch.no_grad():
                logits = reward.model(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    pixel_values=inputs["pixel_values"],
                    image_grid_thw=inputs["image_grid_thw"],
                    mm_token_type_ids=kinds,
                    use_cache=False,
                ).logits[0, -1]
            logits[: len(MARKS)] = -torch.inf
            tokens = torch.cat([tokens, logits.argmax().reshape(1, 1)], dim=1)
        assert got == reward.processor.batch_decode(tokens[:, start:], skip_special_tokens=True)[0]
    assert len(written[0].split()) == 6 and len(set(written)) > 1, (
        "answers that do not depend on what is asked prove nothing"
    )


def chat_of(reward: UnifiedReward, prompt: str) -> str:
    text: str = reward.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": reward.template.question(prompt)}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert f"Text Caption: [{prompt}]" in text and text.count("<|image_pad|>") == 1
    return text


def test_the_picture_matters(checkpoint: Path) -> None:
    reward = load(checkpoint, max_tokens=12)
    answers = {reward.write(image[None], PROMPTS[:1])[0] for image in pictures(6)}
    assert len(answers) > 1


def write_this(reward: UnifiedReward, monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[int]:
    """The answers in turn, in place of what random weights write; returns the sizes of the batches."""
    left, sizes = list(answers), list[int]()

    def write(images: Tensor, prompts: list[str]) -> list[str]:
        sizes.append(len(images))
        assert len(prompts) == len(images)
        return [left.pop(0) for _ in prompts]

    monkeypatch.setattr(reward, "write", write)
    return sizes


def test_scores_are_what_is_written(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = load(checkpoint, batch_size=2)
    sizes = write_this(reward, monkeypatch, "star (object): 1\nFinal Score: 4.5", "Final Score: 2", "Final Score: 1")
    assert reward(pictures(3), PROMPTS, [{}] * 3).scores.tolist() == [4.5, 2, 1] and sizes == [2, 1]


def test_three_axes_and_their_mean(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = load(checkpoint, template="unified_reward_2", failure="mark")
    good = "Alignment Score (1-5): 4\nCoherence Score (1-5): 2\nStyle Score (1-5): 3"
    write_this(reward, monkeypatch, good, "Alignment Score (1-5): 4\nStyle Score (1-5): 3")
    output = reward(pictures(2), PROMPTS[:2], [{}] * 2)
    assert output.scores[0] == 3 and math.isnan(output.scores[1])
    assert output.parts["alignment"].tolist() == [4, 4] and output.parts["coherence"].isnan().tolist() == [False, True]


def test_an_answer_without_a_score(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = load(checkpoint)
    write_this(reward, monkeypatch, "It is nice.")
    with pytest.raises(ValueError, match="reward 'unified_reward' gave 1 of 1 images a score that is not finite"):
        reward(pictures(1), PROMPTS[:1], [{}])


def test_low_precision_runs(checkpoint: Path) -> None:
    reward = load(checkpoint, dtype="bfloat16")
    assert len(reward.write(pictures(2), PROMPTS[:2])) == 2 and reward.model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "vqascore"}, "asks for one word; unified_reward reads numbers"),
        ({"template": "nonsense"}, "there is no template 'nonsense'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"failure": "ignore"}, "failure policy"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_options_that_are_wrong(checkpoint: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(checkpoint, **options)


def test_weights_of_another_kind(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    with pytest.raises(ValueError, match="takes a checkpoint of qwen2_5_vl or qwen3_vl; .* holds 'llava'"):
        load(tmp_path)
    with pytest.raises(ValueError, match="takes uint8 images"):
        load(checkpoint)(torch.zeros(1, 3, 8, 8), ["a"], [{}])
