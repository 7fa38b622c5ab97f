"""Reads what a judge is asked from files: the text, where it comes from, and how its answer becomes a number.

A template is a YAML file with these keys:

* `source`: the paper or code that the wording is of; `licence`: of that text.
* `text`: the question. `{prompt}` stands for the picture's prompt; the picture comes before the text.
* `answer`: `words`, `digits` or `numbers`.
  - `words: {"yes": 1, "no": 0}`: one word of a few, each with its value. The score is the mean value under the
    probabilities of the words' first tokens, where the server gives log-probs, else the value of the word that was
    written.
  - `digits: [1, 5]`: one whole number in a range, the same way.
  - `numbers: {score: 'Final Score:'}`: name -> the label that a number follows in the written answer. The score is
    their mean.
* `range: [1, 5]`: with `numbers`, what each number must lie in.
* `max_tokens`: of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "templates"
#: Where the picture's prompt goes.
PLACE = "{prompt}"
_KEYS = ("source", "licence", "text", "answer", "range", "max_tokens")


@dataclass(frozen=True)
class Template:
    """Holds a question, and how its answer is read.

    `values` is for answers of one word, `labels` and `bounds` for written numbers.
    """

    name: str
    text: str
    source: str
    licence: str
    max_tokens: int
    values: Mapping[str, float]
    """Lower-case word -> its value; empty where numbers are written."""
    labels: Mapping[str, str]
    """Name of the number -> the label before it; empty where one word is asked for."""
    bounds: tuple[float, float]
    """What the score lies in."""

    def question(self, prompt: str) -> str:
        """Return the text with the prompt in its place."""
        return self.text.replace(PLACE, prompt)


def available() -> list[str]:
    """Return the names of the templates in the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Template:
    """Read a template by its name, or a YAML file of one's own by its path.

    ValueError: an unknown name, or a file that is no template.
    """
    import yaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"there is no template {name!r}; available: {', '.join(available())}, "
            "or the path of a YAML file of your own"
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"the template {path} is not a YAML file: {error}") from error
    return read(path.stem, data, str(path))


def read(name: str, data: Any, where: str) -> Template:
    """Make a template of plain values. ValueError, naming `where`, for anything that is not allowed."""
    if not isinstance(data, dict) or not isinstance(data.get("text"), str) or not isinstance(data.get("answer"), dict):
        raise ValueError(f"{where}: a template has a `text` and an `answer`; see rewards/vlm/template.py")
    unknown = sorted(set(data) - set(_KEYS))
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; allowed: {', '.join(_KEYS)}")
    values, labels, bounds = _answer(data["answer"], data.get("range"), where)
    tokens = data.get("max_tokens", 1 if values else 1024)
    if not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"{where}: max_tokens is {tokens!r}; it must be a whole number of at least 1")
    source, licence = str(data.get("source", "")), str(data.get("licence", ""))
    return Template(name, data["text"].strip("\n"), source, licence, tokens, values, labels, bounds)


def _answer(
    answer: Mapping[str, Any], bounds: Any, where: str
) -> tuple[dict[str, float], dict[str, str], tuple[float, float]]:
    """Return values of words, labels of numbers, and the range of the score."""
    if len(answer) != 1 or not set(answer) <= {"words", "digits", "numbers"}:
        raise ValueError(f"{where}: `answer` has the keys {sorted(answer)}; give one of words, digits, numbers")
    ((kind, given),) = answer.items()
    if kind == "numbers":
        if not isinstance(given, dict) or not given or not all(isinstance(label, str) for label in given.values()):
            raise ValueError(f"{where}: `numbers` is {given!r}; give the label that each number follows, by a name")
        low, high = _range(bounds, where, "range")
        return {}, {str(key): label for key, label in given.items()}, (low, high)
    if kind == "digits":
        low, high = _range(given, where, "digits")
        if (low, high) != (int(low), int(high)) or not 0 <= low < high <= 9:
            # More than one figure may be more than one token, and then a token's probability is not the number's.
            raise ValueError(f"{where}: `digits` is {given!r}; give whole numbers of one figure, e.g. [1, 5]")
        return {str(k): float(k) for k in range(int(low), int(high) + 1)}, {}, (low, high)
    if (
        not isinstance(given, dict)
        or len(given) < 2
        or not all(isinstance(key, str) and re.fullmatch(r"\w+", key) for key in given)
        or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given.values())
    ):
        raise ValueError(f"{where}: `words` is {given!r}; give at least two words in quotes, each with its value")
    values = {key.lower(): float(value) for key, value in given.items()}
    return values, {}, (min(values.values()), max(values.values()))


def _range(given: Any, where: str, key: str) -> tuple[float, float]:
    if (
        not isinstance(given, list)
        or len(given) != 2
        or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given)
        or given[0] >= given[1]
    ):
        raise ValueError(f"{where}: `{key}` is {given!r}; give its least and its greatest value, e.g. [1, 5]")
    return float(given[0]), float(given[1])
