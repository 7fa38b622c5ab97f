"""`t2i-gcpo demo` as a person meets it: the command, then each tab in a headless Chromium."""

from __future__ import annotations

import os
import re
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from t2i_gcpo import generators
from t2i_gcpo.demo import free_port
from t2i_gcpo.generators import deltas

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

#: Milliseconds that an answer may take, and several steps of a live training, on a machine that does other things too.
ANSWER, TRAINING = 300_000, 900_000

TEXT = "a photo of a star above a circle"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """janus-mini with a little noise on its weights: another checkpoint, which draws other images."""
    base: Any = generators.load("janus-mini")
    rng = torch.Generator().manual_seed(0)
    noise = {
        name: (0.02 * p.detach().std() * torch.randn(p.shape, generator=rng)).half()
        for name, p in base.policy.named_parameters()
        if p.ndim > 1
    }
    folder = tmp_path_factory.mktemp("tuned")
    return deltas.save(folder, noise, base="janus-mini", base_folder=base.base.folder, about={})


@pytest.fixture(scope="module")
def demo(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running demo, of two checkpoints; its runs go to a folder of their own.

    Its environment names a proxy, which nothing may be sent to.
    """
    runs = tmp_path_factory.mktemp("runs")
    options = ("--checkpoint", "base=janus-mini", "--checkpoint", f"tuned={tuned}", "--runs", str(runs))
    with recording_proxy() as (proxy, asked), serving(*options, env=proxy) as url:
        yield url
        assert asked == []


@contextmanager
def recording_proxy() -> Iterator[tuple[dict[str, str], list[bytes]]]:
    """The environment of a program behind a proxy on this machine, and what the proxy was asked for."""
    asked: list[bytes] = []

    class Proxy(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        names = ("http_proxy", "https_proxy", "all_proxy")
        proxies = {name: address for low in names for name in (low, low.upper())}
        yield {**proxies, "no_proxy": "", "NO_PROXY": ""}, asked
        server.shutdown()


@contextmanager
def serving(*options: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """`t2i-gcpo demo OPTIONS` as long as the block lasts."""
    command = [sys.executable, "-m", "t2i_gcpo.cli", "demo", "--port", str(free_port("127.0.0.1", 18860)), *options]
    start = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        print(f"ready after {time.monotonic() - start:.1f} s")
        try:
            yield found[0]
        finally:  # a test that fails does not wait for the server for ever
            server.terminate()


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def panel(page: Any) -> Any:
    return page.get_by_role("tabpanel").filter(visible=True)


def status(page: Any, name: str) -> Any:
    return page.locator(f"#t2i-status-{name}")


def says(page: Any, name: str, text: str | re.Pattern[str], timeout: int = ANSWER) -> None:
    from playwright.sync_api import expect

    expect(status(page, name)).to_contain_text(text, timeout=timeout)


def toast(page: Any, text: str) -> None:
    """An error is shown, as a sentence, and is closed."""
    from playwright.sync_api import expect

    found = page.get_by_test_id("toast-body")
    expect(found).to_contain_text(text, timeout=ANSWER)
    page.get_by_test_id("toast-close").click()
    expect(found).to_have_count(0)


def pictures(page: Any) -> list[str]:
    return [picture.get_attribute("src") for picture in panel(page).locator(".t2i-pixels .gallery-item img").all()]


def covered(page: Any) -> list[str]:
    """The captions of the tab's pictures that do not stand below their picture."""
    return page.evaluate(  # type: ignore[no-any-return]
        """() => [...document.querySelectorAll('.gallery-item')].filter(item => {
            const caption = item.querySelector('.caption-label'), image = item.querySelector('img');
            return item.offsetParent && caption && image
                && caption.getBoundingClientRect().top < image.getBoundingClientRect().bottom - 1;
        }).map(item => item.innerText)"""
    )


def test_compare(demo: str, new_page: Callable[..., Any], shots: Path) -> None:
    page = new_page(demo, width=1440)
    start = time.monotonic()
    page.get_by_role("button", name="Generate").click()
    panel(page).locator(".t2i-pixels .gallery-item img").first.wait_for()
    print(f"first images after {time.monotonic() - start:.1f} s")
    says(page, "compare", "done.")
    assert len(pictures(page)) == 8
    assert panel(page).get_by_text("star above circle", exact=True).count() == 2  # a clause's row below each gallery
    assert covered(page) == []
    rows = panel(page).locator("#t2i-origins").get_by_role("row").all_inner_texts()
    assert [row.split("\t")[:2] for row in rows[1:]] == [["base", "not tuned here"], ["tuned", "not known"]]
    left, right = (page.evaluate(f"document.querySelector('.gradio-container').getBoundingClientRect().{side}")
                   for side in ("left", "right"))  # fmt: skip
    assert abs(left - (1440 - right)) <= 1 and left > 0, "the page is in the middle"
    panel(page).locator(".t2i-pixels .gallery-item").nth(2).click()
    page.get_by_text("base | tuned, image 3 of 4").wait_for()
    page.screenshot(path=shots / "compare.png", full_page=True)


def many(page: Any, prompts: int) -> None:
    """Run two checkpoints over some prompts."""
    set_slider(page, "Prompts", prompts)
    page.get_by_role("button", name="Run over the prompts").click()
    says(page, "many", f"{prompts} of {prompts} prompts done.")


def test_many_prompts(demo: str, new_page: Callable[..., Any], shots: Path) -> None:
    """Paired counts, then the prompts on which the two differ: image and map beside one another, reasons below."""
    from playwright.sync_api import expect

    page = new_page(demo)
    many(page, 12)
    counts = panel(page).locator("#t2i-counts")
    both, left, right, neither = (int(cell) for cell in counts.get_by_role("cell").all_inner_texts()[:4])
    assert both + left + right + neither == 12
    expect(counts).to_contain_text("tuned less base")
    page.get_by_role("button", name="Show where they differ").click()
    pairs = panel(page).locator("#t2i-differences .t2i-pair")
    expect(pairs).to_have_count(left + right)
    assert left + right, "the noise on its weights makes the tuned one differ"
    assert pairs.locator("img").count() == 4 * (left + right)
    expect(pairs.first.locator("figcaption").filter(has_text="✗")).to_contain_text("in the image: ")
    boxes = [pairs.first.locator(part).first.bounding_box() for part in (".t2i-images", "figcaption")]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]
    page.screenshot(path=shots / "many_prompts.png", full_page=True)


