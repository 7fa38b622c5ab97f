"""Read a text that a person wrote as a prompt with GenEval's metadata, and take prompts apart."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from rewards.geneval.vocabulary import CLASSES, COLORS, NUMBERS, PLURALS, RELATIONS
from t2i_gcpo.data.prompt_files import check_text
from t2i_gcpo.records import Prompt

_FRAME = "a photo of "
_OBJECT = rf"an? (?:(?P<color{{0}}>{'|'.join(COLORS)}) )?(?P<class{{0}}>{'|'.join(CLASSES)})"
_ONE, _OTHER = _OBJECT.format(0), _OBJECT.format(1)
_SINGULAR = {plural: name for name, plural in PLURALS.items()}
_COUNT = {word: number for number, word in NUMBERS.items() if number > 1}
_COUNTED = re.compile(rf"(?P<number>{'|'.join(_COUNT)}) (?P<plural>{'|'.join(_SINGULAR)})")
_SINGLE = re.compile(_ONE)
_PAIR = re.compile(rf"{_ONE} (?P<link>and|{'|'.join(RELATIONS)}) {_OTHER}")
_LINKS = re.compile(rf" (?:and|{'|'.join(RELATIONS)}) ")


def understand(text: str) -> Prompt | None:
    """Return a text as a prompt of ShapeScenes with GenEval's metadata; None where the rules do not cover it.

    "a photo of" may be left out; the prompt has it. Any class, colour and relation of the vocabulary, trained on or
    held out: "a C", "a red C", "two Cs", "a C and a red D", "a C left of a D". The tag is that of the closest of
    GenEval's six tasks.
    """
    words = _words(text)
    metadata = _metadata(words)
    return None if metadata is None else Prompt(_FRAME + words, {**metadata, "prompt": _FRAME + words})


def row(text: str) -> Prompt:
    """Turn a text into a prompt with the row of GenEval's metadata that its images are judged by.

    >>> row("a red circle left of a star").metadata["include"]
    [{'class': 'star', 'count': 1}, {'class': 'circle', 'count': 1, 'color': 'red', 'position': ['left of', 0]}]

    As in `understand`. ValueError says which part of the text is not understood, with the nearest words that are known.
    """
    prompt = understand(check_text(text, "the text"))
    if prompt is None:
        raise ValueError(f"{text!r} is no prompt that GenEval's rules cover: {not_understood(text)}")
    return prompt


def not_understood(text: str) -> str:
    """Say which part of a text the rules do not cover and what they do; "" where they cover all of it."""
    words = _words(text)
    if _metadata(words) is not None:
        return ""
    pieces, known = [piece.strip() for piece in _LINKS.split(f" {words} ")], _known_words()
    if not all(pieces):
        return f'an object is missing; write it as "a circle" or "a red circle". {_covered()}'
    for piece in pieces:
        if _SINGLE.fullmatch(piece) or (len(pieces) == 1 and _COUNTED.fullmatch(piece)):
            continue
        for word in piece.split():
            if word not in known:
                near = difflib.get_close_matches(word, known, n=3)
                hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
                return f"the word {word!r} in {piece!r} is not known{hint}. {_covered()}"
        if _COUNTED.fullmatch(piece):
            return f"{piece!r} stands beside another object, and several of a kind are asked for alone"
        return f'{piece!r} is not put as expected: "a circle", "a red circle", or alone "two circles"'
    return f"it has {len(pieces)} objects; at most two are covered, joined by 'and' or one relation"


def _words(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".").removeprefix(_FRAME).removeprefix(_FRAME.strip())


def _known_words() -> list[str]:
    """Return all single words of the vocabulary."""
    sources: Iterable[Iterable[str]] = (COLORS, CLASSES, _SINGULAR, _COUNT, ("a", "an", "and"), RELATIONS)
    return list(dict.fromkeys(word for source in sources for text in source for word in text.split()))


def _covered() -> str:
    """Return the whole vocabulary in a sentence."""
    return (
        f"Known are the classes {', '.join(CLASSES)}; the colours {', '.join(COLORS)}; "
        f"the numbers {', '.join(_COUNT)}; and between two objects: and, {', '.join(RELATIONS)}"
    )


def _metadata(words: str) -> dict[str, Any] | None:
    if match := _COUNTED.fullmatch(words):
        number, name = _COUNT[match["number"]], _SINGULAR[match["plural"]]
        return {
            "tag": "counting",
            "include": [{"class": name, "count": number}],
            "exclude": [{"class": name, "count": number + 1}],
        }
    if match := _SINGLE.fullmatch(words):
        return {"tag": "colors" if match["color0"] else "single_object", "include": [_clause(match, 0)]}
    if match := _PAIR.fullmatch(words):
        first, second = _clause(match, 0), _clause(match, 1)
        if match["link"] != "and":
            return {"tag": "position", "include": [second, {**first, "position": [match["link"], 0]}]}
        colored = match["color0"] and match["color1"]
        return {"tag": "color_attr" if colored else "two_object", "include": [first, second]}
    return None


def _clause(match: re.Match[str], number: int) -> dict[str, Any]:
    clause: dict[str, Any] = {"class": match[f"class{number}"], "count": 1}
    color = match[f"color{number}"]
    return {**clause, "color": color} if color else clause


def parts(text: str) -> dict[str, str]:
    """Map each part of a prompt to the prompt without it, and without the word that joined it.

    {} where there are not two parts.

    The parts are what stands between "and" and the relations: "a photo of a red circle and a blue star" has "a red
    circle" (without it: "a photo of a blue star") and "a blue star".
    """
    text = " ".join(text.split())
    frame = _FRAME if text.startswith(_FRAME) else ""
    pieces = _LINKS.split(text.removeprefix(frame))
    links = _LINKS.findall(text.removeprefix(frame))
    if len(pieces) < 2:
        return {}
    shorter = {}
    for k, piece in enumerate(pieces):
        rest, joints = pieces[:k] + pieces[k + 1 :], links[: max(k - 1, 0)] + links[max(k, 1) :]
        words = rest[0] + "".join(joint + other for joint, other in zip(joints, rest[1:], strict=True))
        shorter[piece] = frame + words
    return shorter


def find_prompt(text: str) -> Prompt:
    """Return a text as a prompt, as it stands, with GenEval's metadata where the rules cover it. ValueError: it is
    empty."""
    text = " ".join(check_text(text, "--prompt").split())
    known = understand(text)
    return Prompt(text) if known is None else Prompt(text, {**known.metadata, "prompt": text})
