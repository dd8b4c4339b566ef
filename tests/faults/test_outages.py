"""Valkey and PostgreSQL go away in mid-turn and come back: with their data nothing is lost, without it all are told."""

import asyncio

import httpx
import pytest
from redis import Redis

from tests.faults.bundles import counted
from tests.faults.following import Follower, agree, status
from tests.fleet import Fleet

pytestmark = pytest.mark.xdist_group("fleet")

COUNT, PACE_MS = 150, 20


async def test_valkey_is_stopped_and_started_again_with_its_data(whole: Fleet) -> None:
    async with (
        Follower(whole.urls) as client,
        Follower(whole.urls[::-1], kinds=["websocket"], session_id=client.session_id) as other,
    ):
        turn_id = await client.count(COUNT, pace_ms=PACE_MS)
        await client.says(turn_id, 30)
        await asyncio.to_thread(whole.valkey.stop)
        await asyncio.to_thread(whole.valkey.start)
        await asyncio.gather(client.ended(turn_id), other.ended(turn_id))
        assert client.completion(turn_id) == "success"
        await agree(whole, [client, other], {turn_id: COUNT})
        assert client.positions == other.positions
        assert len({epoch for epoch, _ in client.positions}) == 1
        assert client.outcomes == other.outcomes == ["live"]
        assert await status(whole, client, turn_id) == ("completed", "idle")


async def test_valkey_is_killed_and_started_again_with_its_data(whole: Fleet) -> None:
    async with Follower(whole.urls) as client:
        turn_id = await client.count(COUNT, pace_ms=PACE_MS)
        await client.says(turn_id, 30)
        await asyncio.to_thread(whole.valkey.kill)
        await asyncio.to_thread(whole.valkey.start)
        await client.ended(turn_id)
        assert client.completion(turn_id) == "success"
        await agree(whole, [client], {turn_id: COUNT})
        assert await status(whole, client, turn_id) == ("completed", "idle")


async def test_valkey_stands_still_for_five_seconds(whole: Fleet) -> None:
    async with (
        Follower(whole.urls) as client,
        Follower(whole.urls[::-1], kinds=["socketio"], session_id=client.session_id) as other,
    ):
        turn_id = await client.count(COUNT, pace_ms=PACE_MS)
        await client.says(turn_id, 30)
        whole.valkey.freeze()
        await asyncio.sleep(5)
        whole.valkey.thaw()
        await asyncio.gather(client.ended(turn_id), other.ended(turn_id))
        assert client.completion(turn_id) == "success"
        await agree(whole, [client, other], {turn_id: COUNT})
        assert client.positions == other.positions
        assert client.outcomes == other.outcomes == ["live"]
        assert await status(whole, client, turn_id) == ("completed", "idle")


async def test_postgresql_is_away_for_ten_seconds(whole: Fleet) -> None:
    assert whole.postgres is not None
    async with Follower(whole.urls) as client:
        turn_id = await client.count(COUNT, pace_ms=5 * PACE_MS)
        short = await client.count(30, pace_ms=2 * PACE_MS)
        await client.says(turn_id, 10)
        await client.says(short, 10)
        await asyncio.to_thread(whole.postgres.cut)
        said = len(client.events)
        refused = await _post(client)
        assert refused.status_code == 503, refused.text
        assert int(refused.headers["Retry-After"]) > 0
        await asyncio.sleep(10)
        assert len(client.events) > said, "a turn that runs goes on without the database"
        await asyncio.to_thread(whole.postgres.restore)
        await client.ended(turn_id, short)
        after = await client.count(5)
        await client.ended(after)
        assert [client.completion(each) for each in (turn_id, short, after)] == ["success"] * 3
        await agree(whole, [client], {turn_id: COUNT, short: 30, after: 5})
        assert await status(whole, client, turn_id) == ("completed", "idle")


async def _post(client: Follower) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as http:
        return await http.post(
            f"{client.urls[0]}/sse/chat",
            params={"stream_id": client.stream_id},
            headers={"User-Session-ID": client.session_id},
            json={"message": {"text": "go"}},
        )


async def test_a_subscriber_that_valkey_cut_off_for_being_behind_fills_from_the_log(whole: Fleet) -> None:
    count = 6000
    slow = whole.web[1]
    with whole.redis() as redis:
        usual = redis.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
        # The connection that listens also brings what is read from logs, up to 1 MiB each: less would cut it off again.
        redis.config_set("client-output-buffer-limit", "pubsub 4mb 4mb 1")
        try:
            async with (
                Follower(whole.urls) as client,
                Follower(whole.urls[::-1], session_id=client.session_id) as behind,
            ):
                turns = []
                slow.freeze()
                # How much the sockets between the two hold is the kernel's affair.
                while not cut_off(redis) and len(turns) < 12:
                    turns.append(await client.count(count))
                    await client.ended(turns[-1])
                assert cut_off(redis)
                slow.thaw()
                await behind.ended(*turns)
                await agree(whole, [client, behind], dict.fromkeys(turns, count))
                assert behind.outcomes == ["live"]
                assert await status(whole, client, turns[-1]) == ("completed", "idle")
        finally:
            slow.thaw()
            redis.config_set("client-output-buffer-limit", usual)


def cut_off(redis: "Redis[bytes]") -> int:
    """Return how many clients Valkey has cut off for being behind."""
    return int(redis.info("stats")["client_output_buffer_limit_disconnections"])


async def test_valkey_comes_back_without_its_data(whole: Fleet) -> None:
    async with (
        Follower(whole.urls) as client,
        Follower(whole.urls[::-1], kinds=["websocket"], session_id=client.session_id) as other,
    ):
        first = await client.count(20)
        await client.ended(first)
        known = client.last_event_id
        turn_id = await client.count(COUNT, pace_ms=PACE_MS)
        await client.says(turn_id, 30)
        before = client.last_event_id
        gaps = await asyncio.to_thread(gaps_of, whole)
        await asyncio.to_thread(whole.valkey.kill)
        whole.valkey.forget()
        await asyncio.to_thread(whole.valkey.start)
        await asyncio.gather(client.ended(turn_id), other.ended(turn_id))
        assert client.completion(turn_id) == other.completion(turn_id) == "success"
        assert await status(whole, client, turn_id) == ("completed", "idle")
        assert len({epoch for epoch, _ in client.positions}) == 2
        assert client.positions == sorted(set(client.positions))
        for each in (client, other):
            assert each.text(turn_id) == counted(COUNT) or "reset" in each.outcomes
        for position in (known, before):
            async with Follower(whole.urls, session_id=client.session_id, last_event_id=position) as back:
                # What was recorded of the old epoch comes before it.
                await back.until(
                    lambda back=back: back.outcomes[-1] == "reset", "the word that something is gone"
                )
                after = await back.count(5)
                await back.ended(after)
                assert back.text(after) == counted(5)
        await asyncio.to_thread(whole.until_recorded)
        named = await asyncio.to_thread(gaps_of, whole)
        assert len(named) > len(gaps), "the recorder names no gap"


def gaps_of(fleet: Fleet) -> list[str]:
    return [reason for (reason,) in fleet.query("SELECT reason FROM recorder_recordedgap")]
