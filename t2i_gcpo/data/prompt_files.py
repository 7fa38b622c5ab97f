"""Read prompts from a file; the end of the file's name says how it is read, and nothing else does.

* `.txt`: one prompt a line.
* `.jsonl`, `.ndjson`: one JSON object a line, such as GenEval's `{"tag", "include", "exclude"?, "prompt"}` or the
  `{"prompt", "task_type", "nouns", ...}` of T2I-R1 and STAGE. A null stands for an absent key and is dropped.
* `.json`: one JSON array of such objects, or one object a line, which some data sets call `.json`, too.
* `.csv`: a table with a header; the column `Prompts` or `prompt` holds the prompts, `Category` or `tag` their tasks
  (DrawBench).
* `.tsv`: the same with tabs, and every cell as it stands: quotes have no meaning (PartiPrompts).

A line ends at a newline. Other separators that Unicode knows (U+2028, U+0085, form feed) are part of a prompt. What a
reader does not expect is an error with file and line, never a guess.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from t2i_gcpo.records import Prompt

#: A data set's own name for the task -> Prompt.task reads "tag".
_TASK_KEYS = ("tag", "task_type", "category")
#: Names of columns, in lower case.
_TEXT_COLUMNS, _TASK_COLUMNS = ("prompts", "prompt"), ("category", "tag")


def read_file(path: Path) -> list[Prompt]:
    """Read the prompts of one file.

    ValueError, with file and line: a suffix that no reader knows, text that is not UTF-8, a row that is no prompt, or
    no prompts at all.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path} has the suffix {path.suffix or '(none)'!r}, so nothing says how to read it. Name it {SUFFIXES}"
        )
    prompts = list(reader(path, read_text(path)))
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def read_text(path: Path) -> str:
    """Return a file's text with its lines ending in newlines. ValueError for text that is not UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file: {error}") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(
            f"{path}, line {line}: a NUL character, so this is no UTF-8 text file (UTF-16?); save it as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_text(text: str, where: str) -> str:
    """Return a prompt without the white space around it.

    ValueError: it is empty, or holds a character that no file or tokenizer can take.
    """
    text = text.strip()
    if not text:
        raise ValueError(f"{where} is empty; write what the image should show")
    for character in text:
        if unicodedata.category(character) == "Cs":
            raise ValueError(
                f"{where} holds half of a surrogate pair, {character!a}, which is no character; correct the text"
            )
        if unicodedata.category(character) == "Cc" and not character.isspace():
            raise ValueError(f"{where} holds the control character {character!a}; remove it")
    return text


# -- lines -------------------------------------------------------------------------------------------------------------


def _read_lines(path: Path, text: str) -> Iterator[Prompt]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield Prompt(check_text(line, f"{where}: the prompt"), source=where)


# -- JSON --------------------------------------------------------------------------------------------------------------


def _read_json_lines(path: Path, text: str) -> Iterator[Prompt]:
    if text.lstrip().startswith("["):
        raise ValueError(
            f"{path}, line 1: a JSON array; a {path.suffix} file holds one object a line. "
            "Name it .json to read an array"
        )
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _json_prompt(parse_json(line, where, "; one object a line is expected"), where)


def _read_json(path: Path, text: str) -> Iterator[Prompt]:
    if not text.lstrip().startswith("["):
        yield from _read_json_lines(path, text)
        return
    rows = parse_json(text, str(path), "")
    yield from (_json_prompt(row, f"{path}, entry {number}") for number, row in enumerate(rows, start=1))


def parse_json(text: str, where: str, expected: str) -> Any:
    """Parse JSON as its standard has it: no NaN, no key twice, no half of a surrogate pair."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        where = where if ", line " in where else f"{where}, line {error.lineno}"
        raise ValueError(f"{where}: not valid JSON ({error.msg}){expected}") from error
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(
            f"{where}: a text holds half of a surrogate pair, {half}, which is no character; correct it"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{where}: not valid JSON (nested too deeply){expected}") from error
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error}){expected}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _json_prompt(row: Any, where: str) -> Prompt:
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object with a "prompt", found {type(row).__name__}')
    text = row.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: "prompt" is {text!r}; it must be a text. Keys there: {", ".join(row) or "none"}')
    include = row.get("include")
    if include is not None:
        check_objects(include, f'{where}: "include"')
    metadata = without_null(row)
    key = next((key for key in _TASK_KEYS if metadata.get(key)), None)
    if key is None:
        return Prompt(check_text(text, f'{where}: "prompt"'), metadata, where)
    if isinstance(metadata[key], (list, dict)):
        raise ValueError(f'{where}: "{key}" is {metadata[key]!r}; it names the prompt\'s task and must be a text')
    return Prompt(check_text(text, f'{where}: "prompt"'), {**metadata, "tag": str(metadata[key])}, where)


