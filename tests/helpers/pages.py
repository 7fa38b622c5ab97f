"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\S+)\n")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language; "" for those without one."""
    return [code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def matching(pattern: str | re.Pattern[str]) -> dict[Path, list[str]]:
    """Page -> what the pattern finds in its prose, of the pages that have any."""
    matches = {page: re.findall(pattern, prose(page)) for page in PAGES}
    return {page: texts for page, texts in matches.items() if texts}


def each(texts: Mapping[Path, object]) -> pytest.MarkDecorator:
    """Run a test once for each page of `texts`, as its parameter `page`.

    ValueError where there is none: the test would check nothing.
    """
    if not texts:
        raise ValueError("no page has what the test looks for")
    return pytest.mark.parametrize("page", list(texts), ids=lambda page: page.name)


def files(page: Path) -> dict[str, str]:
    """Name -> text of the blocks that begin with `# file: NAME`: what a reader saves under that name."""
    return {found[1]: code for code in blocks(page, "python") if (found := FILE.match(code))}


def run(page: Path, folder: Path) -> int:
    """Save the page's files in `folder`, and run its other blocks of Python in order and in one namespace.

    Returns how many blocks ran. The working directory and the import path are the caller's affair.
    """
    for name, code in files(page).items():
        (folder / name).write_text(code, encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "example"}
    others = [code for code in blocks(page, "python") if not FILE.match(code)]
    for number, code in enumerate(others, start=1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
    return len(others)
