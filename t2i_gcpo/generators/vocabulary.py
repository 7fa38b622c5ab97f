"""Says which words of a prompt a tokenizer does not know, and which of its words are nearest to them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

#: Known words that are named for one that is unknown, at most; and how alike they must be at least, in [0, 1].
NEAREST, ALIKE = 3, 0.6
_WORD = re.compile(r"[^\W\d_]+")


class UnknownWordsError(ValueError):
    """Says that a prompt has words that the generator's tokenizer does not know."""

    def __init__(self, words: Iterable[str], prompt: str, known: Iterable[str], *, hint: str = "") -> None:
        """words: the unknown ones, in their order; known: the tokenizer's vocabulary."""
        self.words, self.known = tuple(dict.fromkeys(words)), plain(known)
        named = ", ".join(map(repr, self.words))
        super().__init__(f"the tokenizer does not know {named} (prompt {prompt!r}){hint}")

    def suggestion(self) -> str:
        """Return a sentence or two: the unknown words, each with the nearest known ones, or all that are known."""
        found = {word: nearest(word, self.known) for word in self.words}
        parts = [f"{word!r} ({_nearest_words(names)})" for word, names in found.items()]
        text = f"the generator does not know {' and '.join(parts)}."
        return text if all(found.values()) else f"{text} It knows: {', '.join(self.known)}."


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Return the words of a text that become the tokenizer's unknown token, in their order."""
    spans = tokenizer(text, return_offsets_mapping=True)
    return [
        text[start:end]
        for token, (start, end) in zip(spans["input_ids"], spans["offset_mapping"], strict=True)
        if token == tokenizer.unk_token_id
    ]


def plain(vocabulary: Iterable[str]) -> tuple[str, ...]:
    """Return the words of a vocabulary, without its special tokens, in alphabetical order."""
    return tuple(sorted(word for word in vocabulary if _WORD.fullmatch(word)))


def nearest(word: str, known: Sequence[str]) -> list[str]:
    """Return the known words that are most like a word, the nearest first; none where no word is alike.

    >>> nearest("cirle", ["above", "circle", "circles", "star"])
    ['circle', 'circles']
    """
    return difflib.get_close_matches(word.lower(), known, n=NEAREST, cutoff=ALIKE)


def _nearest_words(names: Sequence[str]) -> str:
    return f"nearest: {', '.join(names)}" if names else "no known word is like it"