def test_blind_vote(demo: str, new_page: Callable[..., Any], shots: Path) -> None:
    page = new_page(demo)
    page.get_by_label("Blind").check()
    page.get_by_role("button", name="Generate").click()
    says(page, "compare", "hidden until you have voted")
    labels = panel(page).locator(".t2i-pixels [data-testid=block-label]")
    assert [text.strip() for text in labels.all_inner_texts()[:2]] == ["A", "B"]
    assert panel(page).locator(".t2i-table:not(#t2i-origins .t2i-table)").count() == 0
    page.get_by_role("button", name="Vote").click()
    toast(page, "Choose A, B or")
    page.screenshot(path=shots / "blind.png", full_page=True)
    page.get_by_role("radio", name="B", exact=True).check()
    page.get_by_role("button", name="Vote").click()
    says(page, "compare", "You voted for B")
    shown = [text.strip() for text in labels.all_inner_texts()[:2]]
    assert sorted(text[3:] for text in shown) == ["base", "tuned"] and shown[0][:3] == "A: "
    winner = shown[1][3:]
    row = panel(page).locator("#t2i-votes").get_by_role("row").filter(has_text=re.compile(f"^{winner}"))
    assert row.get_by_role("cell").all_inner_texts() == [winner, "1", "1"]


def test_bad_prompts(demo: str, new_page: Callable[..., Any], shots: Path) -> None:
    page = new_page(demo)
    for text, sentence in (
        ("", "The prompt is empty"),
        ("a photo of a dog", "does not know 'dog'"),
        ("a photo of a cirle", "(nearest: circle, circles)"),
        ("x" * 201, "at most 200"),
    ):
        panel(page).get_by_label("Prompt", exact=True).fill(text)
        page.get_by_role("button", name="Generate").click()
        toast(page, sentence)
    ask(page, "a photo of a cat")
    page.get_by_test_id("toast-text").wait_for()
    page.screenshot(path=shots / "bad_prompt.png")
    toast(page, "does not know 'cat'")


def ask(page: Any, text: str) -> None:
    """Ask the tab Inspect for a group."""
    from playwright.sync_api import expect

    tab(page, "Inspect")
    prompt = panel(page).get_by_label("Prompt", exact=True)
    expect(prompt).to_have_value(TEXT)  # the tab's fields are there
    prompt.fill(text)
    page.get_by_role("button", name="Sample a group").click()


def sample(page: Any, text: str = TEXT) -> None:
    ask(page, text)
    says(page, "inspect", f"“{text}” by base")


