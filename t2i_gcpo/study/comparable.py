"""Refuse comparisons that would say nothing: arms in different worlds, with different budgets, run by different code.

OUT/code.json says by which code each trial was run: a list of hashes for each, more than one where it was resumed by
another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from t2i_gcpo.commands.options.arguments import to_mapping
from t2i_gcpo.study.spec import Study, Trial
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.json_files import check_shape, read_json
from t2i_gcpo.utils.nested import flatten
from t2i_gcpo.utils.sources import code_hash

FILE = "code.json"
#: What two arms must share for their scores to be compared: the model they start from, and the prompts.
WORLD = (
    "generator.checkpoint", "generator.revision", "generator.layers", "generator.width",
    "prompts.train", "prompts.test", "evaluate.test_limit", "evaluate.guidance",
)  # fmt: skip


def check_arms(study: Study) -> None:
    """Raise ValueError where an arm differs in its world or its budget from one that it is compared with.

    DAPO's dynamic sampling draws a number of images that nobody knows before; the table says what it drew.
    """
    first = {group: members[0] for group, members in study.groups.items()}
    for group, trial in first.items():
        for other in (first[baseline] for baseline in study.compared_with(trial)):
            where = f"{study.file}: {group} is compared with {other.group}"
            mine, theirs = (flatten(to_mapping(one.settings)) for one in (trial, other))
            changed = [f"{name} is {mine[name]!r} and {theirs[name]!r}" for name in WORLD if mine[name] != theirs[name]]
            if changed:
                raise ValueError(f"{where}, and {'; '.join(changed)}; compare arms of one world, or drop `against`")
            own, given = budget(trial), budget(other)
            if own is not None and given is not None and own != given:
                raise ValueError(
                    f"{where}, and they sample {own:,} and {given:,} images; give both the same steps, "
                    "prompts_per_step and group size, or max_images"
                )


def budget(trial: Trial) -> int | None:
    """Return the number of images that a trial will sample; None where it cannot be known before."""
    settings = trial.settings
    images = settings.steps * settings.prompts_per_step * settings.algorithm.group_size
    if settings.max_images:
        return min(images, settings.max_images)
    return None if settings.algorithm.dynamic_sampling else images


def read_code(out: Path) -> dict[str, list[str]]:
    """Return trial -> hashes of the code that ran it; empty where the study has not begun."""
    file = out / FILE
    if not file.is_file():
        return {}
    found: dict[str, list[str]] = read_json(file)
    check_shape(found, dict, str(file))
    return found


def check_code(study: Study, begun: Iterable[str], *, mixed: bool) -> None:
    """Raise ValueError where trials that have begun were run by other code than the present, unless `mixed` is on."""
    if mixed:
        return
    recorded = read_code(study.out)
    others = sorted(name for name in begun if any(one != code_hash() for one in recorded.get(name, ())))
    if others:
        named = f"{', '.join(others[:3])}{' and others' if len(others) > 3 else ''}"
        raise ValueError(
            f"{study.out}: {named} ran with other code than the present, and one table would mix both; name another "
            "--out to run all trials anew, go back to that code, or say --mixed-code, which results.json then tells"
        )


def check_unchanged(begun_with: str, *, mixed: bool) -> None:
    """Raise ValueError where the code is another than when the study began, unless `mixed` is on."""
    if not mixed and code_hash() != begun_with:
        raise ValueError(
            "the code has changed since the study began, and the trials to come would run with the new one; the trials "
            "that ran were saved: go back to the former code and give the same command again, or say --mixed-code"
        )


def record_code(out: Path, trial: Trial, *, resume: bool) -> None:
    """Note that the present code runs a trial, from its start or on from where it stopped."""
    recorded, own = read_code(out), code_hash()
    before = recorded.get(trial.name, []) if resume else []
    recorded[trial.name] = before if own in before else [*before, own]
    write_atomically(out / FILE, json.dumps(recorded, indent=1) + "\n")


def unequal(groups: Iterable[Mapping[str, Any]], against: Iterable[Mapping[str, Any]]) -> str:
    """Name the groups that sampled other numbers of images than those they stand against; "" where none did."""
    sampled = {row["group"]: row["images_sampled"] for row in groups}
    pairs = [(row["group"], row["against"]) for row in against]
    named = [
        f"{one} sampled {sampled[one]:,.0f} images and {other} {sampled[other]:,.0f}"
        for one, other in pairs
        if sampled[one] and sampled[other] and sampled[one] != sampled[other]
    ]
    return f"not at an equal number of images: {'; '.join(named)}" if named else ""
