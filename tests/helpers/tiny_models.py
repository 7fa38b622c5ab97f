"""Make tiny random models of transformers for the scorers' tests.

They are saved as the real ones are, with outputs that differ from image to image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.models.torchvision_mend import mend

mend()


def pictures(count: int = 5, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    """Pictures that are not all alike on average: patches of one colour each, and noise."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(patches, size=(height, width), mode="nearest")
    noise = torch.rand(count, 3, height, width, generator=generator)
    return ((0.8 * smooth + 0.2 * noise) * 255).round().to(torch.uint8)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Third-party initialisation draws from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def stir(model: Any, std: float = 0.2) -> Any:
    """Random matrices, large enough that a score depends on every part of the model. Frozen, in evaluation mode."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)
    return model.eval().requires_grad_(False)


def same(given: Tensor, expected: Tensor, tolerance: float = 1e-5, spread: float = 1e-2) -> None:
    assert given.dtype == torch.float32 and given.shape == expected.shape
    assert expected.std() > spread, "scores that hardly differ prove nothing"
    assert (given - expected).abs().max() <= tolerance


def word_tokenizer(folder: Path, words: list[str], *, size: int, template: str, **special: str) -> None:
    """A tokenizer of whole words, saved to `folder`. `special`: pad_token=... and so on; all of it in `words`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [word for word in template.split() if not word.startswith("$")]
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(mark, ids[mark]) for mark in marks]
    )
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=size, **special).save_pretrained(folder)
