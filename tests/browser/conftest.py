"""A headless Chromium for the tests of pages; skipped where Playwright or Chromium is not installed.

T2I_GCPO_SCREENSHOTS names a folder that keeps the screenshots.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
#: Milliseconds for what a page shows in the end, also on a machine with other work.
PATIENCE = 120_000


@pytest.fixture(scope="module")  # two of Playwright at once do not work in one thread
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A page, and what must not happen on it: requests to other machines, errors of its scripts."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.outside: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self._note(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _note(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "file:")):
            self.outside.append(url)


@pytest.fixture
def new_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages, each a browser session of its own.

    At the end, nothing may have left the machine, and no script may have failed.
    """
    opened: list[tuple[Watched, Any]] = []

    def open_page(url: str, *, width: int = 1280, height: int = 900, scheme: str = "light", touch: bool = False) -> Any:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch
        )
        watched = Watched(context.new_page())
        opened.append((watched, context))
        watched.page.goto(url)
        return watched.page

    yield open_page
    for watched, context in opened:
        context.close()
        assert watched.outside == [] and watched.errors == []


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("T2I_GCPO_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
