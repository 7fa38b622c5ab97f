"""The `unified_reward` reward: UnifiedReward's own model in this process, which writes its judgement.

B images, H, W their sides.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from rewards.base import FailurePolicy, Reward, RewardOutput, check, check_policy
from rewards.models.batches import check_images, check_prompts
from rewards.models.transformers_model import load_model, load_part, model_folder
from rewards.vlm import template as templates
from rewards.vlm.answers import by_numbers

NAME = "unified_reward"
#: Kind of checkpoint -> transformers' class for it.
_ARCHITECTURES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}


class UnifiedReward(Reward):
    """Scores a picture by the number from 1 to 5 that UnifiedReward (2503.05236) writes for it and its prompt.

    The model is a Qwen2.5-VL or Qwen3-VL that answers a template's question in writing, greedily, and the number after
    the template's label is the score; `vlm_judge` asks the same model behind a server, which makes batches of any size
    and is quicker. Weights: `CodeGoat24/UnifiedReward-qwen-7b`, MIT, about 8 billion parameters, 17 GB in bfloat16.

    Args:
        checkpoint: folder or hub repository of the model, its tokenizer and preprocessing.
        revision: of the hub repository.
        template: "unified_reward" or "unified_reward_short" for versions 1 and 1.5, "unified_reward_2" for 2.0
            (`rewards/vlm/templates`).
        max_tokens: of an answer; None takes the template's.
        dtype: float32, float16 or bfloat16.
        batch_size: images at a time. Answers of one batch are padded on the left; in low precision a score may move
            with it.
        failure: "raise" stops at an answer without a score; "mark" keeps it as NaN.

    Takes [B, 3, H, W] uint8 of any size. Parts: alignment, coherence and style with "unified_reward_2", whose mean the
    score is. ValueError: weights that are missing or of another kind, a template that asks for one word, images of
    another type.
    """

    name = NAME

    def __init__(
        self,
        *,
        checkpoint: str = "CodeGoat24/UnifiedReward-qwen-7b",
        revision: str | None = None,
        template: str = "unified_reward",
        max_tokens: int | None = None,
        device: str = "cpu",
        dtype: str = "bfloat16",
        batch_size: int = 4,
        failure: FailurePolicy = "raise",
    ) -> None:
        check_policy(failure)
        self.template = templates.load(template)
        if not self.template.labels:
            raise ValueError(f"the template {template!r} asks for one word; {NAME} reads numbers that are written")
        if batch_size < 1 or (max_tokens is not None and max_tokens < 1):
            raise ValueError(f"batch_size is {batch_size}, max_tokens {max_tokens}; both must be at least 1")
        folder = model_folder(NAME, checkpoint, revision=revision)
        config = folder / "config.json"
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
        if kind not in _ARCHITECTURES:
            raise ValueError(
                f"reward {NAME!r} takes a checkpoint of {' or '.join(_ARCHITECTURES)}; {folder} holds {kind!r}"
            )
        self.model, _ = load_model(NAME, _ARCHITECTURES[kind], str(folder), device=device, dtype=dtype)
        self.processor = load_part("AutoProcessor", "processor", folder, NAME)
        self.max_tokens = max_tokens or self.template.max_tokens
        self.batch_size, self.failure = batch_size, failure

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        check_images(images, NAME)
        check_prompts(images, prompts, NAME)
        answers = [
            answer
            for start in range(0, len(images), self.batch_size)
            for answer in self.write(images[start : start + self.batch_size], prompts[start : start + self.batch_size])
        ]
        numbers = [by_numbers(answer, self.template.labels, self.template.bounds) for answer in answers]
        columns = {
            label: torch.tensor([one[label] for one in numbers], device=images.device) for label in self.template.labels
        }
        scores = torch.stack(list(columns.values())).mean(dim=0)
        output = RewardOutput(scores, columns if len(columns) > 1 else {})
        return check(output, len(images), NAME, prompts, failure=self.failure)

    @torch.no_grad()
    def write(self, images: Tensor, prompts: list[str]) -> list[str]:
        """Return the answers that the model writes, greedily, without the question."""
        pictures = [
            Image.fromarray(pixels.numpy()) for pixels in rearrange(images.cpu(), "b c h w -> b h w c").contiguous()
        ]
        texts = [
            self.processor.apply_chat_template(self._message(prompt), tokenize=False, add_generation_prompt=True)
            for prompt in prompts
        ]
        inputs = self.processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)  # the pixels' type; ids stay whole numbers
        written = self.model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)
        answers: list[str] = self.processor.batch_decode(
            written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return answers

    def _message(self, prompt: str) -> list[dict[str, Any]]:
        content = [{"type": "image"}, {"type": "text", "text": self.template.question(prompt)}]
        return [{"role": "user", "content": content}]
