"""What a restart costs: nothing after SIGTERM; after SIGKILL at most what was not flushed, and that is told."""

import asyncio
import json
import time

import httpx
import pytest

from tests.clients import ChatClient, SseEvent, ends_turn, text_of
from tests.journeys.conftest import StartServer
from tests.servers import ServerProcess
from tests.waiting import aeventually


async def start_long_turn(client: ChatClient, stream, deltas: int = 400) -> dict[str, str]:  # type: ignore[no-untyped-def]
    ack = await client.send("tell me a long story", config={"pace_ms": 5, "deltas": deltas})
    answers = 0

    def enough(event: SseEvent) -> bool:
        nonlocal answers
        answers += event.event == "chat_delta" and event.data["delta"]["marker"] == "answer"
        return answers >= 20

    await stream.until(enough)
    return ack


async def test_sigterm_in_mid_answer_loses_nothing(any_own_server: ServerProcess) -> None:
    async with ChatClient(any_own_server.url) as client:
        async with client.stream() as stream:
            ack = await start_long_turn(client, stream)
            any_own_server.terminate()
            tail = await stream.rest()
        assert tail[-1].event == "server_shutdown"
        assert tail[-1].data["reason"] == "draining"
        assert tail[-1].id is None
        assert tail[-1].retry == tail[-1].data["retry_after_ms"] >= 1000
        await asyncio.to_thread(any_own_server.wait)
        any_own_server.start()
        async with client.stream(last_event_id=stream.last_event_id) as again:
            assert again.received[0].data["resume"]["outcome"] == "replayed"
            assert again.received[0].data["resume"]["source"] == "archive"
            missed = await again.until_idle()
        fetched = await client.http.post(
            f"{any_own_server.url}/api/cb/conversations/default/default/{ack['conversation_id']}/fetch",
            headers={"User-Session-ID": client.session_id or ""},
        )
    assert missed[-1].data["data"]["completion"] == "success"
    assert text_of(stream.received) + text_of(missed) == fetched.json()["messages"][1]["content"]
    ids = [event.id for event in stream.received + missed if event.id and event.event != "ready"]
    assert len(ids) == len(set(ids))


async def test_a_turn_longer_than_the_grace_is_declared_interrupted(start_server: StartServer) -> None:
    server = start_server(env={"DRAIN_GRACE_SECONDS": "0.5"})
    async with ChatClient(server.url) as client:
        async with client.stream() as stream:
            ack = await start_long_turn(client, stream, deltas=20_000)
            server.terminate()
            await stream.rest()
        await asyncio.to_thread(server.wait)
        server.start()
        async with client.stream(last_event_id=stream.last_event_id) as again:
            assert again.received[0].data["resume"]["outcome"] == "replayed"
            missed = await again.until_idle()
        assert missed[-1].data["data"]["completion"] == "interrupted"
        error = next(event for event in missed if event.event == "chat_error")
        assert error.data["data"]["error_type"] == "turn_interrupted"
        fetched = await client.http.post(
            f"{server.url}/api/cb/conversations/default/default/{ack['conversation_id']}/fetch",
            headers={"User-Session-ID": client.session_id or ""},
        )
    assert fetched.json()["messages"][1]["content"] == text_of(stream.received) + text_of(missed)


async def test_sigkill_in_mid_answer_is_told_and_the_turn_declared(own_server: ServerProcess) -> None:
    async with ChatClient(own_server.url) as client:
        async with client.stream() as stream:
            ack = await start_long_turn(client, stream, deltas=4000)
            own_server.kill()
            with pytest.raises((httpx.HTTPError, TimeoutError)):
                await stream.rest()
        own_server.start()
        async with client.stream(last_event_id=stream.last_event_id) as again:
            assert again.received[0].data["resume"]["outcome"] == "reset"
            told = await again.until_idle()
        assert told[-1].data["data"]["completion"] == "interrupted"
        assert told[-1].data["conversation"]["turn_id"] == ack["turn_id"]
        assert [e.data["data"]["error_type"] for e in told if e.event == "chat_error"] == ["turn_interrupted"]
        rows = [
            json.loads(line)
            for line in own_server.manage(
                "replay", "--turn", ack["turn_id"], "--speed", "0", "--to", "jsonl"
            ).split("\n")
            if line
        ]
    kept = (
        {f"{row['epoch']}-{row['seq']}" for row in rows}
        if "epoch" in rows[0]
        else {row["id"] for row in rows}
    )
    missing = [event for event in stream.received if event.event != "ready" and event.id not in kept]
    if missing:
        span = stream.received[-1].data["ts"] - missing[0].data["ts"]
        assert span <= 1000, "more than a flush interval of rows is missing"


async def test_a_draining_server_refuses_new_work_and_says_so(start_server: StartServer) -> None:
    server = start_server(env={"DRAIN_GRACE_SECONDS": "8"})
    async with ChatClient(server.url) as client:
        async with client.stream() as stream:
            await start_long_turn(client, stream, deltas=600)
            server.terminate()
            await stream.rest()
        health = await client.http.get(f"{server.url}/health")
        refused_stream = await client.http.get(
            f"{server.url}/sse/stream", params={"stream_id": client.stream_id}
        )
        refused_chat = await client.post({"message": {"text": "now?"}})
        await asyncio.to_thread(server.wait)
    assert (health.status_code, health.json()["status"], health.json()["draining"]) == (503, "draining", True)
    for response in (refused_stream, refused_chat):
        assert response.status_code == 503
        assert response.json()["status"] == "draining"
        assert int(response.headers["retry-after"]) >= 1


async def test_an_accepted_turn_that_had_not_started_runs_after_the_restart_once(
    start_server: StartServer,
) -> None:
    server = start_server(env={"TURN_CONCURRENCY": "1", "DRAIN_GRACE_SECONDS": "6"})
    async with ChatClient(server.url) as client:
        async with client.stream() as stream:
            await start_long_turn(client, stream, deltas=200)
            waiting = await client.send("me next", config={"pace_ms": 0})
            assert waiting["status"] == "processing_started"
            server.terminate()
            await stream.rest()
        await asyncio.to_thread(server.wait)
        server.start()
        async with client.stream(last_event_id=stream.last_event_id) as again:
            events = await again.until(
                lambda e: ends_turn(e) and e.data["conversation"]["turn_id"] == waiting["turn_id"]
            )
    starts = [
        e
        for e in events
        if e.event == "chat_start" and e.data["conversation"]["turn_id"] == waiting["turn_id"]
    ]
    assert len(starts) == 1


async def test_a_second_signal_stops_at_once(start_server: StartServer) -> None:
    server = start_server(env={"DRAIN_GRACE_SECONDS": "60"})
    async with ChatClient(server.url) as client, client.stream() as stream:
        await start_long_turn(client, stream, deltas=20_000)
        server.terminate()
        await stream.until(lambda event: event.event == "server_shutdown")
        await aeventually(lambda: "Draining" in server.output())
        began = time.monotonic()
        server.terminate()
        await asyncio.to_thread(server.wait, 25)
    assert time.monotonic() - began < 25


async def test_a_server_without_its_tables_does_not_start_and_says_why(
    start_server: StartServer, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "unmigrated"
    folder.mkdir()
    server = ServerProcess(folder, database_url=f"sqlite:///{folder}/empty.sqlite3").start(wait=False)
    assert await asyncio.to_thread(server.wait, 30) != 0
    assert "no such table" in server.output()
