"""Clients that do not read: the server's memory stays bounded, and they get every character when they do."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.clients import ChatClient, SseEvent, text_of
from tests.faults.stuck import SLOW_READERS, SlowReader
from tests.faults.wholeness import PATIENT_SERVER, TELLING_ALLOCATOR
from tests.servers import ServerProcess
from tests.waiting import aeventually

MIB = 1024 * 1024
READERS = 6
MARKER = "thinking"
"""Not answer, which comes once more, as a whole, in `chat_complete`."""
DELTAS, SIZE = 1200, 10_000
TURN_MIB = DELTAS * SIZE / MIB
"""Some 11 MiB: more than the log of a session holds, so that what was not read comes from the archive too."""
BOUND_MIB = READERS * TURN_MIB / 2
"""Far above what six peers may hold (256 KiB each, and as much in their transports), far below what waits."""


@pytest.fixture(scope="module", params=["uvicorn", "daphne"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    env = {
        "BUNDLES": "script=tests.contract.bundles.Script",
        "DEFAULT_BUNDLE": "script",
        "MESSAGE_RATE": "",
        **PATIENT_SERVER,
        **TELLING_ALLOCATOR,
    }
    server = ServerProcess(tmp_path_factory.mktemp("slow"), server=request.param, env=env).start()
    yield server
    server.stop()
    assert "Traceback" not in server.output()


async def at_rest_mib(server: ServerProcess) -> float:
    """Return the resident size when nothing moves any more: what was said is where it waits."""
    sizes = [0.0]
    while len(sizes) < 6 or max(sizes[-4:]) - min(sizes[-4:]) > 1:
        await asyncio.sleep(0.25)
        sizes.append(server.rss_mib)
    return sizes[-1]


async def streams(server: ServerProcess) -> int:
    async with httpx.AsyncClient() as http:
        return int((await http.get(f"{server.url}/health", timeout=30)).json()["streams"])


async def play(server: ServerProcess, client: ChatClient, stream: Any) -> tuple[str, list[SseEvent]]:
    """Let a turn run while the client reads, until it is recorded; return its id and its events."""
    ack = await client.send("go", payload=[{"text": "word", "times": DELTAS, "size": SIZE, "marker": MARKER}])
    events = await stream.until_idle(timeout=120)
    epoch, seq = str(events[-1].id).split("-")
    last = f"SELECT 1 FROM recorder_recordedenvelope WHERE epoch = {epoch} AND seq = {seq}"
    await aeventually(lambda: server.query(last), timeout=60, what="the last row of the turn")
    return ack["turn_id"], events


@asynccontextmanager
async def opened(kind: str, server: ServerProcess, session_id: str) -> AsyncIterator[list[SlowReader]]:
    readers = [SLOW_READERS[kind](server.url, session_id) for _ in range(READERS)]
    for reader in readers:
        await reader.open()
    try:
        yield readers
    finally:
        for reader in readers:
            await reader.close()


async def trickle(reader: SlowReader, over: asyncio.Event) -> None:
    """Read some KiB a second, for as long as the turn runs."""
    while not over.is_set():
        await reader.take()
        await asyncio.sleep(0.25)


async def recorded(server: ServerProcess, turn_id: str) -> list[SseEvent]:
    printed = await asyncio.to_thread(
        server.manage, "replay", "--turn", turn_id, "--speed", "0", "--to", "jsonl"
    )
    return [SseEvent(row["event"], row["data"]) for row in map(json.loads, filter(None, printed.split("\n")))]


@pytest.mark.parametrize("kind", list(SLOW_READERS))
async def test_readers_that_do_not_read_cost_bounded_memory_and_miss_no_text(
    server: ServerProcess, kind: str
) -> None:
    async with ChatClient(server.url) as client, client.stream() as stream:
        # The log of the session, the recorder's buffers and the allocator reach their size before.
        await play(server, client, stream)
        before = server.rss_mib
        async with opened(kind, server, str(client.session_id)) as readers:
            over = asyncio.Event()
            trickling = asyncio.create_task(trickle(readers[0], over))
            turn_id, fast = await play(server, client, stream)
            during = await at_rest_mib(server)
            over.set()
            await trickling
            seen = [await reader.take_to_the_end() for reader in readers]
            assert await streams(server) == READERS + 1
        await aeventually(lambda: _only_one(server), timeout=30, what="the end of the slow streams")
        after = server.rss_mib
    whole = text_of(fast, MARKER)
    assert len(whole) >= DELTAS * SIZE
    for events in seen:
        assert text_of(events, MARKER) == whole
        positions = [tuple(map(int, str(event.id).split("-"))) for event in events if event.id]
        assert positions == sorted(set(positions))
        assert any(event.data.get("extra", {}).get("merged", 0) > 1 for event in events)
    assert text_of(await recorded(server, turn_id), MARKER) == whole
    assert during - before < BOUND_MIB, f"{during - before:.0f} MiB while {READERS * TURN_MIB:.0f} wait"
    assert after - before < BOUND_MIB, f"{after - before:.0f} MiB are left of {READERS} readers"


async def _only_one(server: ServerProcess) -> bool:
    return await streams(server) == 1