def pick(page: Any, image: int) -> None:
    """Click an image of the group until its maps are there: the gallery loses a click while it takes new pictures."""
    from playwright.sync_api import TimeoutError as Late

    panel(page).get_by_text(re.compile(r"GCPO, image \d")).wait_for()
    for _ in range(6):
        panel(page).locator("#t2i-group .gallery-item").nth(image - 1).click()
        try:
            return page.get_by_text(f"GCPO, image {image}").wait_for(timeout=20_000)
        except Late:
            page.keyboard.press("Escape")
    raise AssertionError(f"the maps of image {image} were not shown")


def choose(page: Any, label: str, option: str) -> None:
    panel(page).get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def click_cell(page: Any, row: int, column: int) -> None:
    """Click a cell of the 12 x 12 map."""
    picture = page.locator("#t2i-gcpo img")
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * (column + 0.5) / 12, "y": box["height"] * (row + 0.5) / 12})
    panel(page).get_by_text(f"token {12 * row + column}: row {row}, column {column}").wait_for()


def uncovered(page: Any, name: str) -> bool:
    """Whether label and download icon of a token map stand above its first row, and its last row is not cut off."""
    block = page.locator(name)
    picture, whole = block.locator("img").bounding_box(), block.bounding_box()
    above = [block.locator(part).bounding_box() for part in ("[data-testid=block-label]", ".icon-button-wrapper")]
    bottom = picture["y"] + picture["height"]
    return all(one["y"] + one["height"] <= picture["y"] for one in above) and bottom <= whole["y"] + whole["height"]


def test_inspect(demo: str, new_page: Callable[..., Any], shots: Path) -> None:
    page = new_page(demo)
    sample(page)
    pick(page, 2)
    assert uncovered(page, "#t2i-gcpo") and uncovered(page, "#t2i-grpo")
    start = time.monotonic()
    click_cell(page, 3, 7)
    print(f"numbers of a cell after {time.monotonic() - start:.2f} s")
    page.screenshot(path=shots / "inspect.png", full_page=True)
    start = time.monotonic()
    choose(page, "Divergence", "exact_kl")
    panel(page).get_by_text("contrast exact_kl, normalised by rank").wait_for()
    print(f"another divergence after {time.monotonic() - start:.2f} s")
    choose(page, "Normalisation", "softmax")
    panel(page).get_by_text("contrast exact_kl, normalised by softmax").wait_for()
    choose(page, "Map", "entropy")
    panel(page).get_by_text("entropy of the token's distribution").wait_for()
    assert not page.locator("#t2i-grpo").is_visible()
    choose(page, "Map", "weight")
    page.get_by_role("radio", name="the prompt without a part").check()
    panel(page).get_by_text("negative prompt: “a photo of a circle”").wait_for()
    page.get_by_role("radio", name="a negative prompt").check()
    page.get_by_role("button", name="Contrast", exact=True).click()
    toast(page, "The negative prompt is empty")
    panel(page).get_by_role("textbox", name="Negative prompt").fill("a photo of a blue star above a circle")
    page.get_by_role("button", name="Contrast", exact=True).click()
    panel(page).get_by_text("negative prompt: “a photo of a blue star above a circle”").wait_for()
    page.get_by_role("button", name="Export this picture").click()
    files = panel(page).locator(".file-preview")
    for ending in ("png", "npz", "html"):
        files.get_by_text(ending).first.wait_for()
    page.screenshot(path=shots / "inspect_part.png", full_page=True)


def set_slider(page: Any, label: str, value: int) -> None:
    panel(page).get_by_label(f"number input for {label}").fill(str(value))
    panel(page).get_by_label(f"number input for {label}").press("Enter")


