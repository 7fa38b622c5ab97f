"""Defines the `grounding_dino` reward: the prompt's objects are looked for, counted and placed by Grounding DINO.

B images, H, W their sides, Q the model's boxes a picture, T tokens of a caption, N boxes of an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rewards.base import Reward, RewardOutput, check_each
from rewards.models.batches import check_batch_size, check_images, check_prompts, memory_errors
from rewards.models.text_tokens import TextReader
from rewards.models.transformers_model import load_image_processor, load_model
from rewards.t2i_r1 import fields as t2i_r1
from rewards.t2i_r1.object_scores import Boxes, present, scorer


class GroundingDinoReward(Reward):
    """Scores objects as T2I-R1 does (arXiv 2505.00703), detected by Grounding DINO (arXiv 2303.05499), in [0, 1].

    By the row's `task_type`:

    - `spatial`: 0.2 for each of the two objects that is found; with both, half of `locality_score` on their surest
      boxes. At most 0.9.
    - `numeracy`: the mean over `numeracy_info`: 1 where the number of boxes is right, 0.2 for another number, 0 for
      none.
    - any other: the share of the row's `nouns` that is found.

    A prompt without nouns scores 1. A box is an object's where the mean probability of the object's tokens is above
    `box_threshold`. Weights: `IDEA-Research/grounding-dino-tiny` (Swin-T, Apache-2.0), the checkpoint that T2I-R1 uses.

    Args:
        checkpoint: folder or hub repository of the `GroundingDinoForObjectDetection`, its tokenizer and image
            processor.
        revision: of the hub repository.
        box_threshold: least probability of a box, exclusive.
        dtype: float32, float16 or bfloat16; the probabilities are float32.
        batch_size: images at a time; each is enlarged to 800 pixels on its shorter side.

    Takes [B, 3, H, W] uint8 of any size. Text and picture are read together, so there are no text features to keep.
    Part: `found`, the share of the nouns that is found, for every task. ValueError: weights that are missing or do not
    fit, a row without the fields of its task, images of another type.
    """

    name = "grounding_dino"

    def __init__(
        self,
        *,
        checkpoint: str = "IDEA-Research/grounding-dino-tiny",
        revision: str | None = None,
        box_threshold: float = 0.3,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        check_batch_size(batch_size, "reward 'grounding_dino'")
        if not 0 <= box_threshold < 1:
            raise ValueError(f"box_threshold of reward 'grounding_dino' is {box_threshold}; it must be in [0, 1)")
        self.model, folder = load_model(
            "grounding_dino",
            "GroundingDinoForObjectDetection",
            checkpoint,
            revision=revision,
            device=device,
            dtype=dtype,
        )
        self.processor = load_image_processor("grounding_dino", folder)
        self.read = TextReader("grounding_dino", str(folder), length=self.model.config.max_text_len, unfit_text="raise")
        self.box_threshold, self.batch_size = box_threshold, batch_size

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Raise PromptError for the first row without its task's fields, or with nouns that cannot be told apart."""
        check_each(self._check, prompts, metadata)

    def _check(self, prompt: str, row: dict[str, Any]) -> None:
        fields = t2i_r1.Row("grounding_dino", prompt, row or {})
        scorer(fields, side=1)
        nouns = list(dict.fromkeys(fields.nouns()))
        if nouns:
            self._places(self.read([_caption(nouns)])["input_ids"][0], len(nouns))

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        check_images(images, "grounding_dino")
        check_prompts(images, prompts, "grounding_dino")
        rows = t2i_r1.rows("grounding_dino", prompts, metadata)
        rate = [scorer(row, side=max(images.shape[-2:])) for row in rows]
        nouns = [row.nouns() for row in rows]
        asked = [index for index, names in enumerate(nouns) if names]
        scores, share = torch.ones(len(images)), torch.ones(len(images))
        for start in range(0, len(asked), self.batch_size):
            part = asked[start : start + self.batch_size]
            with memory_errors("grounding_dino", len(part)):
                detected = self.detect(images[part], [nouns[index] for index in part])
            for index, objects in zip(part, detected, strict=True):
                scores[index] = rate[index](objects)
                share[index] = present(nouns[index], objects)
        return RewardOutput(scores.to(images.device), {"found": share.to(images.device)})

    @torch.no_grad()
    def detect(self, images: Tensor, nouns: Sequence[Sequence[str]]) -> list[dict[str, Boxes]]:
        """Return per image [B, 3, H, W] uint8 the boxes of each of its nouns, of which there is one at least."""
        device = self.model.device
        pixels = self.processor(images=list(images.to(device)), return_tensors="pt")["pixel_values"]
        unique = [list(dict.fromkeys(names)) for names in nouns]
        tokens = {key: values.to(device) for key, values in self.read([_caption(names) for names in unique]).items()}
        output = self.model(pixel_values=pixels.to(device, self.model.dtype), **tokens)
        probabilities = output.logits.float().sigmoid().cpu()
        boxes = _corners(output.pred_boxes.float().cpu(), height=images.shape[-2], width=images.shape[-1])
        ids = tokens["input_ids"].cpu()
        return [
            {
                noun: self._above_threshold(boxes[row], probabilities[row][:, places].mean(dim=1))
                for noun, places in zip(unique[row], self._places(ids[row], len(unique[row])), strict=True)
            }
            for row in range(len(images))
        ]

    def _above_threshold(self, boxes: Tensor, scores: Tensor) -> Boxes:
        above = scores > self.box_threshold
        return Boxes(boxes[above], scores[above])

    def _places(self, ids: Tensor, count: int) -> list[list[int]]:
        """Return per noun the places of its tokens in a caption "[CLS] noun . noun . [SEP]"."""
        stop = self.read.tokenizer.convert_tokens_to_ids(".")
        stops = [index for index, token in enumerate(ids.tolist()) if token == stop]
        starts = [1, *(index + 1 for index in stops[:-1])]
        places = [list(range(start, end)) for start, end in zip(starts, stops, strict=True)]
        if len(places) != count or not all(places):
            raise ValueError(
                f"reward 'grounding_dino' cannot tell {count} nouns apart in "
                f"{self.read.tokenizer.decode(ids, skip_special_tokens=True)!r}; leave full stops out of nouns"
            )
        return places


def _caption(nouns: Sequence[str]) -> str:
    """Write nouns as the model was trained to read them."""
    return " . ".join(nouns) + " ."


def _corners(boxes: Tensor, *, height: int, width: int) -> Tensor:
    """Turn [..., 4] centre and size as shares of the picture into xmin, ymin, xmax, ymax in pixels."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    return corners * torch.tensor([width, height, width, height])
