"""Reads the fields of T2I-R1's prompts (arXiv 2505.00703).

They say what a prompt's objects are, how they look, how many, and where.

A row is `{"prompt", "task_type", "nouns": [noun, ...], "attr_nouns"?: ["red car", ...], "spatial_info"?: {"obj1",
"obj2", "locality"}, "numeracy_info"?: [{"obj_name", "num"}, ...]}`; null stands for an absent field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The `task_type` of rows about where objects are, and how many there are.
SPATIAL, NUMERACY = "spatial", "numeracy"


@dataclass(frozen=True)
class Row:
    """Reads the fields of a prompt's metadata. ValueError names the field and the prompt."""

    reward: str
    """The reward's name, for its errors."""
    prompt: str
    metadata: Mapping[str, Any]

    @property
    def task(self) -> str | None:
        return self.metadata.get("task_type") or self.metadata.get("tag")

    def texts(self, field: str) -> list[str] | None:
        """Return a list of texts; None where the row has no such field."""
        given = self.metadata.get(field)
        if given is None:
            return None
        if not isinstance(given, list) or not all(isinstance(text, str) and text.strip() for text in given):
            raise self.error(field, "a list of texts")
        return [text.strip() for text in given]

    def nouns(self) -> list[str]:
        """Return the prompt's objects, in the singular; there may be none."""
        nouns = self.texts("nouns")
        if nouns is None:
            raise self.error("nouns", "a list of texts, the prompt's objects")
        return nouns

    def spatial(self, nouns: list[str], localities: Mapping[str, Any]) -> tuple[str, str, str]:
        """Return first object, second object and locality.

        The objects are among `nouns`, the locality among `localities`.
        """
        what = '{"obj1", "obj2", "locality"} with two of its nouns and one of: ' + ", ".join(localities)
        info = self.metadata.get("spatial_info")
        if not isinstance(info, Mapping):
            raise self.error("spatial_info", what)
        first, second, locality = (info.get(key) for key in ("obj1", "obj2", "locality"))
        if first not in nouns or second not in nouns or not isinstance(locality, str) or locality not in localities:
            raise self.error("spatial_info", what)
        return str(first), str(second), str(locality)

    def numbers(self, nouns: list[str]) -> list[tuple[str, int]]:
        """Return pairs of an object and how many of it, at least one; the objects are among `nouns`."""
        what = 'a list of {"obj_name", "num"} with its nouns and whole numbers of at least 1'
        info = self.metadata.get("numeracy_info")
        if not isinstance(info, list) or not info or not all(isinstance(one, Mapping) for one in info):
            raise self.error("numeracy_info", what)
        pairs = [(one.get("obj_name"), one.get("num")) for one in info]
        if not all(noun in nouns and _is_count(number) for noun, number in pairs):
            raise self.error("numeracy_info", what)
        return [(str(noun), int(number)) for noun, number in pairs]

    def error(self, field: str, what: str) -> ValueError:
        given = self.metadata.get(field)
        has = f"it is {given!r}" if given is not None else f"it has: {', '.join(self.metadata) or 'no fields'}"
        return ValueError(
            f"reward {self.reward!r} needs the field {field!r} of T2I-R1's data for the "
            f"prompt {self.prompt!r}: {what}; {has}"
        )


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


def rows(reward: str, prompts: list[str], metadata: list[dict[str, Any]]) -> list[Row]:
    """Pair B prompts with their metadata."""
    return [Row(reward, prompt, row or {}) for prompt, row in zip(prompts, metadata, strict=True)]
