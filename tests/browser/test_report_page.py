"""report.html of a run and of a comparison in a real browser: what comes first, enlarging, narrow and dark pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import run_folders
from t2i_gcpo.reports import comparison, run_report
from t2i_gcpo.reports.run import groups, read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = run_folders.write(tmp_path_factory.mktemp("report") / "run", verdicts=True, shift=1)
    return run_report.write(run).as_uri()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("compared")
    runs = [
        read(run_folders.write(folder / name, algorithm=name, shift=shift, steps=2, verdicts=True))
        for name, shift in (("grpo", 1), ("gcpo", 2))
    ]
    comparison.write(groups(runs), folder)
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("width", [1440, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_answers_first_and_fits(
    new_page: Callable[..., Any], report: str, shots: Path, width: int, scheme: str
) -> None:
    page = new_page(report, width=width, scheme=scheme)
    page.screenshot(path=str(shots / f"report_{width}_{scheme}.png"), full_page=True)
    lead = page.locator("h1 + p.lead")
    assert "the score on the test prompts: 0." in lead.text_content() and "n = 8" in lead.text_content()
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
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_comparison_answers_first_and_shows_its_pictures_side_by_side(
    new_page: Callable[..., Any], compared: str, shots: Path, width: int, scheme: str
) -> None:
    page = new_page(compared, width=width, scheme=scheme)
    page.screenshot(path=str(shots / f"compare_{width}_{scheme}.png"), full_page=True)
    assert "gcpo less grpo" in page.locator("h1 + p.lead").text_content()
    assert page.get_by_text("Equal budget: each run sampled 128 images.").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    scrolls = "one => one.scrollWidth > one.clientWidth && getComputedStyle(one).overflowX === 'auto'"
    assert page.locator(".scroll:has(table)").first.evaluate(scrolls) == (width == 400)
    for card in page.locator(".pair").all():
        one, other = (side.bounding_box() for side in card.locator("img").all())
        assert one["y"] == other["y"] and one["x"] + one["width"] <= other["x"], "side by side, also on a phone"
        assert one["width"] == other["width"] > 100


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
