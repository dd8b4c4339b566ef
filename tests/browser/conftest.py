"""Chromium, and a chat page in it that loads nothing from elsewhere and logs no error."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.chatpage import ChatPage
from tests.journeys.conftest import own_server, start_server

__all__ = ["own_server", "start_server"]

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip

OpenPage = Callable[..., ChatPage]


# One browser per module: playwright's synchronous API keeps a running loop in the thread, which the
# asynchronous tests of other modules would meet.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of the system."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is not installed, and in CI the page must be driven")
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open the chat page of a server; `beside` opens it in another tab of that page's user."""
    contexts = []
    pages: list[ChatPage] = []

    def open_page(url: str, *, config: str = "", beside: Page | None = None) -> ChatPage:
        context = beside.context if beside else browser.new_context()
        if not beside:
            contexts.append(context)
        page = ChatPage(context.new_page(), url, config)
        pages.append(page)
        return page

    yield open_page
    troubles = [trouble for page in pages for trouble in page.troubles]
    for context in contexts:
        context.close()
    assert troubles == []
