"""A browser with the page open, and the server that it talks to."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.support.browser import open_browser, require_chromium
from tests.support.page_server import PageServer, serve

TIMEOUT_MS = 10_000

OpenPage = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all tests; each page has a profile of its own."""
    async with open_browser(require_chromium()) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[PageServer]:
    """A server without conversations, whose answers the test speaks."""
    async with serve(PageServer()) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser, server: PageServer) -> AsyncIterator[OpenPage]:
    """Open the page in a new profile, with Playwright's context options; no script of it may fail or be refused."""
    faults: list[str] = []

    async def opened(path: str = "/", **options: Any) -> Page:
        context = await stack.enter_async_context(await browser.new_context(**options))
        context.set_default_timeout(TIMEOUT_MS)
        page = await context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.extend([said.text] * ("Content Security Policy" in said.text)))
        await page.goto(server.url + path)
        return page

    async with AsyncExitStack() as stack:
        yield opened
        server.drop()
    if faults:
        pytest.fail("the page had errors:\n" + "\n".join(faults))


@pytest_asyncio.fixture(loop_scope="session")
async def page(open_page: OpenPage) -> Page:
    """The page on a desk."""
    return await open_page()
