"""Write a GenEval prompt anew without one of its clauses: what credit by clause contrasts the prompt with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.geneval.rows import clauses
from t2i_gcpo.data.shapes.grammar import parts
from t2i_gcpo.records import Prompt


def without_clauses(prompt: Prompt) -> tuple[str | None, ...]:
    """Return the text without the object of each clause, in the order of the reward's parts: `include`, then `exclude`.

    >>> without_clauses(row("a photo of a red circle left of a star"))
    ('a photo of a red circle', 'a photo of a star')
    >>> without_clauses(row("a photo of two stars"))
    (None, None)

    None where the prompt has one object, so that nothing is left. ValueError: no GenEval metadata, or an object that
    the text does not have in words like "a red circle".
    """
    asked = [*clauses(prompt.metadata, "include"), *clauses(prompt.metadata, "exclude")]
    if not asked:
        raise ValueError(
            f"the prompt {prompt.text!r} has no GenEval metadata, whose clauses get the credit; take prompts from "
            "shapes:train or a GenEval .jsonl file, or choose another algorithm than one with credit: clauses"
        )
    shorter = parts(prompt.text)
    if not shorter:
        return (None,) * len(asked)
    return tuple(_without(prompt, shorter, clause) for clause in asked)


def _without(prompt: Prompt, shorter: Mapping[str, str], clause: Mapping[str, Any]) -> str:
    """Return the text whose missing part is the clause's object, of `shorter`: part -> text."""
    words = " ".join(filter(None, (clause.get("color"), clause["class"])))
    for part, text in shorter.items():
        if part.split(" ", 1)[-1] == words:
            return text
    raise ValueError(
        f"the prompt {prompt.text!r} has no part for its clause {words!r} (its parts: {', '.join(shorter)}); credit by "
        "clause needs texts like 'a photo of a red circle and a blue star'"
    )