def test_train_live_and_its_runs(demo: str, new_page: Callable[..., Any], shots: Path) -> None:
    page = new_page(demo)
    tab(page, "Train live")
    for label, value in (("Steps", 40), ("Prompts a step", 1), ("Images a prompt", 2)):
        set_slider(page, label, value)
    page.evaluate("""window.tallest = 0; new ResizeObserver(() => {
        window.tallest = Math.max(window.tallest, document.documentElement.scrollHeight) }).observe(document.body)""")
    page.get_by_role("button", name="Train", exact=True).click()
    says(page, "live", "loading the checkpoint")
    waiting = new_page(demo)
    waiting.get_by_role("button", name="Generate").click()
    says(waiting, "compare", re.compile("Queued behind a live training, (loading|GRPO|GCPO|control|step)"))
    words = status(waiting, "compare").locator(".prose").first
    shade = "one => { let o = 1; for (; one; one = one.parentElement) o *= getComputedStyle(one).opacity; return o }"
    assert words.evaluate(shade) == 1, "the answer is not faded"
    waiting.screenshot(path=shots / "queued.png")
    says(page, "live", "step 3 of 40", TRAINING)
    assert lines_of(page) == [3, 3, 3]  # GRPO, GCPO and the control in each of the three plots
    assert 0 < page.evaluate("window.tallest") < 10_000
    page.screenshot(path=shots / "live.png", full_page=True)
    panel(page).get_by_role("button", name="Stop").click()
    says(page, "live", re.compile(r"Stopped after \d+ of 40 steps"), TRAINING)
    assert len(pictures_of(page)) >= 4
    panel(page).get_by_text("after step 0, one scale for all").wait_for()
    page.screenshot(path=shots / "live_stopped.png", full_page=True)
    assert covered(page) == []
    says(waiting, "compare", "done.", TRAINING)
    tab(page, "Runs")  # knows the runs that began after the page was opened
    box = panel(page).get_by_label("Run folders")
    for name in ("grpo", "gcpo"):
        box.click()
        page.get_by_role("option", name=re.compile(f"{name}$")).click()
    says(page, "runs", re.compile(r"grpo.*of 40 steps.*gcpo|gcpo.*of 40 steps.*grpo"))
    assert lines_of(page) == [2]
    page.keyboard.press("Escape")
    panel(page).get_by_text(re.compile(r"gcpo, step [1-9]")).wait_for()
    set_slider(page, "Step", 0)
    panel(page).get_by_text("gcpo, step 0").wait_for()
    choose(page, "Pictures", "heatmap, fixed prompts")
    panel(page).get_by_text(re.compile(r"step [1-9]\d*: one scale for all")).wait_for()
    page.screenshot(path=shots / "runs.png", full_page=True)
    box.fill("/no/such/run")
    box.press("Enter")
    toast(page, "is no folder")
    dark = new_page(demo, scheme="dark")
    tab(dark, "Runs")
    panel(dark).get_by_label("Run folders").click()
    dark.get_by_role("option", name=re.compile("gcpo$")).click()
    says(dark, "runs", "of 40 steps")
    words = panel(dark).locator("svg.marks text").first
    light = words.evaluate("one => getComputedStyle(one).fill.match(/\\d+/g).slice(0, 3).every(part => part > 180)")
    assert light and panel(dark).locator("svg.marks rect[fill='white']").count() == 0
    dark.screenshot(path=shots / "runs_dark.png")


def prompts_of(frame: Any) -> list[str]:
    """The prompt and the negative prompt that a heatmap in the tab Text shows."""
    return list(frame.locator("section").first.locator("dd").all_text_contents())


def test_text(demo: str, new_page: Callable[..., Any], shots: Path) -> None:
    from playwright.sync_api import expect

    page = new_page(demo)
    tab(page, "Text")
    page.get_by_role("button", name="Sample answers").click()
    says(page, "text", re.compile(r"[0-4] of 4 answers are right"))
    frame = page.frame_locator("#t2i-text-frame")
    assert frame.locator("section").count() == 4
    prompt, negative = prompts_of(frame)
    assert "What is 37+48-19?" in prompt and "wrongly" not in prompt
    assert "What is 37+48-19?" in negative and "Answer the next question wrongly" in negative
    frame.locator(".tokens").first.locator("button").nth(2).hover()
    expect(frame.locator("#numbers")).to_contain_text("log p(· | negative)")
    frame.locator("#divergence").select_option("exact_kl")
    expect(frame.locator("#numbers")).to_contain_text("exact_kl")
    page.screenshot(path=shots / "text.png", full_page=True)
    choose(page, "Negative prompt", "empty")
    page.get_by_role("button", name="Sample answers").click()
    expect(frame.locator("section").first.locator("dd").nth(1)).not_to_contain_text("What is", timeout=ANSWER)
    page.get_by_role("button", name="Export this heatmap").click()
    for ending in ("png", "html"):
        panel(page).locator(".file-preview").get_by_text(ending).first.wait_for()
    question = panel(page).get_by_label("Question")
    before = question.input_value()
    page.get_by_role("button", name="Another question").click()
    expect(question).not_to_have_value(before)
    question.fill("")
    page.get_by_role("button", name="Sample answers").click()
    toast(page, "The question is empty")


