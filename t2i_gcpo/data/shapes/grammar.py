"""Read a text that a person wrote as a prompt with GenEval's metadata, and take prompts apart."""

from __future__ import annotations

import re
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
    words = " ".join(text.lower().split()).removesuffix(".").removeprefix(_FRAME)
    metadata = _metadata(words)
    return None if metadata is None else Prompt(_FRAME + words, {**metadata, "prompt": _FRAME + words})


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
