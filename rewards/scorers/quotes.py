"""Finds the texts in quotes in a prompt, and tells quotes from inch marks and apostrophes."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Opening mark -> its closing ones. A straight " and ” are both; what they are depends on what stands before them.
DOUBLE = {'"': '"', "”": "”", "“": "”“", "„": "“”", "«": "»", "»": "«", "「": "」", "『": "』"}

#: Of single quotes. The closing ones are apostrophes, too.
SINGLE = {"'": "'", "‘": "’", "‚": "‘’"}

#: ""OPEN"", as tables write a quote.
_DOUBLED = re.compile(r'(?<!\w)""(?=\w)|(?<=\w)""(?!\w)')

#: Words that begin with an apostrophe: 'em is "them", '90s are years. In quotes ('em') they are texts.
_SHORTENED = re.compile(r"(?:n|em|til|tis|twas|cause|bout|round|neath|\d\ds)\b(?!['’])", re.IGNORECASE)

#: 'n' between two words is "and": rock 'n' roll, and in names also Guns 'N' Roses. After these words it is a text.
_AND = re.compile(r"(\w+)\s+['‘’](n)['’]\s+(\w+)", re.IGNORECASE)
_NAMING = {
    "letter",
    "letters",
    "reads",
    "read",
    "says",
    "say",
    "saying",
    "word",
    "text",
    "key",
    "sign",
    "labeled",
    "labelled",
}


def quoted(prompt: str) -> list[str]:
    """Return the texts in quotes, in their order.

    Quotes are "a", “a”, „a“, «a», ‘a’, 'a', 「a」 and the like. A straight " after
    a digit opens nothing: 12" are inches.
    An apostrophe within a word or in the place of letters (don't, dogs', 'em, rock 'n' roll, '90s) opens and closes
    nothing.

    ValueError where a quote is opened and not closed, or may end in two places, as nobody can tell which text is meant.
    """
    prompt = _DOUBLED.sub('"', prompt)
    texts: list[str] = []
    apostrophes = set(_of_and(prompt))
    place = 0
    while place < len(prompt):
        mark, end = prompt[place], None
        if mark in DOUBLE and _opens_double(prompt, place):
            end = _close_double(prompt, place)
        elif mark in SINGLE and place not in apostrophes and _opens_single(prompt, place):
            end = _close_single(prompt, place, apostrophes)
        if end is None:
            place += 1
            continue
        texts.append(prompt[place + 1 : end])
        place = end + 1
    return [text for text in texts if text.strip()]


def _before(prompt: str, place: int) -> str:
    return prompt[place - 1] if place else ""


def _after(prompt: str, place: int) -> str:
    return prompt[place + 1 : place + 2]


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _opens_double(prompt: str, place: int) -> bool:
    before = _before(prompt, place)
    if prompt[place] == '"':
        return not before.isdigit()
    return prompt[place] != "”" or not _is_word(before)


def _close_double(prompt: str, place: int) -> int:
    """Return the place of the closing mark: the first one before which no word goes on, or else the first one."""
    closing = DOUBLE[prompt[place]]
    marks = [k for k in range(place + 1, len(prompt)) if prompt[k] in closing]
    if not marks:
        raise ValueError(f"the quote that {prompt[place : place + 20]!r} opens is never closed")
    return next((k for k in marks if not _is_word(_after(prompt, k))), marks[0])


def _opens_single(prompt: str, place: int) -> bool:
    after = _after(prompt, place)
    if _is_word(_before(prompt, place)) or not after or after.isspace():
        return False
    return _SHORTENED.match(prompt, place + 1) is None


def _close_single(prompt: str, place: int, apostrophes: set[int]) -> int | None:
    """Return the place of the closing mark; None where there is none, so that the mark at `place` is an apostrophe."""
    mark = prompt[place]
    end = None
    for k in range(place + 1, len(prompt)):
        if k in apostrophes:
            continue
        if prompt[k] == mark and _opens_single(prompt, k):
            break  # the next quote begins
        closes = prompt[k] in SINGLE[mark] and not _is_word(_after(prompt, k)) and not _before(prompt, k).isspace()
        if closes and end is None:
            end = k
            if _before(prompt, k).lower() != "s":
                break
        elif closes:
            raise ValueError(f"the quote that {prompt[place : place + 20]!r} opens may end in two places")
    return end


def _of_and(prompt: str) -> Iterator[int]:
    """Yield the places of the marks around 'n' where it is "and"."""
    for match in _AND.finditer(prompt):
        before, letter, after = match.groups()
        name = before[0].isupper() and after[0].isupper()
        if before.lower() not in _NAMING and (letter == "n" or name):
            yield from (match.start(2) - 1, match.end(2))
