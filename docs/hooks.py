"""What the site needs beyond mkdocs: the files of the repository that pages link to.

A page links to a file outside docs/ as GitHub shows it, `../rewards/base.py`. In the site that file stands at
`repository/rewards/base.py`, and the link is turned there. A Markdown file (README.md, a model card) becomes a page,
and its own links are turned alike. So is a notebook, with the outputs of its last execution.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from notebook_page import markdown as notebook_markdown

ROOT = Path(__file__).parent.parent
DOCS, OUTSIDE = "docs/", "repository/"
NOTEBOOK = ".ipynb"
LINK = re.compile(r"\]\(([^()#:\s]+)(#[^()\s]*)?\)")
#: Fenced code, in which nothing is a link.
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> None:
    """Add what the nav and the pages name outside docs/, and what those pages name in turn."""
    pages = [file.src_uri for file in files.documentation_pages()]
    pages += [uri for uri in _uris(config.nav) if uri.startswith(OUTSIDE)]
    seen = set()
    while pages:
        uri = pages.pop()
        path = _source(uri)
        if uri in seen or not path.is_file():
            continue
        seen.add(uri)
        notebook = path.suffix == NOTEBOOK
        if uri.startswith(OUTSIDE):
            source = {"content": notebook_markdown(path)} if notebook else {"abs_src_path": str(path)}
            files.append(File.generated(config, uri, **source))
        if uri.endswith(".md"):
            text = notebook_markdown(path) if notebook else path.read_text(encoding="utf-8")
            named = (target(uri, link[1]) for link in LINK.finditer("".join(FENCE.split(text)[::2])))
            pages += [name for name in named if name and name.startswith(OUTSIDE)]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page to where the files stand in the site."""
    uri = page.file.src_uri

    def turned(link: re.Match[str]) -> str:
        there = target(uri, link[1])
        return f"]({posixpath.relpath(there, posixpath.dirname(uri) or '.')}{link[2] or ''})" if there else link[0]

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(turned, part) for part in parts[::2]]
    return "".join(parts)


def in_repository(uri: str) -> str:
    """Where the file of a page of the site stands in the repository."""
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else DOCS + uri


def _source(uri: str) -> Path:
    """Return the file that a page is made of; where it is none, the notebook of that name."""
    path = ROOT / in_repository(uri)
    return path if path.is_file() else path.with_suffix(NOTEBOOK)


def target(uri: str, link: str) -> str | None:
    """Where a link of the page `uri` leads in the site; None where it leads to no file of the repository."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(uri)), link))
    if path.startswith("../") or not (ROOT / path).is_file():
        return None
    if path.endswith(NOTEBOOK):
        path = path.removesuffix(NOTEBOOK) + ".md"
    return path.removeprefix(DOCS) if path.startswith(DOCS) else OUTSIDE + path


def _uris(nav: list[Any]) -> list[str]:
    found = []
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += _uris(value) if isinstance(value, list) else [value]
    return found


def on_post_build(config: Any) -> None:
    """Write the search's index as a script too: that is what the theme asks for in a page that is opened from disk."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")
