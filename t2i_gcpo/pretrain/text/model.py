"""Make the parts of `text-mini`: tokenizer, chat template, config and the untrained model of a small Llama."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rewards.models.torchvision_mend import mend
from t2i_gcpo.text.negatives import WRONG_INSTRUCTION

#: A turn begins with its role's token; the assistant's ends with <|end|>.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
#: What the words of the vocabulary are learnt from; anything else is spelled byte by byte.
WORDS = ("What is 1?", "1+1-1=1. The answer is 1.", WRONG_INSTRUCTION)


@dataclass(frozen=True)
class TextShape:
    """Holds the size of the model; the defaults are those of the embedded checkpoint."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 384
    positions: int = 256
    """The longest prompt and completion together, in tokens."""


def tokenizer() -> Any:
    """Make a `PreTrainedTokenizerFast` in which each digit and each word of the task is one token.

    All else is spelled in bytes.
    """
    mend()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(WORDS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        padding_side="left",
        model_max_length=TextShape.positions,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build(shape: TextShape, seed: int) -> Any:
    """Make the `LlamaForCausalLM` with random weights."""
    mend()
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save(model: Any, folder: Path) -> None:
    """Write the folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` read."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
