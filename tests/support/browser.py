"""A real browser for the tests of the page: found or skipped with a reason, one process for all tests."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """Return the path of a Chromium: HEADRACE_TEST_CHROMIUM, or the first that is installed."""
    named = os.environ.get("HEADRACE_TEST_CHROMIUM")
    if named:
        return named if Path(named).exists() else None
    return next(filter(None, map(shutil.which, NAMES)), None)


def require_chromium() -> str:
    """Return the path of a Chromium, or skip; fail instead where HEADRACE_TEST_REQUIRE_BROWSER=1."""
    found = find_chromium()
    if found:
        return found
    why = "no Chromium found: install one (apt-get install chromium) or name it in HEADRACE_TEST_CHROMIUM"
    if os.environ.get("HEADRACE_TEST_REQUIRE_BROWSER") == "1":
        pytest.fail(why)
    pytest.skip(why)


@asynccontextmanager
async def open_browser(path: str) -> AsyncIterator[Browser]:
    """Run a headless Chromium until the block is left."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()
