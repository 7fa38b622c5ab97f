"""The heatmap's HTML page in a real browser.

What the pointer shows is what the npz holds, whatever map, opacity or step is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2i_gcpo import heatmap, resolve
from t2i_gcpo.heatmap import Heatmap, noise
from t2i_gcpo.heatmap.files import write
from t2i_gcpo.heatmap.html import whole_percents

pytestmark = pytest.mark.slow

#: Name in the pointer's box -> name in `heatmap.cell`.
NAMES = {
    "rank of 16": "rank",
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
    return tip(page)


def tip(page: Any) -> dict[str, str]:
    """The numbers of the cell that is shown."""
    return dict(line.locator("span").all_text_contents() for line in page.locator("#tip div").all())


def test_what_the_pointer_shows_is_what_the_file_holds(page: Any, saved: tuple[Heatmap, Path]) -> None:
    one, (rows, columns) = saved[0], saved[0].grid
    for index, row, column in [(0, 0, 0), (1, 0, columns - 1), (2, rows - 1, 1), (5, rows - 1, columns - 1), (3, 2, 1)]:
        shown = pointed_at(page, index, row, column, one.grid)
        found = heatmap.cell(one, index, row, column)
        assert (shown["index"], shown["row, column"]) == (str(found["index"]), f"{row}, {column}")
        assert shown["below the floor"].startswith("yes") == found["below_floor"]
        others = ("index", "row, column", "below the floor")
        values = {NAMES.get(name, name): value for name, value in shown.items() if name not in others}
        assert set(values) == set(found) - {"index", "row", "column", "order", "logprob_behaviour", "below_floor"}
        for name, value in values.items():
            assert float(value) == pytest.approx(found[name], rel=1e-4), name


def pixel(page: Any, index: int, t: int) -> list[int]:
    """Red, green, blue and opacity of the first pixel of a cell of the drawn map; a stripe runs through it."""
    script = (
        "([index, t]) => { const c = document.querySelectorAll('.over canvas')[index]; const [x, y] = [t % columns, "
        "Math.floor(t / columns)]; return [...c.getContext('2d').getImageData(x * SIDE, y * SIDE, 1, 1).data]; }"
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


def test_the_arrow_keys_move_the_cell(new_page: Callable[..., Any], saved: tuple[Heatmap, Path]) -> None:
    one, path = saved
    opened = new_page(path.as_uri())
    opened.keyboard.press("Tab")
    while opened.evaluate("!document.activeElement.classList.contains('over')"):
        opened.keyboard.press("Tab")
    for key, row, column in (
        ("ArrowRight", 0, 1),
        ("ArrowDown", 1, 1),
        ("End", 1, 3),
        ("ArrowRight", 1, 3),
        ("Home", 1, 0),
    ):
        opened.keyboard.press(key)
        shown = tip(opened)
        assert shown["row, column"] == f"{row}, {column}", key
        assert float(shown["weight"]) == pytest.approx(heatmap.cell(one, 0, row, column)["weight"], rel=1e-4)
    opened.keyboard.press("Tab")  # the next image, at its first cell
    assert tip(opened)["row, column"] == "0, 0"
    assert float(tip(opened)["token"]) == heatmap.cell(one, 1, 0, 0)["token"]
    opened.keyboard.press("Escape")
    assert not opened.locator("#tip").is_visible()


def test_alternative_texts_have_the_numbers(new_page: Callable[..., Any], saved: tuple[Heatmap, Path]) -> None:
    one, path = saved
    opened = new_page(path.as_uri())
    over = opened.locator(".over").nth(1)
    assert over.get_attribute("aria-label") == f"image 2, {noise.describe(one, 'advantage', 1)}"
    opened.select_option("#map", "kl")
    assert over.get_attribute("aria-label") == f"image 2, {noise.describe(one, 'kl', 1)}"
    pictures = opened.locator(".pair > img")
    assert pictures.nth(1).get_attribute("alt") == f"image 2 of 6, a photo of a star, {whole_percents(one.notes()[1])}"
    assert opened.locator("h2").all_text_contents() == ["a photo of a star", "b"], "each prompt stands once"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1440])
def test_every_screen(chromium: Any, tmp_path: Path, shots: Path, width: int, scheme: str) -> None:
    """Nothing sticks out, a tap shows the numbers, and text is readable on its ground."""
    from test_heatmap import scored_on

    result, targets = scored_on((24, 24))
    write(Heatmap.of(result, targets, algorithm=resolve("gcpo", group_size=3)), tmp_path, "large")
    context = chromium.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, has_touch=width == 400, is_mobile=width == 400
    )
    opened = context.new_page()
    opened.goto((tmp_path / "large.html").as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    over = opened.locator(".over").nth(1)
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    place = {"x": 3.5 / 24 * box["width"], "y": 2.5 / 24 * box["height"]}
    (over.tap if width == 400 else over.hover)(position=place)
    assert tip(opened)["row, column"] == "2, 3"
    shown = opened.locator("#tip").bounding_box()
    assert shown["x"] >= 0 and shown["x"] + shown["width"] <= width and shown["y"] + shown["height"] <= 800
    if width == 400:
        assert over.bounding_box()["y"] + box["height"] <= shown["y"], "the numbers do not cover their map"
    ink, ground = (opened.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    bright = [sum(int(part) for part in text[4:-1].split(",")) / 3 for text in (ink, ground)]
    assert (bright[0] > bright[1]) == (scheme == "dark") and abs(bright[0] - bright[1]) > 150
    opened.screenshot(path=str(shots / f"heatmap_page_{width}_{scheme}.png"))
    context.close()


def test_cells_of_noise_are_hatched_in_the_page(new_page: Callable[..., Any], tmp_path: Path, shots: Path) -> None:
    from test_heatmap_noise import noisy

    one = noisy()
    write(one, tmp_path, "noisy")
    opened = new_page((tmp_path / "noisy.html").as_uri())
    painted = (
        "t => { const c = document.querySelector('.over canvas'); const x = t % columns, y = Math.floor(t / columns); "
        "const d = c.getContext('2d').getImageData(x * SIDE, y * SIDE, SIDE, SIDE).data; let n = 0; "
        "for (let k = 3; k < d.length; k += 4) n += d[k] > 0; return n / SIDE / SIDE; }"
    )
    assert opened.evaluate(painted, 2) == 1 and opened.evaluate(painted, 15) == pytest.approx(1 / 3)
    assert whole_percents(noise.words(one)) in opened.locator("#how").text_content()
    assert pointed_at(opened, 0, 3, 3, one.grid)["below the floor"] == "yes, under 0.0001"
    opened.screenshot(path=str(shots / "heatmap_page_noise.png"))
    opened.select_option("#map", "contrast")
    assert opened.evaluate(painted, 2) == 1
    # The same scale as the picture's: 3 is the end, and where it is logarithmic 2 is nearly as strong.
    assert opened.evaluate("map.end") == pytest.approx(one.scale("contrast").end, rel=1e-4)
    for value in (3.0, 2.0, 1e-5, -0.5):
        expected = float(np.clip(one.scale("contrast").share(np.array([value]))[0], -1, 1))
        assert opened.evaluate("share", value) == pytest.approx(expected, abs=1e-4)
