"""A tiny random Llama, questions and rewards for the tests of the text trainer.

Importing it skips the module where TRL is missing.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from t2i_gcpo.text.trl_version import require_trl

try:
    require_trl()
except ImportError as error:
    pytest.skip(f"the text trainer is not tested: {error}", allow_module_level=True)

from datasets import Dataset
from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from t2i_gcpo.pretrain.text.model import TextShape, build, save, tokenizer
from t2i_gcpo.text.config import GCPOConfig
from t2i_gcpo.text.trainer import GCPOTrainer

TINY = TextShape(width=16, layers=2, heads=2, feed_forward=32)
TOKENIZER = tokenizer()


@cache
def tiny_folder() -> Path:
    """A folder with the tiny model and its tokenizer; TRL loads the reference model from it."""
    model = build(TINY, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # large enough that the prompt matters
            parameter.data.normal_(std=0.3, generator=generator)
    folder = Path(tempfile.mkdtemp())
    save(model, folder)
    return folder


def tiny_model() -> LlamaForCausalLM:
    """The same random model each time."""
    return LlamaForCausalLM.from_pretrained(tiny_folder())


def questions(count: int = 8) -> Dataset:
    """Chats of different lengths."""
    texts = [f"What is {'1' * (1 + index % 4)}+{index}?" for index in range(count)]
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in texts]})


def digits(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs from completion to completion: the share of its characters below the letter 'A'."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [sum(character < "A" for character in text) / (1 + len(text)) for text in texts]


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    """Options of a run of three small steps."""
    return {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 10, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "bf16": False,
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "seed": 5, "gradient_checkpointing": False,
    } | changes  # fmt: skip


def trainer(
    kind: type,
    folder: Path,
    model: Any = None,
    data: Any = None,
    reward: Any = digits,
    extra: Any = None,
    **changes: Any,
) -> Any:
    """A `GCPOTrainer` or TRL's `GRPOTrainer` on the tiny model."""
    config = GCPOConfig if issubclass(kind, GCPOTrainer) else GRPOConfig
    return kind(
        tiny_model() if model is None else model, reward, config(**options(folder, **changes)),
        questions() if data is None else data, processing_class=TOKENIZER, **(extra or {}),
    )  # fmt: skip


def trained(kind: type, folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Parameters after the run."""
    run = trainer(kind, folder, **changes)
    run.train()
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


def distributions(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probs of the whole vocabulary at each token of one completion, without padding: [T, V]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits
    return logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def drawn(table: torch.Tensor, completion: list[int]) -> torch.Tensor:
    """The log-probs of the tokens of a completion, [T]."""
    return table.gather(-1, torch.tensor(completion)[:, None])[:, 0]


__all__ = [
    "TOKENIZER",
    "GCPOTrainer",
    "GRPOTrainer",
    "digits",
    "distributions",
    "drawn",
    "options",
    "questions",
    "tiny_folder",
    "tiny_model",
    "trained",
    "trainer",
]