def test_text_on_a_dark_phone(demo: str, new_page: Callable[..., Any], shots: Path) -> None:
    page = new_page(demo, width=400, height=860, scheme="dark", touch=True)
    tab(page, "Text")
    page.get_by_role("button", name="Sample answers").click()
    says(page, "text", re.compile(r"[0-4] of 4 answers are right"))
    page.frame_locator("#t2i-text-frame").locator(".tokens").first.locator("button").nth(1).tap()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 400
    page.screenshot(path=shots / "text_dark_phone.png", full_page=True)


def test_the_embedded_masked_generator(new_page: Callable[..., Any], shots: Path, tmp_path: Path) -> None:
    """The demo without options: the masked generator is inspected, with the order of its tokens, and trained."""
    from playwright.sync_api import expect

    with serving("--runs", str(tmp_path)) as url:
        page = new_page(url)
        tab(page, "Inspect")
        expect(panel(page).get_by_label("Prompt", exact=True)).to_have_value(TEXT)
        choose(page, "Checkpoint", "masked")
        page.get_by_role("button", name="Sample a group").click()
        says(page, "inspect", f"“{TEXT}” by masked")
        click_cell(page, 3, 7)
        page.screenshot(path=shots / "inspect_masked.png", full_page=True)
        choose(page, "Map", "order")
        panel(page).get_by_text("order: the sampling step that fixed the token").wait_for()
        click_cell(page, 5, 2)
        panel(page).get_by_text("fixed in sampling step").wait_for()
        page.screenshot(path=shots / "inspect_masked_order.png", full_page=True)
        tab(page, "Train live")
        choose(page, "Start from", "masked")
        page.get_by_role("checkbox", name="control: GCPO, shuffled").uncheck()  # two are enough here
        for label, value in (("Steps", 2), ("Prompts a step", 1), ("Images a prompt", 4)):
            set_slider(page, label, value)
        page.get_by_role("button", name="Train", exact=True).click()
        says(page, "live", "Done: 2 steps", TRAINING)
        page.screenshot(path=shots / "live_masked.png", full_page=True)


def lines_of(page: Any) -> list[int]:
    """How many coloured lines of more than one point each of the tab's plots has."""
    from playwright.sync_api import expect

    plots = panel(page).locator("svg.marks")
    expect(plots.first).to_be_visible()
    page.wait_for_timeout(1000)  # a redraw goes on after the data have come
    return [
        len({line.get_attribute("stroke") for line in plot.locator(".mark-line path[d*='L']").all()} - {None})
        for plot in plots.all()
    ]


def pictures_of(page: Any) -> list[str]:
    return [picture.get_attribute("src") for picture in panel(page).locator(".gallery-item img").all()]


def test_two_people_at_once(demo: str, new_page: Callable[..., Any]) -> None:
    one, two = new_page(demo), new_page(demo)
    for page, text in ((one, "a photo of a heart"), (two, "a photo of two rings")):
        ask(page, text)
    says(one, "inspect", "“a photo of a heart” by base")
    says(two, "inspect", "“a photo of two rings” by base")
    click_cell(one, 1, 1)
    choose(two, "Divergence", "js")
    panel(two).get_by_text("contrast js").first.wait_for()
    click_cell(two, 5, 5)
    assert panel(one).get_by_text("contrast kl").count() and not panel(one).get_by_text("contrast js").count()
    assert panel(one).get_by_text("token 13:").count() and not panel(one).get_by_text("token 65:").count()


TABS = ("Compare", "Inspect", "Train live", "Runs", "Text")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(demo: str, new_page: Callable[..., Any], shots: Path, scheme: str) -> None:
    page = new_page(demo, width=400, height=844, scheme=scheme)
    for name in reversed(TABS):  # each is on the page, not behind a menu, and opens
        tab(page, name)
        assert page.get_by_role("tab", name=name).get_attribute("aria-selected") == "true"
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 400, name
    many(page, 6)
    page.get_by_role("button", name="Show where they differ").click()
    page.get_by_role("button", name="Generate").click()
    says(page, "compare", "done.")
    page.get_by_text("base | tuned, image 1 of 4").wait_for()
    assert covered(page) == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 400
    page.screenshot(path=shots / f"phone_compare_{scheme}.png", full_page=True)
    if scheme == "light":
        sample(page)
        click_cell(page, 2, 2)
        assert uncovered(page, "#t2i-gcpo") and uncovered(page, "#t2i-grpo")
        page.screenshot(path=shots / "phone_inspect.png", full_page=True)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 400
