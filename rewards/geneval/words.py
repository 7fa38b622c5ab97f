"""Say a verdict in words: what each clause of a GenEval row asks for, and what a wrong picture shows instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.geneval.rules import Detection, Verdict, kept_objects


def why(verdict: Verdict, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Say why a picture is wrong: a line for each clause that failed, and last what the detector saw.

    Returns () for a right one.
    """
    if verdict.correct:
        return ()
    failed = [words for words, held in zip(clause_words(metadata), verdict.clauses, strict=True) if not held]
    lines = [f"{words}: {_instead(line)}" for words, line in zip(failed, verdict.reason.split("\n"), strict=True)]
    return (*lines, f"in the image: {verdict.seen}") if verdict.seen else tuple(lines)


def objects_words(detections: Sequence[Detection], metadata: Mapping[str, Any]) -> str:
    """Count the objects that the verdict took into account, e.g. "1 white star, 2 yellow circle"."""
    objects = [one for same in kept_objects(detections, metadata.get("tag")).values() for one in same]
    counted = Counter(f"{one.color} {one.class_name}" if one.color else one.class_name for one in objects)
    return ", ".join(f"{number} {words}" for words, number in counted.items()) or "nothing that the detector finds"


def clause_words(metadata: Mapping[str, Any]) -> list[str]:
    """Say in words what each clause of a GenEval row asks for, in the order of `Verdict.clauses`."""
    include = metadata.get("include") or []
    words = []
    for clause in include:
        count, color = clause.get("count") or 1, clause.get("color")
        text = f"{count} × " * (count > 1) + f"{color} " * bool(color) + clause["class"]
        if clause.get("position"):
            relation, target = clause["position"]
            text += f" {relation} {include[target]['class']}"
        words.append(text)
    return words + [f"at most {(c.get('count') or 1) - 1} × {c['class']}" for c in metadata.get("exclude") or []]


def _instead(reason: str) -> str:
    """Return what there is in place of what a line of `Verdict.reason` expected."""
    _, found, instead = reason.partition(", found ")
    if not found:
        return reason  # a relation to an object that is not there
    return f"there are {instead}" if instead.isdigit() else f"it is {instead}"
