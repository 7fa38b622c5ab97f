"""The heatmap's HTML page in a real browser.

What the pointer shows is what the npz holds, whatever map, opacity or step is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from t2i_gcpo import heatmap
from t2i_gcpo.heatmap import Heatmap
from t2i_gcpo.heatmap.files import write

pytestmark = pytest.mark.slow

#: Name in the pointer's box -> name in `heatmap.cell`.
NAMES = {
    "token": "token",
    "step": "step",
    "log p(· | prompt)": "logprob_positive",
    "log p(· | negative)": "logprob_negative",
    "log p(· | reference)": "logprob_reference",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Heatmap, Path]:
    from test_heatmap_views import drawn

    write(drawn(), folder := tmp_path_factory.mktemp("page"), "heatmap")
    return heatmap.load(folder / "heatmap.npz"), folder / "heatmap.html"


@pytest.fixture(scope="module")
def page(chromium: Any, saved: tuple[Heatmap, Path]) -> Iterator[Any]:
    """The page, opened from the disk; at the end, nothing was asked of a network and no script failed."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 1000})
    opened.set_default_timeout(60_000)
    asked: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(saved[1].as_uri())
    yield opened
    opened.close()
    assert not errors
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def pointed_at(page: Any, index: int, row: int, column: int, grid: tuple[int, int]) -> dict[str, str]:
    """What the pointer's box shows in the middle of a cell."""
    over = page.locator(".over").nth(index)
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    page.mouse.move(
        box["x"] + (column + 0.5) * box["width"] / grid[1], box["y"] + (row + 0.5) * box["height"] / grid[0]
    )
    lines = page.locator("#tip").text_content().split("\n")
    return {name.strip(): value.strip() for name, value in (re.split(r"\s{2,}", line) for line in lines)}


def test_what_the_pointer_shows_is_what_the_file_holds(page: Any, saved: tuple[Heatmap, Path]) -> None:
    one, (rows, columns) = saved[0], saved[0].grid
    for index, row, column in [(0, 0, 0), (1, 0, columns - 1), (2, rows - 1, 1), (5, rows - 1, columns - 1), (3, 2, 1)]:
        shown = pointed_at(page, index, row, column, one.grid)
        found = heatmap.cell(one, index, row, column)
        assert (shown["index"], shown["row, column"]) == (str(found["index"]), f"{row}, {column}")
        values = {NAMES.get(name, name): value for name, value in shown.items() if name not in ("index", "row, column")}
        assert set(values) == set(found) - {"index", "row", "column", "order", "logprob_behaviour"}
        for name, value in values.items():
            assert float(value) == pytest.approx(found[name], rel=1e-4), name


def pixel(page: Any, index: int, t: int) -> list[int]:
    """Red, green, blue and opacity of a cell of the drawn map."""
    script = (
        "([index, t]) => { const c = document.querySelectorAll('.over canvas')[index]; return "
        "[...c.getContext('2d').getImageData(t % c.width, Math.floor(t / c.width), 1, 1).data]; }"
    )
    return page.evaluate(script, [index, t])


def test_the_map_the_opacity_and_the_step_change_what_is_drawn(
    page: Any, saved: tuple[Heatmap, Path], shots: Path
) -> None:
    from t2i_gcpo.heatmap.paint import colormap

    one = saved[0]
    assert page.locator("#map").input_value() == "advantage"
    assert page.locator("#map option").all_text_contents() == list(one.maps())
    page.select_option("#map", "weight")
    assert page.locator("#what").text_content() == one.title("weight")
    page.locator("#opacity").fill("100")
    share = min(1.0, float(one.weights[0, 3]) / one.end("weight"))
    expected = colormap(False)[round(share * 255)]
    drawn = pixel(page, 0, 3)
    assert drawn[3] == 255 and max(abs(int(a) - int(b)) for a, b in zip(drawn, expected, strict=False)) <= 4
    page.locator("#step").fill("2")  # tokens 0, 1, 2 in raster order
    assert pixel(page, 0, 2)[3] == 255 and pixel(page, 0, 3)[3] == 0
    page.locator("#opacity").fill("0")
    assert pixel(page, 0, 2)[3] == 0
    page.locator("#opacity").fill("85")
    page.locator("#play").click()
    page.wait_for_function("document.getElementById('step').value === document.getElementById('step').max")
    assert pixel(page, 0, 15)[3] > 0
    pointed_at(page, 0, 1, 2, one.grid)
    page.screenshot(path=str(shots / "heatmap_page.png"))


def test_a_page_of_more_than_a_hundred_tokens_opens_whole(new_page: Callable[..., Any], tmp_path: Path) -> None:
    from test_heatmap import scored_on

    result, targets = scored_on((12, 13))
    write(Heatmap.of(result, targets), tmp_path, "large")
    opened = new_page((tmp_path / "large.html").as_uri())
    assert opened.locator("#at").text_content() == "155 of 155"
    opened.select_option("#map", "weight")
    for t in (0, 101, 155):
        assert pixel(opened, 0, t)[3] > 0, f"token {t} is bare"
    assert opened.locator("#step").input_value() == "155"
