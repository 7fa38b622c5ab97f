"""Reads prompts of a file whose format, or whose column of prompts, is named rather than told from the file.

`read_named` is what commands call with a run's options; without a format or a column it is `prompts.read`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from t2i_gcpo.data import benchmark_files, prompts
from t2i_gcpo.data.prompt_files import Rows, check_text, csv_rows, parse_json, read_text, tsv_rows, without_null
from t2i_gcpo.records import Prompt

Format = Literal["auto", "geneval", "dpg", "compbench", "drawbench", "parti", "ocr", "lines"]
#: Tells the format by the file's name.
AUTO: Format = "auto"


def read(source: str | Path, *, format: Format = AUTO, column: str | None = None) -> list[Prompt]:
    """Read the prompts of a file, or of `shapes:train|val|test`.

    format: "auto" is told by the file's name; a benchmark's own file; or "lines", one prompt a line whatever the file
    is called. column: of a .csv or .tsv table, or key of a .jsonl file's objects, that holds the prompts; the row's
    other values become the prompt's metadata, so that a column `tag` is its task.

    FileNotFoundError for a missing file; ValueError, with file and line, for a file that is not what was named.
    """
    if format not in get_args(Format):
        raise ValueError(f"prompts.format is {format!r}; allowed: {', '.join(get_args(Format))}")
    if format == AUTO and column is None:
        return prompts.read(source)
    if str(source).startswith(prompts.SHAPES) or (format != AUTO and column is not None):
        raise ValueError(
            f"format is {format!r} and column {column!r} for {source}; name one of them, of a file, "
            f"and neither for {prompts.SHAPES}*"
        )
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file {path}")
    if format not in (AUTO, "lines"):
        return benchmark_files.read(path, format)
    found = list(_lines(path) if column is None else _column(path, column))
    if not found:
        raise ValueError(f"{path} holds no prompts")
    return found


def read_named(source: str, *, format: Format, column: str | None) -> list[Prompt]:
    """Read a source with a run's `prompts.format` and `prompts.column`, which speak of its files and not of its splits
    of ShapeScenes.
    """
    if source.startswith(prompts.SHAPES):
        return prompts.read(source)
    return read(source, format=format, column=column)


def _lines(path: Path) -> Iterator[Prompt]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield Prompt(check_text(line, f"{where}: the prompt"), source=where)


def _column(path: Path, column: str) -> Iterator[Prompt]:
    if path.suffix.lower() not in _ROWS:
        raise ValueError(
            f"{path}: a column can be named for {', '.join(_ROWS)} files; rename the file, or name its format"
        )
    for number, row in _ROWS[path.suffix.lower()](path):
        where = f"{path}, line {number}"
        if column not in row:
            raise ValueError(f"{where}: no column {column!r}; columns there: {', '.join(row) or 'none'}")
        if not isinstance(row[column], str):
            raise ValueError(f"{where}: the column {column!r} is {row[column]!r}; it must be a text")
        text = check_text(row[column], f"{where}: the column {column!r}")
        metadata = {key: value for key, value in without_null(row).items() if value != ""}
        yield Prompt(text, {**metadata, "prompt": text}, source=where)


def _table(path: Path, rows: Callable[[Path, str], Rows]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line and row of a table whose first line names the columns."""
    read = rows(path, read_text(path))
    names = [name.strip() for name in next(read, (1, []))[1]]
    for line, cells in read:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names) or len(set(names)) < len(names):
            raise ValueError(
                f"{path}, line {line}: the row has {len(cells)} cells, the header {len(names)} names "
                f"({', '.join(names)}), each once"
            )
        yield line, {name: cell.strip() for name, cell in zip(names, cells, strict=True)}


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = parse_json(line, f"{path}, line {number}", "; one object a line is expected")
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
            yield number, row


#: File endings that a column can be named in -> line and row of each of its rows.
_ROWS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": lambda path: _table(path, csv_rows),
    ".tsv": lambda path: _table(path, tsv_rows),
    ".jsonl": _objects,
    ".ndjson": _objects,
}
