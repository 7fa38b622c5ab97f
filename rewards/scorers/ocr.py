"""Defines the `ocr` reward: whether a picture shows the text that its prompt asks for. B images, H, W their sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from rewards.base import Reward, RewardOutput, check_each
from rewards.models.batches import check_images, check_prompts, require
from rewards.scorers.quotes import quoted


class OcrReward(Reward):
    """Scores 1 minus the edit distance of the text that is read and the text that is asked for, per character.

    With n the length of the wanted text, `1 - min(levenshtein, n) / n` (the text reward of Flow-GRPO, arXiv
    2505.05470). Case and white space do not count, because recognisers drop spaces. A picture without any text scores
    0. The text is read by RapidOCR (https://github.com/RapidAI/RapidOCR, Apache-2.0) with PP-OCR's models (Apache-2.0),
    which lie in its package: no download.

    The wanted text is the row's `field`, a text or a list of them, or else whatever the prompt has in quotes; several
    texts are wanted one after the other, in their order. Inch marks and apostrophes are no quotes
    (`rewards/scorers/quotes.py`).

    Args:
        field: of the metadata.
        extra_text: "count": letters beside the wanted text cost as much as missing ones. "ignore": 1 wherever the
            wanted text
            is read somewhere in the picture, as Flow-GRPO's code does; a picture full of letters may then score well.
        min_confidence: lines that are read with less confidence do not count.
        device: "cpu", "cuda" or "cuda:N"; the latter need onnxruntime-gpu.
        threads: of the CPU; None takes them all.
        engine_options: further settings of RapidOCR, such as `{"Det.box_thresh": 0.4}`.

    Pictures are read one by one. Parts: `exact`, 1 where the text is right to the letter, and `letters`, the number of
    letters that were read. ValueError: a row and prompt without a text, unknown options, images of another type.
    """

    name = "ocr"

    def __init__(
        self,
        *,
        field: str = "text",
        extra_text: Literal["count", "ignore"] = "count",
        min_confidence: float = 0.5,
        device: str = "cpu",
        threads: int | None = None,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        if extra_text not in ("count", "ignore"):
            raise ValueError(f"extra_text {extra_text!r} of reward 'ocr' is unknown; allowed: count, ignore")
        self.distance = require("rapidfuzz.distance", "ocr").Levenshtein.distance
        self.field, self.extra_text = field, extra_text
        self.engine = _engine(min_confidence, device, threads, engine_options or {})

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        check_images(images, "ocr")
        check_prompts(images, prompts, "ocr")
        targets = [self.target(prompt, row) for prompt, row in zip(prompts, metadata, strict=True)]
        read = [self.read(image) for image in images]
        scores = [self.score(text, target) for text, target in zip(read, targets, strict=True)]
        parts = {
            "exact": [float(text == target) for text, target in zip(read, targets, strict=True)],
            "letters": [float(len(text)) for text in read],
        }
        return RewardOutput(
            torch.tensor(scores, device=images.device),
            {name: torch.tensor(values, device=images.device) for name, values in parts.items()},
        )

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Raise PromptError for the first prompt without a text to look for."""
        check_each(self.target, prompts, metadata)

    def target(self, prompt: str, row: Mapping[str, Any]) -> str:
        """Return the wanted text, without white space, in small letters."""
        given = (row or {}).get(self.field)
        texts: Sequence[Any] = [given] if isinstance(given, str) else (given or self._quoted(prompt))
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"reward 'ocr': the field {self.field!r} of the prompt {prompt!r} is "
                f"{given!r}; it must be a text or a list of texts"
            )
        letters = plain("".join(texts))
        if not letters:
            raise ValueError(
                f"reward 'ocr' finds no text to look for: the prompt {prompt!r} has nothing in quotes, and its row no "
                f"field {self.field!r} (fields: {', '.join(row or ()) or 'none'}); put "
                "the text in quotes, or add the field"
            )
        return letters

    def _quoted(self, prompt: str) -> list[str]:
        try:
            return quoted(prompt)
        except ValueError as error:
            raise ValueError(
                f"reward 'ocr' cannot tell which text the prompt {prompt!r} asks for: {error}; correct the quotes, or "
                f"put the text in the field {self.field!r} of the row"
            ) from error

    def read(self, image: Tensor) -> str:
        """Read the letters in an image [3, H, W] uint8, from top to bottom, without white space, in small letters."""
        pixels = rearrange(image.flip(0), "c h w -> h w c").cpu().contiguous().numpy()  # RapidOCR takes BGR
        return plain("".join(self.engine(pixels).txts or ()))

    def score(self, text: str, target: str) -> float:
        """Score a text that was read. Both texts went through `plain`."""
        if self.extra_text == "ignore" and target in text:
            return 1.0
        length = len(target)
        return 1.0 - min(self.distance(text, target), length) / length


def plain(text: str) -> str:
    """Return a text without white space, in small letters."""
    return "".join(text.split()).casefold()


def _card(index: str) -> int:
    """Return the number of a card: without an index the one that "cuda" means in this process, as it does for torch."""
    if index:
        return int(index)
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def _engine(min_confidence: float, device: str, threads: int | None, options: Mapping[str, Any]) -> Any:
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device {device!r} of reward 'ocr' is unknown; allowed: cpu, cuda, cuda:N")
    runtime = require("onnxruntime", "ocr")
    if kind == "cuda" and "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise ValueError(
            "reward 'ocr' cannot run on device 'cuda': this onnxruntime has no CUDA; install onnxruntime-gpu"
        )
    settings = {
        "Global.text_score": min_confidence,
        "Global.log_level": "error",
        "EngineConfig.onnxruntime.intra_op_num_threads": -1 if threads is None else threads,
        "EngineConfig.onnxruntime.use_cuda": kind == "cuda",
        "EngineConfig.onnxruntime.cuda_ep_cfg.device_id": _card(index),
        **options,
    }
    try:
        return require("rapidocr", "ocr").RapidOCR(params=settings)
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"reward 'ocr': RapidOCR takes no settings {dict(options)}: {error}") from error
