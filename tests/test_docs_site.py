"""The site: it builds strictly, its links and anchors lead somewhere, and it loads nothing from the network."""

from __future__ import annotations

import importlib
import json
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
    assert not [*site.glob("*.py"), *site.glob("*.sh")]
    html = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(html) > 15
    for path, text in html.items():
        loaded = re.findall(r"<(?:script|img|source|iframe)\b[^>]*\bsrc=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=[\"']?([^\"' >]+)", text)
        assert loaded and not [url for url in loaded if url.startswith(("http", "//"))], path
    method, notebook = html[site / "method.html"], html[site / "repository" / "notebooks" / "02_token_credit.html"]
    for text in (method, notebook):
        assert text.count("<math") > 10 and "$$" not in text and "formula-place" not in text
    assert 'src="data:image/png;base64,' in notebook and '<pre class="output">' in notebook
    assert 'href="02_token_credit.html"' in html[site / "repository" / "notebooks" / "index.html"]
    assert "from_disk.js" in method and (site / "search" / "search_index.js").is_file()
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with two pages, and a file outside them."""
    root = tmp_path / "checkout"
    (root / "docs" / "results").mkdir(parents=True)
    for path in [*(ROOT / "docs").glob("*.py"), ROOT / "docs" / "site.css", ROOT / "docs" / "from_disk.js"]:
        shutil.copy(path, root / "docs" / path.name)
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


def test_a_dollar_in_code_is_no_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    formulas = importlib.import_module("formulas")
    text = "costs $5 and `$a$`, $\\alpha_1$ too:\n\n$$w = \\frac{a*b}{c*d}$$\n\n```\n$x$\n```\n"
    placed = formulas.on_page_markdown(text)
    assert "`$a$`" in placed and "$x$" in placed and "costs $5 and" in placed and placed.count("formula-place") == 2
    page = formulas.on_page_content(placed)
    assert (
        page.count("<math") == 2 and "<mfrac>" in page and "formula-place" not in page and "<mi>&#x003B1;</mi>" in page
    )
    assert formulas.on_page_content(formulas.on_page_markdown("plain")) == "plain", "no formula of the page before"


def test_a_notebook_s_page_has_its_texts_code_and_outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    page = importlib.import_module("notebook_page")
    outputs = [
        {"output_type": "stream", "text": ["10 %\r100 %\n", "a < b\n"]},
        {"output_type": "display_data", "data": {"image/png": "QUJD\n", "text/plain": "<Image>"}},
        {"output_type": "execute_result", "data": {"text/markdown": "| a |\n|---|", "text/plain": "<M>"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": "draw()", "outputs": outputs},
        {"cell_type": "code", "source": "", "outputs": []},
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    assert page.markdown(tmp_path / "n.ipynb") == (
        '# Title\ntext\n\n```python\ndraw()\n```\n\n<pre class="output">100 %\na &lt; b</pre>\n\n'
        '<p><img src="data:image/png;base64,QUJD" alt="what the cell above draws"></p>\n\n| a |\n|---|\n'
    )
