"""report.html of a run in a real browser: what comes first, pictures that enlarge, narrow and dark pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import run_folders
from t2i_gcpo.reports import run_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = run_folders.write(tmp_path_factory.mktemp("report") / "run", verdicts=True, shift=1)
    return run_report.write(run).as_uri()


@pytest.mark.parametrize("width", [1440, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_answers_first_and_fits(
    new_page: Callable[..., Any], report: str, shots: Path, width: int, scheme: str
) -> None:
    page = new_page(report, width=width, scheme=scheme)
    page.screenshot(path=str(shots / f"report_{width}_{scheme}.png"), full_page=True)
    lead = page.locator("h1 + p.lead")
    assert "0.500 → 0.500" in lead.text_content() or "→" in lead.text_content()
    first = page.evaluate("[...document.body.children].slice(0, 2).map(one => one.tagName)")
    assert first == ["H1", "P"] and lead.bounding_box()["y"] < 200
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself does not scroll sideways"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 24, 28)"}[scheme]
    scrolls = "one => one.scrollWidth > one.clientWidth && getComputedStyle(one).overflowX === 'auto'"
    table = page.locator(".scroll:has(table)").first
    assert table.evaluate(scrolls) == (width == 400), "a table too wide for the page scrolls inside itself"
    curves = page.locator("figure.wide img")
    drawn = curves.evaluate("one => atob(one.currentSrc.split(',')[1])")
    assert ("#17181c" in drawn) == (scheme == "dark") and "#0072b2" in drawn, "GCPO's colour is the same in both"
    assert page.locator("figure.wide .scroll").evaluate(scrolls) == (width == 400)


@pytest.mark.parametrize("width", [1440, 400])
def test_pictures_enlarge_by_click_and_by_key(
    new_page: Callable[..., Any], report: str, shots: Path, width: int
) -> None:
    page = new_page(report, width=width, touch=width == 400)
    box, button = page.locator("dialog#enlarged"), page.locator("button.zoom").first
    small = button.locator("img").bounding_box()["width"]
    assert not box.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    assert box.is_visible() and box.locator("img").bounding_box()["width"] > 1.5 * small
    assert box.locator("img").get_attribute("alt") == button.locator("img").get_attribute("alt") != ""
    page.screenshot(path=str(shots / f"report_enlarged_{width}.png"))
    page.keyboard.press("Escape")
    assert not box.is_visible() and button.evaluate("one => one === document.activeElement")
    button.click()
    assert box.is_visible()
    box.locator("button").click()
    assert not box.is_visible()
