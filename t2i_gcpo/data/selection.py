"""Take some of many prompts, the tasks in equal parts and evenly over each task; nothing is drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

from t2i_gcpo.records import Prompt


def by_task(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Map each task to the indices of its prompts; tasks in the order of their first prompt."""
    return _groups([prompt.task for prompt in prompts])


def limit(prompts: Sequence[Prompt], n: int | None, *, repeat: bool = False) -> list[Prompt]:
    """Take `n` prompts, the tasks in equal parts; None or 0 takes each prompt once. The order is kept.

    A task with fewer prompts than its part gives all it has, and the others share the rest. With `repeat` it gives some
    of them more than once instead, next to each other, so that the parts are equal. ValueError for n below 0.
    """
    if n is not None and n < 0:
        what, zero = ("images", "each prompt once") if repeat else ("prompts", "all")
        raise ValueError(f"the limit is {n} {what}; it must be at least 0 (0 takes {zero})")
    if not n:
        return list(prompts)
    return [prompts[k] for k in sorted(evenly([prompt.task for prompt in prompts], n, repeat=repeat))]


def evenly(tasks: Sequence[str], n: int, *, repeat: bool = False) -> list[int]:
    """Choose `n` of the rows whose tasks are given: the tasks in equal parts, and evenly over the rows of each.

    Returns the numbers of the rows, task by task. repeat: a task with fewer rows than its part gives some of them more
    than once; without it, the other tasks share what it cannot give, and all rows are returned where there are no more
    than `n`.
    """
    groups = _groups(tasks)
    parts = _equal_parts([len(rows) for rows in groups.values()], n, repeat)
    # k of m rows, evenly: the middle of each of k equal stretches.
    return [
        rows[(2 * k + 1) * len(rows) // (2 * part)]
        for rows, part in zip(groups.values(), parts, strict=True)
        for k in range(part)
    ]


def _equal_parts(sizes: Sequence[int], n: int, repeat: bool) -> list[int]:
    """Share `n` among groups of some sizes, one at a time.

    A group without more rows is passed over, unless it repeats.
    """
    parts = [0] * len(sizes)
    left = n if repeat and sizes else min(n, sum(sizes))
    while left > 0:
        for k, size in enumerate(sizes):
            if left and (repeat or parts[k] < size):
                parts[k] += 1
                left -= 1
    return parts


def _groups(tasks: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        groups.setdefault(task, []).append(index)
    return groups
