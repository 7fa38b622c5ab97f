"""The site as it lies on a disk: its search, formulas, the notebooks' pages, and what a phone shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from helpers.pages import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("width", [1440, 400])
def test_the_search_is_not_shown_from_disk_where_no_browser_runs_it(
    new_page: Callable[..., Any], site: Path, width: int
) -> None:
    page = new_page((site / "index.html").as_uri(), width=width)
    for shown in page.locator(".md-search, .md-header__button[for=__search]").all():
        assert not shown.is_visible()


def test_the_search_works_where_the_site_is_served(new_page: Callable[..., Any], served: str) -> None:
    page = new_page(f"{served}/index.html", width=1440)
    page.locator(".md-search__input").first.fill("surrogate")
    page.locator(".md-search-result__item").first.wait_for()
    assert page.locator(".md-search-result__item").count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 400])
def test_formulas_are_drawn_and_pages_fit(
    new_page: Callable[..., Any], site: Path, shots: Path, width: int, scheme: str
) -> None:
    for name in ("method", "repository/notebooks/02_token_credit"):
        page = new_page((site / f"{name}.html").as_uri(), width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        fractions = page.locator("mfrac")
        assert fractions.count() > 1
        sizes = fractions.evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
        assert min(sizes) > 15, "a fraction is two lines high, not a line of text"
        page.screenshot(path=str(shots / f"site_{Path(name).name}_{width}_{scheme}.png"))


def test_a_phone_shows_the_ratio_of_speed_and_a_picture_that_can_be_read(
    new_page: Callable[..., Any], site: Path, shots: Path
) -> None:
    page = new_page((site / "speed.html").as_uri(), width=400)
    assert page.locator("th").nth(1).text_content() == "ratio"
    for cell in page.locator("table").first.locator("td:nth-child(2)").all():
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400
    page.screenshot(path=str(shots / "site_speed_400.png"))
    page = new_page((site / "index.html").as_uri(), width=400)
    hero = page.locator("article img").first
    assert hero.evaluate("one => one.getBoundingClientRect().width / one.naturalWidth") >= 0.9, "at its own size"
    assert hero.locator("xpath=..").evaluate("one => one.scrollWidth > one.clientWidth"), "it scrolls inside itself"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.screenshot(path=str(shots / "site_index_400.png"))
