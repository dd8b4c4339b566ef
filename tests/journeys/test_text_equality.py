"""The same text for everyone: fast, slow, reconnecting and late clients, and the recorder."""

import asyncio
import json

from tests.clients import ChatClient, SseEvent, ends_turn, text_of
from tests.servers import ServerProcess
from tests.waiting import aeventually

DELTAS = 3000


async def read_fast(client: ChatClient, opened: asyncio.Event) -> list[SseEvent]:
    async with client.stream() as stream:
        opened.set()
        return await stream.until_idle(timeout=120)


async def read_slowly(client: ChatClient, opened: asyncio.Event, go: asyncio.Event) -> list[SseEvent]:
    """Open a stream and read nothing until the turn is over: the socket fills, the peer falls behind."""
    async with client.stream() as stream:
        opened.set()
        await go.wait()
        return await stream.until_idle(timeout=120)


async def read_reconnecting(client: ChatClient, opened: asyncio.Event, every: int) -> list[SseEvent]:
    """Drop the connection after every so many events and come back with the last id."""
    received: list[SseEvent] = []
    last: str | None = None
    while True:
        async with client.stream(last_event_id=last) as stream:
            opened.set()
            assert stream.received[0].data["resume"]["outcome"] in ("live", "replayed")
            for _ in range(every):
                event = await stream.next(timeout=60)
                received.append(event)
                if ends_turn(event):
                    return received
            last = stream.last_event_id


async def test_three_thousand_deltas_at_full_speed_reach_everyone_alike(server: ServerProcess) -> None:
    opened = [asyncio.Event() for _ in range(3)]
    go = asyncio.Event()
    async with (
        ChatClient(server.url) as client,
        ChatClient(server.url, receive_buffer_bytes=65536) as slow_client,
    ):
        async with client.stream():
            slow_client.session_id = client.session_id
            readers = [
                asyncio.create_task(read_fast(client, opened[0])),
                asyncio.create_task(read_slowly(slow_client, opened[1], go)),
                asyncio.create_task(read_reconnecting(client, opened[2], every=100)),
            ]
            await asyncio.gather(*(event.wait() for event in opened))
            ack = await client.send("many words " * 40, config={"pace_ms": 0, "deltas": DELTAS})
            fast = await readers[0]
            go.set()
            slow, reconnecting = await readers[1], await readers[2]
        start = f"{fast[0].id.split('-')[0]}-0" if fast[0].id else ""
        async with client.stream(last_event_id=start) as late_stream:
            late = await late_stream.until_idle(timeout=60)

        def recorded() -> list[SseEvent]:
            printed = server.manage("replay", "--turn", ack["turn_id"], "--speed", "0", "--to", "jsonl")
            rows = [json.loads(line) for line in printed.split("\n") if line]
            return [SseEvent(row["event"], row["data"]) for row in rows]

        await aeventually(lambda: asyncio.to_thread(lambda: ends_turn(recorded()[-1])), timeout=30)
        rows = await asyncio.to_thread(recorded)

    deltas = [e for e in fast if e.event == "chat_delta" and e.data["delta"]["marker"] == "answer"]
    assert len(deltas) >= DELTAS
    assert [e.data["delta"]["index"] for e in deltas] == list(range(len(deltas)))
    markers = sorted({e.data["delta"]["marker"] for e in fast if e.event == "chat_delta"})
    for marker in markers:
        whole = text_of(fast, marker)
        for name, events in {
            "slow": slow,
            "reconnecting": reconnecting,
            "late": late,
            "recorder": rows,
        }.items():
            assert text_of(events, marker) == whole, f"{name} differs in {marker}"
    assert [e.id for e in reconnecting] == [e.id for e in fast] == [e.id for e in late]
    assert len(rows) == len(fast)


async def test_a_reader_that_stops_reading_falls_back_to_the_history_and_misses_no_text(
    server: ServerProcess,
) -> None:
    """Enough for the socket's buffers to fill up: the rest waits in log and archive, not in memory."""
    opened, go = asyncio.Event(), asyncio.Event()
    async with (
        ChatClient(server.url) as client,
        ChatClient(server.url, receive_buffer_bytes=65536) as slow_client,
        client.stream() as stream,
    ):
        slow_client.session_id = client.session_id
        reader = asyncio.create_task(read_slowly(slow_client, opened, go))
        await opened.wait()
        await client.send("many words " * 40, config={"pace_ms": 0, "deltas": 20_000})
        fast = await stream.until_idle(timeout=120)
        go.set()
        slow = await reader
    assert text_of(slow) == text_of(fast)
    assert len(slow) < len(fast)
    assert any(event.data.get("extra", {}).get("merged", 0) > 1 for event in slow)
    positions = [tuple(map(int, event.id.split("-"))) for event in slow if event.id]
    assert positions == sorted(set(positions))
