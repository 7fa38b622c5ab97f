"""Reads the prompt files of published benchmarks as they are, and nothing else.

Each reader knows one file's columns or keys and refuses any other file with what stands in it, so that a table is never
read as prompts. The files are not part of this package; docs/benchmarks.md says where they are and which version was
read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from t2i_gcpo.data.prompt_files import Rows, check_text, csv_rows, parse_json, read_text, tsv_rows, without_null
from t2i_gcpo.records import Prompt

RowReader = Callable[[Path, str], Rows]

#: Text of a file's first line that an error shows at most.
_SHOWN = 120
#: GenEval's tasks (2310.11513).
GENEVAL_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
#: T2I-CompBench++'s categories (2307.06350): the file of each is NAME_val.txt, of 300 prompts.
COMPBENCH_CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
_COMPBENCH_ENDS = ("", "_train", "_val", "_val_seen", "_val_unseen")
_DPG_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
_OCR_COLUMNS = ("prompt_raw", "target_text", "level")


def geneval(path: Path) -> list[Prompt]:
    """Read GenEval's evaluation_metadata.jsonl: one JSON object a line, with `tag`, `include` and `prompt`.

    Null stands for an absent key.
    """
    prompts = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, str(path), "")
        except ValueError as error:
            raise ValueError(_not_this(path, "GenEval's rows, a JSON object a line", number, line)) from error
        if not isinstance(row, dict) or not {"tag", "include", "prompt"} <= row.keys():
            raise ValueError(_not_this(path, "GenEval's rows, with the keys tag, include and prompt", number, line))
        row = without_null(row)
        if row.get("tag") not in GENEVAL_TASKS or not _is_text(row.get("prompt")) or not _are_clauses(row):
            tasks = ", ".join(GENEVAL_TASKS)
            raise ValueError(
                _not_this(path, f"a row of one of GenEval's tasks ({tasks}) with its clauses", number, line)
            )
        where = f"{path}, line {number}"
        prompts.append(Prompt(check_text(row["prompt"], f"{where}: the prompt"), row, source=where))
    return prompts


def dpg(path: Path) -> list[Prompt]:
    """Read DPG-Bench's dpg_bench.csv: a row a question; the rows of one `item_id` are one prompt and its questions, in
    the file's order.

    Where a folder `prompts` lies beside it, as in the benchmark's repository, a prompt's text is that of
    prompts/ITEM_ID.txt, which the benchmark asks to draw; else that of the column `text`. The metadata's `questions`
    are what the `vlm_judge` reward with `ask: questions` takes. A question's category is that of its `tuple`, as the
    benchmark's script takes it: "entity" of "entity - whole (cabbages)".
    """
    folder = path.parent / "prompts"
    items: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for number, row in _table(path, _DPG_COLUMNS, "DPG-Bench's dpg_bench.csv"):
        item, given = row["item_id"], row.get("text", "")
        if item not in items:
            items[item] = (_dpg_text(folder / f"{item}.txt") if folder.is_dir() else given, [])
        text, questions = items[item]
        if not text or (given and given != text and not folder.is_dir()):
            raise ValueError(f"{path}, line {number}: item {item!r} has another text than its first row, or none")
        try:
            parents = [int(part) for part in row["dependency"].split(",")]
            question = {
                "id": int(row["proposition_id"]),
                "question": row["question_natural_language"],
                "parents": parents,
            }
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: proposition_id is {row['proposition_id']!r}, dependency "
                f"{row['dependency']!r}; numbers are expected"
            ) from error
        if question["id"] in {other["id"] for other in questions}:
            raise ValueError(f"{path}, line {number}: item {item!r} has proposition_id {question['id']} twice")
        category = row["tuple"].split("(")[0].split("-")[0].strip()
        questions.append({**question, "category": category})
    return [
        Prompt(text, {"prompt": text, "item_id": item, "questions": questions})
        for item, (text, questions) in items.items()
    ]


def _dpg_text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(
            f"{path.parent} has no {path.name}, which dpg_bench.csv asks questions about; take both from one version"
        )
    return read_text(path).strip()


def compbench(path: Path) -> list[Prompt]:
    """Read a file of T2I-CompBench, such as color_val.txt: one prompt a line; the file's name is the category."""
    names = {name + end: name for name in COMPBENCH_CATEGORIES for end in _COMPBENCH_ENDS}
    if path.suffix != ".txt" or path.stem not in names:
        raise ValueError(
            f"{path} is none of T2I-CompBench's files; they are named "
            f"{', '.join(f'{name}_val.txt' for name in COMPBENCH_CATEGORIES)}"
        )
    prompts = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        text = line.strip()
        if "\t" in text or text.startswith(("{", "[")):
            raise ValueError(_not_this(path, "one prompt a line", number, line))
        if text:
            where = f"{path}, line {number}"
            text = check_text(text, f"{where}: the prompt")
            prompts.append(Prompt(text, {"prompt": text, "tag": names[path.stem]}, source=where))
    return prompts


