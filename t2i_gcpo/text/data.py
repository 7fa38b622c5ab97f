"""Read questions for training and evaluation.

They come from the embedded arithmetic task, a file or the hub; a row has a question and its answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2i_gcpo.text import arithmetic
from t2i_gcpo.text.trl_version import ADVICE

#: Columns that may hold the question, in the order in which they are looked for.
QUESTION_COLUMNS = ("prompt", "question", "problem")
ANSWER_COLUMN = "answer"
#: GSM8K's answers are a worked solution, this mark, and the number.
GSM8K_MARK = "####"
PREFIX = "arithmetic:"
#: Questions of the arithmetic task where no limit is given.
DEFAULT_COUNT = 600


def read_rows(source: str, *, limit: int = 0, seed: int = 0, system: str | None = None) -> list[dict[str, Any]]:
    """Read rows with `prompt` (a chat), `answer` (text) and `task`.

    source: `arithmetic:train`, `arithmetic:val`, `arithmetic:test`; a file of JSON lines, JSON, CSV or Parquet; or
    `NAME:SPLIT` of the hub (`NAME:CONFIG:SPLIT` where the data set has configurations). limit: rows at most (0: all; of
    the arithmetic task 600). system: a system message for prompts that have none. ValueError: no such data, no rows, or
    a missing column.
    """
    if limit < 0:
        raise ValueError(f"limit is {limit}; it must be at least 0")
    if source.startswith(PREFIX):
        split = source.removeprefix(PREFIX)
        if split not in ("train", "val", "test"):
            raise ValueError(f"data is {source!r}; allowed: arithmetic:train, arithmetic:val, arithmetic:test")
        rows = arithmetic.rows(split, limit or DEFAULT_COUNT, seed)  # type: ignore[arg-type]
    else:
        data = _load(source)
        question = _question_column(data.column_names, source)
        count = min(limit or len(data), len(data))
        rows = [_row(data[k], question, f"{source}, row {k + 1}") for k in range(count)]
    if not rows:
        raise ValueError(f"the data {source} has no rows; it needs at least one question")
    return [{**row, "prompt": _with_system(row["prompt"], system)} for row in rows]


def _load(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"the data {source} needs the package datasets: {ADVICE}") from error

    path = Path(source)
    kinds = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
    if path.suffix in kinds:
        if not path.is_file():
            raise ValueError(f"there is no file {source}")
        return datasets.load_dataset(kinds[path.suffix], data_files=str(path), split="train")
    name, *rest = source.split(":")
    if not rest or len(rest) > 2:
        raise ValueError(
            f"data is {source!r}; allowed: arithmetic:train, a .jsonl, .json, .csv or .parquet file, or NAME:SPLIT "
            "(NAME:CONFIG:SPLIT) of the hub"
        )
    try:
        return datasets.load_dataset(name, *rest[:-1], split=rest[-1])
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"the data set {source!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _question_column(columns: list[str], source: str) -> str:
    found = [name for name in QUESTION_COLUMNS if name in columns]
    missing = [] if found else [" or ".join(QUESTION_COLUMNS)]
    missing += [] if ANSWER_COLUMN in columns else [ANSWER_COLUMN]
    if missing:
        raise ValueError(f"the data {source} has no column {', no column '.join(missing)}; it has {', '.join(columns)}")
    return found[0]


def _row(row: dict[str, Any], question: str, where: str) -> dict[str, Any]:
    """Read a row of a file. ValueError, beginning with `where`: it lacks its question or its answer."""
    prompt = row[question]
    for name in (question, ANSWER_COLUMN):
        if row[name] is None or row[name] in ("", []):
            raise ValueError(f"{where}: it has no {name}; leave the row out, or give it one")
    chat = prompt if isinstance(prompt, list) else [{"role": "user", "content": str(prompt)}]
    answer = str(row[ANSWER_COLUMN])
    answer = answer.rpartition(GSM8K_MARK)[2].strip() if GSM8K_MARK in answer else answer
    return {"prompt": chat, "answer": answer, "task": str(row.get("task") or "all")}


def _with_system(prompt: list[dict[str, str]], system: str | None) -> list[dict[str, str]]:
    has_one = any(message["role"] == "system" for message in prompt)
    return prompt if system is None or has_one else [{"role": "system", "content": system}, *prompt]
