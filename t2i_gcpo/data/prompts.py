"""Read prompts by name: a prompt file, or a split of ShapeScenes; `limit` takes some, `row` reads one's own text."""

from __future__ import annotations

from pathlib import Path

from t2i_gcpo.data.prompt_files import SUFFIXES, read_file
from t2i_gcpo.data.selection import by_task, limit
from t2i_gcpo.data.shapes.grammar import row
from t2i_gcpo.records import Prompt

__all__ = ["SHAPES", "by_task", "limit", "read", "row"]

SHAPES = "shapes:"


def read(source: str | Path) -> list[Prompt]:
    """Read the prompts of a file, or of `shapes:train|val|test`; `prompt_files` describes the kinds of files.

    >>> read("shapes:val")[0].text
    'a photo of a circle'

    FileNotFoundError for a missing file; ValueError, with file and line, for a bad row or a file without prompts.
    """
    if str(source).startswith(SHAPES):
        from t2i_gcpo.data.shapes.prompts import split

        return split(str(source).removeprefix(SHAPES))
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no prompt file {path}; give a file ({SUFFIXES}), or shapes:train, shapes:val or shapes:test"
        )
    return read_file(path)