def drawbench(path: Path) -> list[Prompt]:
    """Read DrawBench's csv, with the columns Prompts and Category."""
    return [
        _prompt(path, line, row["Prompts"], tag=row["Category"])
        for line, row in _table(path, ("Prompts", "Category"), "DrawBench's csv")
    ]


def parti(path: Path) -> list[Prompt]:
    """Read PartiPrompts.tsv, with the columns Prompt, Category, Challenge and Note. Quotes are part of a prompt."""
    columns = ("Prompt", "Category", "Challenge")
    return [
        _prompt(path, line, row["Prompt"], tag=row["Category"], challenge=row["Challenge"])
        for line, row in _table(path, columns, "PartiPrompts.tsv", tsv_rows)
    ]


def ocr(path: Path) -> list[Prompt]:
    """Read STAGE's ocr_len_buckets.csv, with the columns index, prompt_raw, target_text, length and level; `text` is
    what `ocr` looks for.
    """
    return [
        _prompt(path, line, row["prompt_raw"], tag=row["level"], text=row["target_text"])
        for line, row in _table(path, _OCR_COLUMNS, "STAGE's ocr_len_buckets.csv")
    ]


READERS: dict[str, Callable[[Path], list[Prompt]]] = {
    "geneval": geneval,
    "dpg": dpg,
    "compbench": compbench,
    "drawbench": drawbench,
    "parti": parti,
    "ocr": ocr,
}


def read(path: Path, name: str) -> list[Prompt]:
    """Read the prompts of a benchmark's file.

    FileNotFoundError for a missing file; ValueError for a file that is not this benchmark's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file {path}")
    prompts = READERS[name](path)
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def _table(
    path: Path, columns: Sequence[str], what: str, rows: RowReader = csv_rows
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line and row of a table; cells are stripped.

    ValueError unless it has the columns and each row fills them.
    """
    text = read_text(path)
    read = rows(path, text)
    try:
        names = [name.strip() for name in next(read, (1, []))[1]]
    except ValueError:
        names = []
    if not set(columns) <= set(names):
        raise ValueError(_not_this(path, f"{what}, with the columns {', '.join(columns)}", 1, text.split("\n")[0]))
    for line, cells in read:
        if not any(cell.strip() for cell in cells):
            continue
        row = dict(zip(names, (cell.strip() for cell in cells), strict=False))
        if len(cells) != len(names) or not all(row[name] for name in columns):
            raise ValueError(
                f"{path}, line {line}: {what} has {len(names)} cells a row and a value for each of "
                f"{', '.join(columns)}; this row has {len(cells)}: {[row.get(name) for name in columns]}"
            )
        yield (
            line,
            {name: check_text(cell, f"{path}, line {line}: {name}") if cell else "" for name, cell in row.items()},
        )


def _prompt(path: Path, line: int, prompt: str, **metadata: str) -> Prompt:
    return Prompt(prompt, {"prompt": prompt, **metadata}, source=f"{path}, line {line}")


def _not_this(path: Path, expected: str, number: int, line: str) -> str:
    shown = line.strip()
    return f"{path}, line {number}: expected {expected}; found {shown[:_SHOWN]!r}{'...' if len(shown) > _SHOWN else ''}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_clauses(row: dict[str, Any]) -> bool:
    """Say whether these are GenEval's clauses: a list of objects, each with a class, and at least one of them."""
    clauses = [*row["include"], *row.get("exclude", [])] if isinstance(row.get("include"), list) else []
    return bool(clauses) and all(isinstance(one, dict) and _is_text(one.get("class")) for one in clauses)
