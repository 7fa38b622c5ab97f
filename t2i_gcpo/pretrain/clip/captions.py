"""Make captions, near misses of them, and scenes that they describe, for the training of `clip-mini`.

Near misses, and who describes whose scene.

Most of the pictures of a random batch are told apart by one word, whichever it is. What a scorer has to know is which
word of a prompt the picture answers and which it does not, so a batch is made of families: a prompt, and others that
differ from it in one word.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce
from operator import or_

import numpy as np

from rewards.geneval import judge
from rewards.geneval.vocabulary import CLASSES, COLORS, NUMBERS, PLURALS, RELATIONS
from t2i_gcpo.data.shapes.prompts import INVERSE, split
from t2i_gcpo.data.shapes.scene import Scene
from t2i_gcpo.records import Prompt

#: The kinds of words that a caption is judged by -> the words of that kind.
KINDS: dict[str, frozenset[str]] = {
    "color": frozenset(COLORS),
    "class": frozenset([*CLASSES, *PLURALS.values()]),
    "count": frozenset(NUMBERS.values()),
    "relation": frozenset(RELATIONS),
}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}


def words(text: str) -> tuple[str, ...]:
    """Split a caption into its words without articles ("a" or "an" follows from the next word); a relation is one."""
    for relation in RELATIONS:
        text = text.replace(f" {relation} ", f" {relation.replace(' ', '_')} ")
    return tuple(word.replace("_", " ") for word in text.split() if word not in ("a", "an"))


def changed_word(first: str, second: str) -> str | None:
    """Return the kind of word in which two captions differ; None where they differ in none or in more than one."""
    one, other = words(first), words(second)
    if len(one) != len(other):
        return None
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    if len(pairs) != 1 or KIND_OF.get(pairs[0][0]) != KIND_OF.get(pairs[0][1]):
        return None
    return KIND_OF.get(pairs[0][0])


def mirrored(prompt: Prompt) -> str | None:
    """Return the caption with the same words that says the opposite, if there is one.

    The inverse relation, or the two colours in each other's place; else None.
    """
    clauses = prompt.metadata["include"]
    relation = next((clause["position"][0] for clause in clauses if clause.get("position")), None)
    if relation is not None:
        return prompt.text.replace(f" {relation} ", f" {INVERSE[relation]} ")
    colors = [clause["color"] for clause in clauses if "color" in clause]
    if len(colors) != 2:
        return None
    other = dict(zip(colors, reversed(colors), strict=True))
    found = [other.get(word, word) for word in prompt.text.split()]
    for place in (k for k, word in enumerate(found) if word in other):
        found[place - 1] = "an" if found[place][0] in "aeiou" else "a"
    return " ".join(found)


@lru_cache(maxsize=2)
def neighbours(names: tuple[str, ...]) -> dict[str, dict[str, list[Prompt]]]:
    """Map a caption and a kind of word to the prompts of these splits that differ in one word of that kind."""
    prompts = [prompt for name in names for prompt in split(name)]
    prompts = list({prompt.text: prompt for prompt in prompts}.values())
    alike: dict[tuple[tuple[str, ...], str, tuple[str, ...]], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        own = words(prompt.text)
        for place, word in enumerate(own):
            if word in KIND_OF:
                alike[tuple(own[:place]), KIND_OF[word], tuple(own[place + 1 :])].append(prompt)
    found: dict[str, dict[str, list[Prompt]]] = {prompt.text: defaultdict(list) for prompt in prompts}
    for (_, kind, _), group in alike.items():
        for prompt in group:
            found[prompt.text][kind] += [other for other in group if other.text != prompt.text]
    return found


def family(prompt: Prompt, size: int, rng: random.Random, names: tuple[str, ...]) -> list[Prompt]:
    """Return the prompt and up to `size - 1` others that differ from it in one word, all kinds in equal parts."""
    kinds = {kind: list(others) for kind, others in neighbours(names)[prompt.text].items() if others}
    chosen = [prompt]
    while kinds and len(chosen) < size:
        kind = rng.choice(sorted(kinds))
        chosen.append(kinds[kind].pop(rng.randrange(len(kinds[kind]))))
        if not kinds[kind]:
            del kinds[kind]
    return chosen


def shows(scenes: Sequence[Scene], prompts: Sequence[Prompt]) -> np.ndarray:
    """Say by the verdict on each scene's own objects whether it shows what each prompt asks for: [S, P] bool."""
    bit = {name: 1 << k for k, name in enumerate(CLASSES)}
    there = np.array([_union(bit[thing.class_name] for thing in scene.objects) for scene in scenes], dtype=np.int64)
    asked = np.array(
        [_union(bit[clause["class"]] for clause in p.metadata["include"]) for p in prompts], dtype=np.int64
    )
    possible = (asked[None, :] & ~there[:, None]) == 0  # the others lack a class
    detections = [[thing.detection() for thing in scene.objects] for scene in scenes]
    result = np.zeros(possible.shape, dtype=bool)
    for row, column in zip(*possible.nonzero(), strict=True):
        result[row, column] = judge(detections[row], prompts[column].metadata).correct
    return result


def _union(bits: Iterable[int]) -> int:
    return reduce(or_, bits, 0)
