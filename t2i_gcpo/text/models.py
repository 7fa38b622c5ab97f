"""Find and load a language model.

A model is the embedded `text-mini`, a local folder, or a repository of the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewards.models.loading import one_at_a_time
from rewards.models.torchvision_mend import mend

ASSETS = Path(__file__).resolve().parent.parent / "assets"
#: The language model that ships with the package, and the command that trains it from nothing.
EMBEDDED: dict[str, str] = {"text-mini": "t2i-gcpo pretrain text"}


def locate(name: str) -> str:
    """Return the folder or hub repository that transformers loads for a name.

    ValueError: an embedded name whose files are missing, or a folder without a model.
    """
    if name in EMBEDDED:
        folder = ASSETS / name
        if not folder.is_dir():
            raise ValueError(
                f"the embedded model {name!r} is not in {ASSETS}: the installation is incomplete; install t2i-gcpo "
                "again, or train it with "
                f"`{EMBEDDED[name]}` and give the folder that this writes"
            )
        return str(folder)
    path = Path(name).expanduser()
    if not path.is_dir():
        return name
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise ValueError(f"the folder {path} holds no model (no config.json, no adapter_config.json)")
    return str(path.absolute())


@one_at_a_time
def load(name: str, *, device: Any = "cpu", dtype: Any = None) -> tuple[Any, Any]:
    """Load the model in evaluation mode, and its tokenizer, which pads on the left.

    A LoRA adapter's folder loads its base as well.

    ValueError: no model under that name, or one that is no causal language model.
    """
    mend()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left", trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype="auto" if dtype is None else dtype, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"no causal language model can be loaded from {name!r} ({reason}); allowed: {', '.join(EMBEDDED)}, a "
            "folder, or a repository of the hub"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def encode(tokenizer: Any, prompts: list[Any]) -> list[list[int]]:
    """Encode each prompt: a chat under the chat template up to where the assistant begins, a text as it is.

    ValueError: a chat, and a tokenizer without a template.
    """
    if any(not isinstance(prompt, str) for prompt in prompts) and tokenizer.chat_template is None:
        raise ValueError(
            "the prompts are chats, and the tokenizer has no chat template; set tokenizer.chat_template, or make "
            "the prompts plain texts"
        )
    ids = []
    for prompt in prompts:
        text = prompt if isinstance(prompt, str) else None
        if text is None:
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            ids.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            ids.append(tokenizer(text)["input_ids"] or [tokenizer.bos_token_id or tokenizer.eos_token_id])
    return [list(row) for row in ids]
