"""Processes that are killed in mid-turn: nobody loses a word, and who is gone is declared."""

import asyncio
import time

import pytest

from tests.faults.following import Follower, agree, status
from tests.fleet import Fleet
from tests.processes import TestedProcess

pytestmark = pytest.mark.xdist_group("fleet")

COUNT, PACE_MS = 150, 20
"""A turn of some three seconds: long enough to break something in the middle of it."""


def worker_of(fleet: Fleet, client: Follower, turn_id: str) -> TestedProcess:
    """Return the process that runs a turn."""
    return next(worker for worker in fleet.workers if worker.pid == client.pid(turn_id))


async def test_a_web_process_is_killed_and_its_clients_go_on_at_the_other_one(whole: Fleet) -> None:
    victim, other = whole.web
    async with Follower([victim.url, other.url]) as sse:
        one = sse.session_id
        async with (
            Follower([victim.url, other.url], kinds=["websocket"], session_id=one) as websocket,
            Follower([victim.url, other.url], kinds=["socketio"], session_id=one) as socketio,
            Follower([other.url], session_id=one) as untouched,
        ):
            turn_id = await sse.count(COUNT, pace_ms=PACE_MS)
            await sse.says(turn_id, 30)
            victim.kill()
            clients = [sse, websocket, socketio, untouched]
            await asyncio.gather(*(client.ended(turn_id) for client in clients))
            assert [client.completion(turn_id) for client in clients] == ["success"] * 4
            await agree(whole, clients, {turn_id: COUNT})
            assert [client.outcomes for client in clients[:3]] == [["live", "replayed"]] * 3
            assert await status(whole, sse, turn_id) == ("completed", "idle")
    await asyncio.to_thread(victim.start)


async def test_a_worker_is_killed_and_its_turn_is_declared_while_the_others_go_on(whole: Fleet) -> None:
    async with (
        Follower(whole.urls) as client,
        Follower(whole.urls[::-1], session_id=client.session_id) as other,
    ):
        turns = [await client.count(COUNT, pace_ms=5 * PACE_MS) for _ in range(6)]
        for turn_id in turns:
            await client.says(turn_id)
        victim = worker_of(whole, client, turns[0])
        dead = [turn_id for turn_id in turns if client.pid(turn_id) == victim.pid]
        victim.kill()
        await asyncio.gather(client.ended(*turns), other.ended(*turns))
        for turn_id in turns:
            ended, row = ("interrupted", "interrupted") if turn_id in dead else ("success", "completed")
            assert client.completion(turn_id) == other.completion(turn_id) == ended
            assert (await status(whole, client, turn_id))[0] == row
        for turn_id in dead:
            (error,) = [event for event in client.of(turn_id) if event.event == "chat_error"]
            assert error.data["data"]["error_type"] == "turn_interrupted"
        after = await client.count(5)
        await asyncio.gather(client.ended(after), other.ended(after))
        said = {turn_id: None if turn_id in dead else COUNT for turn_id in turns}
        await agree(whole, [client, other], {**said, after: 5})
    await asyncio.to_thread(victim.start)


async def test_with_all_workers_dead_on_an_idle_system_a_web_process_declares_the_turn_within_15_s(
    whole: Fleet,
) -> None:
    async with Follower(whole.urls) as client:
        turn_id = await client.count(10_000, pace_ms=PACE_MS)
        await client.says(turn_id, 5)
        for worker in whole.workers:
            worker.kill()
        killed_at = time.monotonic()
        await client.ended(turn_id)
        waited = time.monotonic() - killed_at
        assert client.completion(turn_id) == "interrupted"
        assert await status(whole, client, turn_id) == ("interrupted", "error")
        waiting = await client.count(20)
        assert (await status(whole, client, waiting))[0] == "accepted"
        await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in whole.workers))
        await client.ended(waiting)
        await agree(whole, [client], {turn_id: None, waiting: 20})
        assert [event.event for event in client.of(waiting)].count("chat_start") == 1
    # What is left is for the way to us: two busy cores carry everything else of this test, too.
    assert waited < 15 + 2, f"declared after {waited:.1f} s"


async def test_a_recorder_is_killed_in_mid_turn_and_no_row_is_missing_or_doubled(whole: Fleet) -> None:
    async with Follower(whole.urls) as client:
        turn_id = await client.count(COUNT, pace_ms=PACE_MS)
        await client.says(turn_id, 30)
        for recorder in whole.recorders:
            recorder.kill()
        await client.ended(turn_id)
        assert whole.recorder_lag() > 0
        for recorder in whole.recorders:
            await asyncio.to_thread(recorder.start)
        await agree(whole, [client], {turn_id: COUNT})
        assert await status(whole, client, turn_id) == ("completed", "idle")
