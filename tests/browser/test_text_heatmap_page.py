"""The text heatmap's HTML page in a real browser: numbers, keyboard, a phone's width, and the switch of divergence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2i_gcpo.text.heatmap import Recipe, TextHeatmap, describe
from t2i_gcpo.text.heatmap_files import save
from t2i_gcpo.text.models import load

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "What is 37+48?"}]
COMPLETIONS = ("37+48=85. The answer is 85.", "37+48=75. The answer is 75.")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[TextHeatmap], Path]:
    model, tokenizer = load("text-mini")
    ids = [tokenizer(text)["input_ids"] for text in COMPLETIONS]
    drawn = describe(model, tokenizer, QUESTION, ids, scores=[1.0, 0.0])
    folder = tmp_path_factory.mktemp("text")
    return drawn, save(drawn, folder, name="heatmap", title="What is 37+48?", recipe=Recipe())[0]


def number(page: Any, name: str) -> float:
    text = page.locator("#numbers span", has_text=name).first.text_content()
    return float(text.removeprefix(name).strip())


def test_pointing_at_a_token_shows_its_numbers(
    new_page: Callable[..., Any], saved: tuple[list[TextHeatmap], Path], shots: Path
) -> None:
    items, path = saved
    page = new_page(path.as_uri())
    tokens = page.locator(".tokens").nth(1).locator("button")
    assert tokens.count() == len(items[1].tokens)
    tokens.nth(6).hover()
    assert number(page, "log p(· | prompt)") == pytest.approx(items[1].logprob_positive[6], rel=1e-3)
    assert number(page, "log p(· | negative)") == pytest.approx(items[1].logprob_negative[6], rel=1e-3)
    assert number(page, "weight") == pytest.approx(items[1].weights["kl"][6], rel=1e-3)
    page.locator("#divergence").select_option("exact_kl")
    assert number(page, "weight") == pytest.approx(items[1].weights["exact_kl"][6], rel=1e-3)
    assert number(page, "exact_kl") == pytest.approx(items[1].divergences["exact_kl"][6], rel=1e-3)
    assert number(page, "advantage") == pytest.approx(items[1].weights["exact_kl"][6] * items[1].advantage, rel=1e-3)
    for text in (items[0].prompt, items[0].negative_prompt):
        assert text in page.locator("dd").all_text_contents()
    page.screenshot(path=shots / "text_heatmap.png", full_page=True)


def test_the_colours_have_the_advantages_sign(
    new_page: Callable[..., Any], saved: tuple[list[TextHeatmap], Path]
) -> None:
    page = new_page(saved[1].as_uri())
    for row, positive in ((0, True), (1, False)):
        heaviest = max(range(8), key=lambda t: saved[0][row].weights["kl"][t])
        color = (
            page.locator(".tokens")
            .nth(row)
            .locator("button")
            .nth(heaviest)
            .evaluate("b => getComputedStyle(b).backgroundColor")
        )
        red, _, blue = (int(part) for part in color[4:-1].split(","))
        assert (red > blue) == positive


def test_the_keyboard_and_a_phone(
    new_page: Callable[..., Any], saved: tuple[list[TextHeatmap], Path], shots: Path
) -> None:
    page = new_page(saved[1].as_uri(), width=360, height=740)
    first = page.locator(".tokens").first.locator("button").first
    first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#numbers span", has_text="index").text_content().split()[1] == "3"
    page.keyboard.press("End")
    assert number(page, "index") == len(saved[0][0].tokens) - 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing sticks out"
    page.screenshot(path=shots / "text_heatmap_phone.png", full_page=True)


def brightness(page: Any, selector: str, name: str) -> float:
    """The mean of a colour's red, green and blue, as the browser computes it."""
    color = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{name}")
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")) / 3


def test_a_finger_on_a_dark_phone(
    new_page: Callable[..., Any], saved: tuple[list[TextHeatmap], Path], shots: Path
) -> None:
    items, path = saved
    page = new_page(path.as_uri(), width=400, height=860, scheme="dark", touch=True)
    page.locator(".tokens").nth(1).locator("button").nth(6).tap()
    assert number(page, "weight") == pytest.approx(items[1].weights["kl"][6], rel=1e-3)
    page.locator("#map").select_option("weight")
    page.locator("#divergence").select_option("js")
    assert number(page, "weight") == pytest.approx(items[1].weights["js"][6], rel=1e-3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400, "nothing sticks out"
    assert brightness(page, "body", "backgroundColor") < 60 < 180 < brightness(page, "body", "color")
    for token in page.locator(".tokens button").all():
        colors = [token.evaluate(f"b => getComputedStyle(b).{name}") for name in ("color", "backgroundColor")]
        text, pill = (
            sum(w * int(c) for w, c in zip((0.299, 0.587, 0.114), color[4:-1].split(","), strict=True))
            for color in colors
        )
        assert abs(text - pill) > 90, "the text of a pill can be read on its colour"
    page.screenshot(path=shots / "text_heatmap_dark_phone.png", full_page=True)
    light = new_page(path.as_uri())
    assert brightness(light, "body", "color") < 60 < 180 < brightness(light, "body", "backgroundColor")
