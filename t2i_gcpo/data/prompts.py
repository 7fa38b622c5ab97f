"""Prompt files -> `Prompt`, the same prompts in equal parts per task, and a sampler that can be resumed.

Formats, by the end of the file's name:

* `.jsonl`, `.json`: one JSON object a line (GenEval's `{"tag", "include", "exclude"?, "prompt"}`, T2I-R1's and STAGE's
  `{"prompt", "task_type", "nouns", ...}`) or one JSON array of such objects. Null stands for an absent key and is dropped.
* `.csv`: DrawBench's columns `Prompts` and `Category`; `prompt` and `tag` work as well.
* anything else (`.txt`): one prompt a line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from t2i_gcpo.records import Prompt

SHAPES = "shapes:"
#: A data set's own name for the task -> Prompt.task reads "tag".
_TASK_KEYS = ("tag", "task_type", "category")


def read(source: str | Path) -> list[Prompt]:
    """Prompts of a file, or of `shapes:train|val|test`.

    FileNotFoundError for a missing file; ValueError, with file and line, for a bad row or a file without prompts.
    """
    if str(source).startswith(SHAPES):
        from t2i_gcpo.data.shapes.prompts import split

        return split(str(source).removeprefix(SHAPES))
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file {path}; give a file, or shapes:train, shapes:val or shapes:test")
    reader = READERS.get(path.suffix.lower(), _read_lines)
    try:
        prompts = list(reader(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file: {error}") from error
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def _read_lines(path: Path) -> Iterator[Prompt]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip():
            yield Prompt(line.strip())


def _read_json(path: Path) -> Iterator[Prompt]:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        try:
            rows = list(enumerate(json.loads(text), start=1))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
        yield from (_json_prompt(row, f"{path}, entry {number}") for number, row in rows)
        return
    # Not splitlines(): JSON strings may hold U+2028 and the like, which end no line here.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not valid JSON ({error.msg}); one object a line is expected"
            ) from error
        yield _json_prompt(row, f"{path}, line {number}")


def _json_prompt(row: Any, where: str) -> Prompt:
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object with a "prompt", found {type(row).__name__}')
    text = row.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: "prompt" is {text!r}; it must be a text. Keys there: {", ".join(row) or "none"}')
    include = row.get("include")
    if include is not None:
        _check_objects(include, f'{where}: "include"')
    metadata = _without_null(row)
    tag = next((metadata[key] for key in _TASK_KEYS if metadata.get(key)), None)
    return Prompt(text.strip(), metadata if tag is None else {**metadata, "tag": str(tag)})


def _check_objects(objects: Any, where: str) -> None:
    """GenEval's clauses: a list of objects, each with a class."""
    if not isinstance(objects, list) or not all(
        isinstance(o, dict) and isinstance(o.get("class"), str) for o in objects
    ):
        raise ValueError(f'{where} is {objects!r}; it must be a list of objects with a "class"')


def _without_null(value: Any) -> Any:
    """Drop keys whose value is null, at any depth."""
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def _read_csv(path: Path) -> Iterator[Prompt]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        columns = {name.strip().lower(): name for name in rows.fieldnames or () if name}
        text_column = columns.get("prompts") or columns.get("prompt")
        tag_column = columns.get("category") or columns.get("tag")
        if text_column is None:
            found = ", ".join(columns) or "none"
            raise ValueError(f'{path}, line 1: no column "Prompts" (DrawBench) or "prompt"; columns there: {found}')
        for row in rows:
            text = (row[text_column] or "").strip()
            if not text:
                raise ValueError(f'{path}, line {rows.line_num}: the column "{text_column}" is empty')
            tag = (row[tag_column] or "").strip() if tag_column else ""
            yield Prompt(text, {"prompt": text, "tag": tag} if tag else {"prompt": text})


READERS: dict[str, Callable[[Path], Iterator[Prompt]]] = {".jsonl": _read_json, ".json": _read_json, ".csv": _read_csv}


def by_task(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Task -> indices of its prompts; tasks in the order of their first prompt."""
    tasks: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        tasks.setdefault(prompt.task, []).append(index)
    return tasks


def limit(prompts: Sequence[Prompt], n: int | None) -> list[Prompt]:
    """`n` prompts, the tasks in equal parts, each task's spread evenly over its own; None or 0 takes all.

    A task with fewer prompts than its part gives all it has, and the others share the rest. Deterministic; the order is kept.
    """
    if n is not None and n < 0:
        raise ValueError(f"the limit is {n} prompts; it must be at least 0 (0 takes all)")
    if not n or n >= len(prompts):
        return list(prompts)
    tasks = by_task(prompts)
    parts = dict.fromkeys(tasks, 0)
    while n:
        for task in tasks:
            if n and parts[task] < len(tasks[task]):
                parts[task] += 1
                n -= 1
    # k of m, evenly spread: the middle of each of k equal stretches.
    chosen = [
        indices[(2 * k + 1) * len(indices) // (2 * parts[task])]
        for task, indices in tasks.items()
        for k in range(parts[task])
    ]
    return [prompts[index] for index in sorted(chosen)]


def spread(prompts: Sequence[Prompt], n: int | None) -> list[Prompt]:
    """`n` rows, the tasks in equal parts; a task with fewer prompts than its part repeats them. None or 0 takes each prompt once.

    Repeated prompts stand next to each other. Deterministic; the order is kept. ValueError for n below 0.
    """
    tasks = by_task(prompts)
    if n is None or n == 0 or not tasks:
        return list(prompts)
    if n < 0:
        raise ValueError(f"the limit is {n} images; it must be at least 0 (0 takes each prompt once)")
    times = [0] * len(prompts)
    for position, indices in enumerate(tasks.values()):
        part = n // len(tasks) + (position < n % len(tasks))
        # k of m, evenly spread: the middle of each of k equal stretches, over as many rounds as it takes.
        for k in range(part):
            times[indices[(2 * k + 1) * len(indices) // (2 * part)]] += 1
    return [prompt for prompt, count in zip(prompts, times, strict=True) for _ in range(count)]
