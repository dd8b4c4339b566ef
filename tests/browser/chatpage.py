"""The chat page as a test drives it: by what a user sees and does."""

import json
import re
from urllib.parse import urlencode, urlsplit

from playwright.sync_api import ConsoleMessage, Locator, Page, Request, expect

TIMEOUT_MS = 20_000
REGIONS = ["North", "South", "East"] * 4
SALES = "region,revenue\n" + "".join(f"{name},{100 + i}\n" for i, name in enumerate(REGIONS))


class ChatPage:
    """One open chat page; `troubles` are script errors, broken security policies and foreign requests."""

    def __init__(self, page: Page, url: str, config: str = "") -> None:
        self.page = page
        self.origin = url
        self.troubles: list[str] = []
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        page.on("console", self._logged)
        page.on("request", self._requested)
        page.goto(f"{url}/?{urlencode({'config': config})}" if config else f"{url}/")

    def _logged(self, message: ConsoleMessage) -> None:
        # A refused request is logged by the browser itself; the page tells it in words of its own.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.troubles.append(f"{message.type}: {message.text}")

    def _requested(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https") and not request.url.startswith(f"{self.origin}/"):
            self.troubles.append(f"foreign: {request.url}")

    # --- parts --------------------------------------------------------------------------------------

    @property
    def turns(self) -> Locator:
        return self.page.locator("article.turn")

    @property
    def last(self) -> Locator:
        return self.turns.last

    @property
    def answer(self) -> Locator:
        return self.page.locator(".answer:visible").last

    @property
    def connection(self) -> Locator:
        return self.page.locator("#connection")

    @property
    def message(self) -> Locator:
        return self.page.get_by_label("Message", exact=True)

    # --- acts ---------------------------------------------------------------------------------------

    def until_live(self) -> "ChatPage":
        """Wait until the stream is open."""
        expect(self.connection).to_have_attribute("data-phase", "live", timeout=60_000)
        return self

    def say(self, text: str) -> None:
        """Write a message and press Enter."""
        self.message.fill(text)
        self.message.press("Enter")

    def attach(self, name: str, content: str, mime: str = "text/csv") -> None:
        """Choose a file."""
        file = {"name": name, "mimeType": mime, "buffer": content.encode()}
        self.page.locator("#picker").set_input_files(files=[file])

    def until_walking(self, delta: int = 40) -> None:
        """Wait until the answer shows the delta of this number."""
        expect(self.answer).to_contain_text(f"[{delta}]", timeout=TIMEOUT_MS)

    def until(self, status: str, timeout: float = 60_000) -> None:
        """Wait until the last turn has this status."""
        expect(self.last).to_have_attribute("data-status", status, timeout=timeout)

    def answer_text(self) -> str:
        """Return the answer as it is shown."""
        return self.answer.inner_text()


def numbers_in(text: str) -> list[int]:
    """Return the delta numbers that a walking answer shows."""
    return [int(number) for number in re.findall(r"\[(\d+)\]", text)]


def is_whole(text: str, last: int) -> bool:
    """Tell whether no delta of a walking answer is missing, and none is there twice."""
    numbers = numbers_in(text)
    return bool(numbers) and numbers == list(range(numbers[0], last + 1))


def walking(deltas: int, pace_ms: int = 15) -> str:
    """A config that makes the demo bundle number its answer's deltas."""
    return json.dumps({"pace_ms": pace_ms, "deltas": deltas})
