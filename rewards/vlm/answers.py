"""Turns a judge's answer into a number: by the probabilities of the words that are allowed, or by what was written.

The grammar of what was written is strict: an answer that does not fit is no number (NaN), never a guess. A guess would
be learned from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.vlm.template import Template

#: Least probability of the allowed words together. With less, the model was about to say something else, and the ratio
#: of two unlikely words says little.
LEAST_MASS = 0.5
_NUMBER = r"[-+]?\d+(?:\.\d+)?"


def by_probability(tokens: Sequence[tuple[str, float]], values: Mapping[str, float]) -> float:
    """Return the mean value of the allowed words under their probabilities: `sum_w p(w) v(w) / sum_w p(w)`.

    tokens: (text, log-prob) of the likeliest first tokens. Tokens that differ by case or by the space before them are
    one word; a word that is not among the tokens has probability 0. NaN where the words have less than half of the
    probability together.
    """
    mass = dict.fromkeys(values, 0.0)
    for text, logprob in tokens:
        word = text.strip().lower()
        if word in mass and logprob <= 1e-6:
            mass[word] += math.exp(logprob)
    total = sum(mass.values())
    if total < LEAST_MASS:
        return math.nan
    return sum(share * values[word] for word, share in mass.items()) / total


def by_word(text: str, values: Mapping[str, float]) -> float:
    """Return the value of the one word that the answer is, with a full stop or without; NaN for any other answer."""
    return values.get(text.strip().rstrip(".").lower(), math.nan)


def by_numbers(text: str, labels: Mapping[str, str], bounds: tuple[float, float]) -> dict[str, float]:
    """Map each name to the number that follows its label.

    A label must be there once, on a line of its own or at its end, with one number within the bounds after it; white
    space, `*` and `[` may stand between. NaN for a number that is missing, there twice, or out of bounds.
    """
    found = {}
    for name, label in labels.items():
        # What an answer repeats of the question ("a score after 'Final Score:'") has no number after the label.
        matches = re.findall(rf"{re.escape(label)}[\s*\[]*({_NUMBER})(?![\d.]*\w|\s*[-–/]\s*\d)", text)
        value = float(matches[0]) if len(matches) == 1 else math.nan
        found[name] = value if bounds[0] <= value <= bounds[1] else math.nan
    return found


def score(choice: Mapping[str, Any], template: Template) -> tuple[float, dict[str, float]]:
    """Return score and named parts of one answer, a `choice` of the server. NaN where it does not fit the template.

    ValueError for a choice that is not what an OpenAI-compatible server sends.
    """
    text = _text(choice)
    if template.labels:
        parts = by_numbers(text, template.labels, template.bounds)
        return sum(parts.values()) / len(parts), parts if len(parts) > 1 else {}
    tokens = first_tokens(choice)
    return (by_word(text, template.values) if tokens is None else by_probability(tokens, template.values)), {}


def _text(choice: Mapping[str, Any]) -> str:
    message = choice.get("message") if isinstance(choice, Mapping) else None
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(text, str):
        raise ValueError("the answer has no choices[0].message.content")
    return text


def first_tokens(choice: Mapping[str, Any]) -> list[tuple[str, float]] | None:
    """Return (text, log-prob) of the likeliest first tokens; None where the server gives none.

    ValueError for log-probs that are no numbers.
    """
    given = choice.get("logprobs")
    content = given.get("content") if isinstance(given, Mapping) else None
    if not content:
        return None
    try:
        tokens = [(str(token["token"]), float(token["logprob"])) for token in content[0]["top_logprobs"]]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"the answer's log-probs are not those of an OpenAI-compatible server: {error!r}") from error
    if any(math.isnan(logprob) for _, logprob in tokens):
        raise ValueError("the answer's log-probs are not numbers")
    return tokens or None
