"""The site: it builds strictly, its links and anchors lead somewhere, and it loads nothing from the network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.pages import ROOT

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Build the site of a checkout; mkdocs' `Abort` where it is not whole."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")

    def run(root: Path = ROOT) -> Path:
        from mkdocs.commands.build import build
        from mkdocs.config import load_config

        build(load_config(str(root / "mkdocs.yml"), site_dir=str(tmp_path / "site")))
        return tmp_path / "site"

    return run


def test_it_builds_and_needs_no_network(build: Build) -> None:
    site = build()
    for page in ("index", "method", "configuration", "repository/index", "repository/CONTRIBUTING"):
        assert (site / f"{page}.html").is_file(), page
    assert not (site / "hooks.py").exists()
    html = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(html) > 15
    for path, text in html.items():
        loaded = re.findall(r"<(?:script|img|source|iframe)\b[^>]*\bsrc=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=[\"']?([^\"' >]+)", text)
        assert loaded and not [url for url in loaded if url.startswith(("http", "//"))], path
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with two pages, and a file outside them."""
    root = tmp_path / "checkout"
    (root / "docs" / "results").mkdir(parents=True)
    for name in ("docs/hooks.py", "docs/site.css"):
        shutil.copy(ROOT / name, root / name)
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = "nav: [index.md, repository/README.md, {More: [method.md]}]\n\n"
    (root / "mkdocs.yml").write_text(re.sub(r"^nav:\n.*?^\n", nav, config, flags=re.M | re.S), encoding="utf-8")
    (root / "README.md").write_text("# Start\n\n[method](docs/method.md#method), [home](docs/index.md)\n")
    (root / "docs" / "method.md").write_text("# Method\n\n```python\nrows[0](index.md)\n```\n")
    (root / "docs" / "index.md").write_text("# Home\n\n[method](method.md#method), [start](../README.md)\n")
    return root


def test_files_outside_the_pages_are_brought_in(build: Build, checkout: Path) -> None:
    from mkdocs.exceptions import Abort

    site = build(checkout)
    assert 'href="repository/index.html"' in (site / "index.html").read_text()
    assert 'href="../method.html#method"' in (site / "repository" / "index.html").read_text()
    (checkout / "docs" / "method.md").unlink()
    with pytest.raises(Abort, match="strict"):
        build(checkout)


@pytest.mark.parametrize(
    "link",
    ["[no page](none.md)", "[no anchor](method.md#none)", "[no file](../t2i_gcpo/none.py)", "[a folder](results)"],
)
def test_a_link_that_leads_nowhere_fails_the_build(link: str, build: Build, checkout: Path) -> None:
    from mkdocs.exceptions import Abort

    (checkout / "docs" / "index.md").write_text(f"# Home\n\n{link}\n")
    with pytest.raises(Abort, match="strict"):
        build(checkout)
