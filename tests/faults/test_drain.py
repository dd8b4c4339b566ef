"""Processes that are asked to end under load: nobody loses a word, and nothing is said twice."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.faults.following import Follower, agree, status
from tests.fleet import DRAINED, Fleet
from tests.servers import ServerProcess
from tests.waiting import aeventually

pytestmark = pytest.mark.xdist_group("fleet")

FLEET_ENV = {"TURN_CONCURRENCY": "3", "DRAIN_GRACE_SECONDS": "5"}
SESSIONS, STREAMS = 6, 10
KINDS = ["sse", "websocket", "socketio", "sse"]
COUNT, PACE_MS = 100, 30


@asynccontextmanager
async def crowd(fleet: Fleet) -> AsyncIterator[list[list[Follower]]]:
    """Open the streams of some sessions, most of them at the first replica."""
    async with AsyncExitStack() as stack:
        sessions = []
        for _ in range(SESSIONS):
            first = await stack.enter_async_context(Follower(fleet.urls))
            others = [
                Follower(
                    fleet.urls if number % 4 else fleet.urls[::-1],
                    kinds=[KINDS[number % len(KINDS)]],
                    session_id=first.session_id,
                )
                for number in range(STREAMS - 1)
            ]
            await asyncio.gather(*(stack.enter_async_context(other) for other in others))
            sessions.append([first, *others])
        yield sessions


async def test_a_web_process_drains_under_load_and_every_client_goes_on_at_the_other_one(
    whole: Fleet,
) -> None:
    going = whole.web[0]
    async with crowd(whole) as sessions:
        turns = [await clients[0].count(COUNT, pace_ms=PACE_MS, replica=1) for clients in sessions]
        await asyncio.gather(
            *(clients[0].says(turn) for clients, turn in zip(sessions[:3], turns, strict=False))
        )
        leaving = [c for clients in sessions for c in clients if c.urls[0] == going.url]
        going.terminate()
        assert await aeventually(lambda: _drains(going), timeout=30, what="health that says 503")
        for clients, turn_id in zip(sessions, turns, strict=True):
            await asyncio.gather(*(client.ended(turn_id) for client in clients))
        slots = [client.goodbyes[0].data["retry_after_ms"] for client in leaving]
        assert len(set(slots)) > len(leaving) / 2, "the slots are not spread"
        assert max(slots) - min(slots) >= 1000
        assert {client.goodbyes[0].data["reason"] for client in leaving} == {"draining"}
        for client in leaving:
            assert (len(client.goodbyes), client.outcomes[0]) == (1, "live")
            assert set(client.outcomes[1:]) <= {"live", "replayed"}
        for clients, turn_id in zip(sessions, turns, strict=True):
            await agree(whole, clients, {turn_id: COUNT})
            assert await status(whole, clients[0], turn_id) == ("completed", "idle")
        assert await asyncio.to_thread(going.wait) in DRAINED
        await asyncio.to_thread(going.start)


async def _drains(server: ServerProcess) -> bool:
    async with httpx.AsyncClient(timeout=10) as http:
        response = await http.get(f"{server.url}/health")
    return response.status_code == 503 and response.json()["draining"] is True


async def test_a_rolling_restart_of_both_loses_and_doubles_nothing(whole: Fleet) -> None:
    async with crowd(whole) as sessions:
        turns: list[dict[str, int | None]] = [{} for _ in sessions]
        restarting = asyncio.create_task(asyncio.to_thread(whole.rolling_restart))
        for number in itertools.count():
            for clients, said in zip(sessions, turns, strict=True):
                said[await insist(clients[0], f"{number}", count=20, pace_ms=PACE_MS)] = 20
            for clients, said in zip(sessions, turns, strict=True):
                await clients[0].ended(*said)
            if restarting.done():
                break
        await restarting
        for clients, said in zip(sessions, turns, strict=True):
            await asyncio.gather(*(client.ended(*said) for client in clients))
            await agree(whole, clients, said)
            assert all(client.goodbyes for client in clients)
            assert all(set(client.outcomes) <= {"live", "replayed"} for client in clients)
            for turn_id in said:
                assert client_completions(clients, turn_id) == {"success"}


def client_completions(clients: list[Follower], turn_id: str) -> set[str | None]:
    return {client.completion(turn_id) for client in clients}


async def insist(client: Follower, key: str, **config: Any) -> str:
    """Send a message to one replica or the other, until one of them takes it; return its turn."""
    async with httpx.AsyncClient(timeout=60) as http:
        for url in itertools.cycle(client.urls):
            try:
                response = await http.post(
                    f"{url}/sse/chat",
                    params={"stream_id": client.stream_id},
                    headers={"User-Session-ID": client.session_id, "Idempotency-Key": key},
                    json={"message": {"text": "go", "config": config}},
                )
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
                continue
            if response.status_code == 200:
                return str(response.json()["turn_id"])
            assert response.status_code == 503, response.text
            await asyncio.sleep(0.1)
    raise AssertionError("unreachable")


async def test_a_worker_drains_what_had_not_started_goes_back_and_what_had_ends_or_is_declared(
    whole: Fleet,
) -> None:
    """Each worker has three places; so many turns run, and the others wait."""
    async with Follower(whole.urls) as client:
        long = [await client.count(1000, pace_ms=100) for _ in range(3)]
        short = [await client.count(60, pace_ms=50) for _ in range(3)]
        for turn_id in [*long, *short]:
            await client.says(turn_id)
        waiting = [await client.count(20, pace_ms=5) for _ in range(4)]
        going = next(worker for worker in whole.workers if worker.pid == client.pid(long[0]))
        with_it = {turn_id for turn_id in [*long, *short] if client.pid(turn_id) == going.pid}
        going.terminate()
        await client.ended(*short, *waiting, *(with_it & set(long)))
        assert [client.completion(turn_id) for turn_id in [*short, *waiting]] == ["success"] * 7
        for turn_id in with_it & set(long):
            assert client.completion(turn_id) == "interrupted"
            assert (await status(whole, client, turn_id))[0] == "interrupted"
        for turn_id in waiting:
            assert client.pid(turn_id) != going.pid
            assert [event.event for event in client.of(turn_id)].count("chat_start") == 1
        assert await asyncio.to_thread(going.wait) in DRAINED
        for turn_id in set(long) - with_it:
            await stop(client, turn_id)
        await client.ended(*long)
        said: dict[str, int | None] = {
            **dict.fromkeys(long),
            **dict.fromkeys(short, 60),
            **dict.fromkeys(waiting, 20),
        }
        await agree(whole, [client], said)
        await asyncio.to_thread(going.start)


async def stop(client: Follower, turn_id: str) -> None:
    conversation_id = client.of(turn_id)[0].data["conversation"]["conversation_id"]
    ack = await client.send("", conversation_id=conversation_id, message_kind="steer", target_turn_id=turn_id)
    assert ack["status"] == "steer_accepted", ack
