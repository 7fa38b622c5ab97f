"""Make ShapeScenes' prompts in GenEval's schema; the test split holds combinations that are never trained on.

Held out, per split, in every task:

* (class, colour) pairs: two colours a class for validation, two for test, six for training;
* unordered class pairs for "a X and a Y": two_object and color_attr share them;
* (class, class, relation) triples, where "X left of Y" and "Y right of X" are the same triple.

single_object and counting have too few prompts to hold any out: the three splits share them.
"""

from __future__ import annotations

import itertools
import random
from functools import lru_cache
from typing import Any

from rewards.geneval.vocabulary import CLASSES, COLORS, NUMBERS, PLURALS, RELATIONS
from t2i_gcpo.records import Prompt

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SPLITS = ("train", "val", "test")

#: Held-out class pairs and triples, of 28 and 112: a seventh to a fifth each.
_PAIRS_HELD_OUT = {"test": 6, "val": 4}
_TRIPLES_HELD_OUT = {"test": 20, "val": 12}
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

Triple = tuple[str, str, str]


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


@lru_cache(maxsize=1)
def color_split() -> dict[str, set[tuple[str, str]]]:
    """Map each split to its (class, colour) pairs; every class and every colour is held out about equally often."""
    names = list(COLORS)
    split: dict[str, set[tuple[str, str]]] = {name: set() for name in SPLITS}
    for k, class_name in enumerate(CLASSES):
        for offset, color in enumerate(names[(3 * k) % 10 :] + names[: (3 * k) % 10]):
            owner = "test" if offset in (0, 5) else "val" if offset in (2, 7) else "train"
            split[owner].add((class_name, color))
    return split


def _shuffled_split(items: list[Any], held_out: dict[str, int]) -> dict[str, set[Any]]:
    items = list(items)
    random.Random(0).shuffle(items)
    test, val = held_out["test"], held_out["val"]
    return {"test": set(items[:test]), "val": set(items[test : test + val]), "train": set(items[test + val :])}


@lru_cache(maxsize=1)
def pair_split() -> dict[str, set[frozenset[str]]]:
    """Map each split to its unordered class pairs, for prompts with "and"."""
    return _shuffled_split([frozenset(pair) for pair in itertools.combinations(CLASSES, 2)], _PAIRS_HELD_OUT)


def same_triple(triple: Triple) -> Triple:
    """Return the one name of a triple and its mirror: ("a", "b", "right of") is ("b", "a", "left of")."""
    first, second, relation = triple
    return triple if relation in ("left of", "above") else (second, first, INVERSE[relation])


@lru_cache(maxsize=1)
def triple_split() -> dict[str, set[Triple]]:
    """Map each split to its (class, class, relation) triples, each under its one name."""
    triples = [(*pair, relation) for relation in ("left of", "above") for pair in itertools.permutations(CLASSES, 2)]
    return _shuffled_split(triples, _TRIPLES_HELD_OUT)


def _row(tag: str, words: str, include: list[dict[str, Any]], exclude: list[dict[str, Any]] | None = None) -> Prompt:
    text = f"a photo of {words}"
    metadata: dict[str, Any] = {"tag": tag, "include": include, "prompt": text}
    if exclude:
        metadata["exclude"] = exclude
    return Prompt(text, metadata)


def _task_prompts(task: str, name: str) -> list[Prompt]:
    if task == "single_object":
        return [_row(task, _article(c), [{"class": c, "count": 1}]) for c in CLASSES]
    if task == "counting":
        return [
            _row(task, f"{NUMBERS[n]} {PLURALS[c]}", [{"class": c, "count": n}], [{"class": c, "count": n + 1}])
            for c in CLASSES
            for n in (2, 3, 4)
        ]
    if task == "colors":
        pairs = sorted(color_split()[name])
        return [_row(task, f"{_article(k)} {c}", [{"class": c, "count": 1, "color": k}]) for c, k in pairs]
    if task == "two_object":
        return [
            _row(task, f"{_article(a)} and {_article(b)}", [{"class": a, "count": 1}, {"class": b, "count": 1}])
            for a, b in itertools.permutations(CLASSES, 2)
            if frozenset((a, b)) in pair_split()[name]
        ]
    if task == "position":
        return [
            _row(
                task,
                f"{_article(a)} {relation} {_article(b)}",
                [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}],
            )
            for relation in RELATIONS
            for a, b in itertools.permutations(CLASSES, 2)
            if same_triple((a, b, relation)) in triple_split()[name]
        ]
    pairs = sorted(color_split()[name])
    return [
        _row(
            task,
            f"{_article(k)} {a} and {_article(m)} {b}",
            [{"class": a, "count": 1, "color": k}, {"class": b, "count": 1, "color": m}],
        )
        for (a, k), (b, m) in itertools.permutations(pairs, 2)
        if k != m and frozenset((a, b)) in pair_split()[name]
    ]


@lru_cache(maxsize=len(SPLITS))
def _split(name: str) -> tuple[Prompt, ...]:
    return tuple(prompt for task in TASKS for prompt in _task_prompts(task, name))


def split(name: str) -> list[Prompt]:
    """Return every prompt of a split, task by task. ValueError for a name other than train, val, test."""
    if name not in SPLITS:
        raise ValueError(
            f"shapes:{name} is no split of ShapeScenes; there are {', '.join(f'shapes:{s}' for s in SPLITS)}"
        )
    return list(_split(name))


def vocabulary() -> list[str]:
    """Return every word that `janus-mini` knows, sorted."""
    return sorted({word for name in SPLITS for prompt in _split(name) for word in prompt.text.split()})
