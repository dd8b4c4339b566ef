"""A chatbot workflow goes on when PostgreSQL or Valkey was away: no line is missing, and it ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.faults.bundles import STEPS
from tests.fleet import Fleet

pytestmark = pytest.mark.xdist_group("workflows")

FLEET_ENV = {
    "BUNDLES": "count=tests.faults.bundles.Counting,steps=tests.faults.bundles.Stepping",
    "CHATBOT_BUNDLE": "steps",
}
WHOLE = [
    ("message", "Go on"),
    *(("log", f"Step {number}") for number in range(STEPS)),
    ("message", "All steps are done."),
]


class Workflow:
    """What a reader of a workflow was shown, and the name of the event that ended its stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.id = response.headers["X-Workflow-ID"]
        self.told: list[tuple[str, str]] = []
        self.end = ""
        self._lines = response.aiter_lines()

    async def until(self, count: int = 10**6) -> None:
        """Read so many items, or to the end."""
        async with asyncio.timeout(90):
            async for line in self._lines:
                if line.startswith("event: "):
                    self.end = line.removeprefix("event: ")
                elif line.startswith("data: ") and not self.end:
                    self._take(json.loads(line.removeprefix("data: ")))
                    if len(self.told) == count:
                        return

    def _take(self, item: dict[str, Any]) -> None:
        self.told.append((item["type"], item["item"]["message"]))


@asynccontextmanager
async def workflow(client: httpx.AsyncClient, **body: str) -> AsyncIterator[Workflow]:
    async with client.stream("POST", "/api/chatbot/start/stream", json=body) as response:
        assert response.status_code == 200, await response.aread()
        yield Workflow(response)


@asynccontextmanager
async def two_readers(fleet: Fleet) -> AsyncIterator[tuple[Workflow, Workflow]]:
    """One who started a workflow, and one at the other web process."""
    async with (
        httpx.AsyncClient(base_url=fleet.urls[0], timeout=60) as client,
        httpx.AsyncClient(base_url=fleet.urls[1], timeout=60) as other,
    ):
        await client.get("/profile")
        other.cookies = client.cookies
        async with workflow(client, prompt="Go on") as first, workflow(other, workflowId=first.id) as second:
            yield first, second


async def goes_on_after(fleet: Fleet, away: Any, back: Any, seconds: float) -> None:
    async with two_readers(fleet) as readers:
        for reader in readers:
            await reader.until(8)
        await asyncio.to_thread(away)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(back)
        for reader in readers:
            await reader.until()
            assert reader.told == WHOLE
            assert reader.end == "complete"


async def test_postgresql_is_away_for_eight_seconds(whole: Fleet) -> None:
    assert whole.postgres is not None
    await goes_on_after(whole, whole.postgres.cut, whole.postgres.restore, 8)


async def test_valkey_is_away_for_longer_than_a_call_waits(whole: Fleet) -> None:
    await goes_on_after(whole, whole.valkey.stop, whole.valkey.start, 12)
