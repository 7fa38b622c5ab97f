"""Make negative prompts, which a data set's prompts are contrasted with.

A prompt is a text or a chat (a list of messages), and its negative is of the same kind. In a chat only the last user
message changes: the system message and earlier turns stay, so that the contrast is about the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: From one prompt to its negative.
NegativePrompt = Callable[[Any], Any]

#: The instruction of the negative prompt "wrong", before the question (the wording is this project's).
WRONG_INSTRUCTION = "Answer the next question wrongly: make mistakes in the reasoning and end with a wrong answer.\n"
#: Where a template file has the question.
PLACE = "{question}"
NAMES = ("wrong", "empty")


def negative_prompt(name_or_file: str) -> NegativePrompt:
    """Return the function from a prompt to its negative.

    `wrong`: the same question after an instruction to answer it wrongly; `empty`: no question; anything else is the
    path of a text file in which `{question}` stands for the question. ValueError: neither a name nor a file, or a file
    without `{question}` that is not a fixed prompt on purpose (a file with no braces at all is one).
    """
    if name_or_file == "wrong":
        return lambda prompt: replace_question(prompt, lambda question: WRONG_INSTRUCTION + question)
    if name_or_file == "empty":
        return lambda prompt: replace_question(prompt, lambda question: "")
    path = Path(name_or_file)
    if not path.is_file():
        raise ValueError(
            f"negative_prompt is {name_or_file!r}; allowed: {', '.join(NAMES)}, or the path of a text file in which "
            f"{PLACE} stands for the question"
        )
    template = path.read_text(encoding="utf-8").removesuffix("\n")
    if PLACE not in template and "{" in template:
        raise ValueError(
            f"the negative prompt's template {path} has braces but no {PLACE}; write {PLACE} where the question "
            "goes, or no braces for a fixed prompt"
        )
    return lambda prompt: replace_question(prompt, lambda question: template.replace(PLACE, question))


def replace_question(prompt: Any, change: Callable[[str], str]) -> Any:
    """Change a prompt's question: the whole of a text, the last user message of a chat.

    ValueError: a chat without one.
    """
    if isinstance(prompt, str):
        return change(prompt)
    positions = [place for place, message in enumerate(prompt) if message["role"] == "user"]
    if not positions:
        raise ValueError(f"a prompt has no user message to make a negative prompt of, only {_roles(prompt)}")
    message = prompt[positions[-1]]
    if not isinstance(message["content"], str):
        raise ValueError("a prompt's user message is not plain text; negative prompts are made of text only")
    changed = {**message, "content": change(message["content"])}
    return [*prompt[: positions[-1]], changed, *prompt[positions[-1] + 1 :]]


def check_different(prompts: Sequence[Any], negatives: Sequence[Any]) -> None:
    """Raise a ValueError where negative prompts equal their prompts: every token would weigh the same."""
    same = [prompt for prompt, negative in zip(prompts, negatives, strict=True) if prompt == negative]
    if same:
        raise ValueError(
            f"{len(same)} of {len(prompts)} negative prompts equal their prompts (the first: "
            f"{str(same[0])[:80]!r}); there is no contrast then. "
            "Choose another negative_prompt, or credit='uniform'"
        )


def _roles(prompt: Sequence[Any]) -> str:
    return ", ".join(sorted({str(message["role"]) for message in prompt})) or "no message"