def check_objects(objects: Any, where: str) -> None:
    """Check GenEval's clauses: a list of objects, each with a class."""
    if not isinstance(objects, list) or not all(
        isinstance(o, dict) and isinstance(o.get("class"), str) for o in objects
    ):
        raise ValueError(f'{where} is {objects!r}; it must be a list of objects with a "class"')


def without_null(value: Any) -> Any:
    """Drop keys whose value is null, at any depth."""
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value


# -- tables ------------------------------------------------------------------------------------------------------------

#: Line of the file, and the cells of the row that begins there.
Rows = Iterator[tuple[int, list[str]]]


def _read_csv(path: Path, text: str) -> Iterator[Prompt]:
    return _table(path, csv_rows(path, text))


def csv_rows(path: Path, text: str) -> Rows:
    """Yield the rows of a table with commas, in which quotes have a meaning.

    ValueError for a row that cannot be read.
    """
    # Not splitlines(): a cell may hold U+2028 and the like, which end no line here.
    reader = csv.reader((line + "\n" for line in text.removesuffix("\n").split("\n")), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {line}: the row that begins here cannot be read ({error}); a quote that is left open "
                'takes the rows below it with it. Write a quote within a cell twice: "a ""quoted"" word"'
            ) from error
        yield line, cells


def _read_tsv(path: Path, text: str) -> Iterator[Prompt]:
    return _table(path, tsv_rows(path, text))


def tsv_rows(path: Path, text: str) -> Rows:
    """Yield the rows of a table with tabs, every cell as it stands.

    ValueError for a cell that is in quotes as a whole.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        cells = line.split("\t") if line.strip() else []
        for cell in cells:
            if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
                raise ValueError(
                    f"{path}, line {number}: the cell {cell} is in quotes, and a .tsv holds every cell as it stands. "
                    "Leave the outer quotes out, or save the table as .csv, where quotes have a meaning"
                )
        yield number, cells


def _table(path: Path, rows: Rows) -> Iterator[Prompt]:
    """Turn the rows of a table into prompts; the first row names the columns. Empty rows are left out."""
    filled = ((line, cells) for line, cells in rows if any(cell.strip() for cell in cells))
    head, names = next(filled, (1, []))
    text_column = _column(path, head, names, _TEXT_COLUMNS)
    task_column = _column(path, head, names, _TASK_COLUMNS)
    if text_column is None:
        columns = ", ".join(name.strip().lower() for name in names if name.strip()) or "none"
        raise ValueError(f'{path}, line {head}: no column "Prompts" (DrawBench) or "prompt"; columns there: {columns}')
    for line, cells in filled:
        where = f"{path}, line {line}"
        if len(cells) != len(names):
            raise ValueError(
                f"{where}: the row has {len(cells)} cells, the header {len(names)}; "
                "put a cell that holds a separator in quotes (.csv)"
            )
        if not cells[text_column].strip():
            raise ValueError(f'{where}: the column "{names[text_column]}" is empty')
        text = check_text(cells[text_column], f'{where}: the column "{names[text_column]}"')
        task = cells[task_column].strip() if task_column is not None else ""
        yield Prompt(text, {"prompt": text, "tag": task} if task else {"prompt": text}, where)


def _column(path: Path, line: int, names: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Find the one column with one of the wanted names."""
    columns = [k for k, name in enumerate(names) if name.strip().lower() in wanted]
    if len(columns) > 1:
        both = " and ".join(f'"{names[k]}"' for k in columns)
        raise ValueError(f"{path}, line {line}: the columns {both} may both be meant; keep one of them")
    return columns[0] if columns else None


#: Suffix -> its reader, from the file's path and text.
READERS: dict[str, Callable[[Path, str], Iterator[Prompt]]] = {
    ".txt": _read_lines,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
SUFFIXES = (
    ".txt (one prompt a line), .jsonl or .ndjson (one JSON object a line), .json (an array of them), "
    ".csv or .tsv (a table with a header)"
)
