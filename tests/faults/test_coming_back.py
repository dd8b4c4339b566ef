"""Clients that come and go between replicas, or say nonsense about where they were."""

import asyncio
from collections.abc import Sequence

import httpx
import pytest

from tests.clients import text_of
from tests.contract.transports import TRANSPORTS
from tests.databases import execute
from tests.faults.bundles import counted, marker_of
from tests.faults.following import Follower, agree, status
from tests.faults.stuck import SLOW_READERS
from tests.fleet import Fleet
from tests.waiting import aeventually

pytestmark = pytest.mark.xdist_group("fleet")

ALL_KINDS = list(TRANSPORTS)


@pytest.mark.parametrize("every", [1, 2, 5])
async def test_a_client_that_goes_to_the_other_replica_after_every_few_events_misses_nothing(
    whole: Fleet, every: int
) -> None:
    async with Follower(whole.urls) as steady:
        one = steady.session_id
        async with (
            Follower(whole.urls, kinds=ALL_KINDS, every=every, session_id=one) as rotating,
            Follower(whole.urls[::-1], kinds=ALL_KINDS[1:], every=every, session_id=one) as contrary,
        ):
            count = 12 + 8 * every
            turn_id = await rotating.count(count, pace_ms=20)
            clients = [steady, rotating, contrary]
            await asyncio.gather(*(client.ended(turn_id) for client in clients))
            assert [client.completion(turn_id) for client in clients] == ["success"] * 3
            await agree(whole, clients, {turn_id: count})
            for client in (rotating, contrary):
                assert client.positions == steady.positions
                assert len(client.readies) > count / every
                assert set(client.outcomes) <= {"live", "replayed"}
            assert await status(whole, steady, turn_id) == ("completed", "idle")


POSITIONS = {
    "malformed": "nonsense",
    "negative": "-5-3",
    "half": "1795647676785-",
    "huge": "9" * 30 + "-1",
    "not a number": "1795647676785-NaN",
    "of the future": "{epoch}-99999",
    "of a future epoch": "99999999999999-7",
    "of an old epoch": "1000000000000-3",
    "before all epochs": "0-0",
    "of another session": "{other}",
}


@pytest.mark.parametrize("name", list(POSITIONS))
async def test_a_position_that_means_nothing_here_is_said_to_and_costs_nothing_that_comes(
    whole: Fleet, name: str
) -> None:
    async with Follower(whole.urls) as steady, Follower(whole.urls) as stranger:
        first = await steady.count(5)
        theirs = await stranger.count(5)
        await asyncio.gather(steady.ended(first), stranger.ended(theirs))
        position = POSITIONS[name].format(
            epoch=steady.last_event_id.split("-")[0], other=stranger.last_event_id
        )
        clients: list[Follower] = []
        try:
            for number, kind in enumerate(ALL_KINDS):
                client = Follower(
                    [whole.urls[number % 2]],
                    kinds=[kind],
                    session_id=steady.session_id,
                    last_event_id=position,
                )
                clients.append(await client.__aenter__())
            assert [client.outcomes for client in clients] == [["reset"]] * len(clients)
            turn_id = await clients[0].count(30, pace_ms=5)
            await asyncio.gather(*(client.ended(turn_id) for client in [steady, *clients]))
        finally:
            for client in clients:
                await client.__aexit__()
        await agree(whole, [steady, *clients], {turn_id: 30})
        assert not any(client.text(theirs) for client in [steady, *clients])
        assert await status(whole, steady, turn_id) == ("completed", "idle")


async def test_a_message_at_one_replica_may_name_a_stream_that_is_open_at_the_other(whole: Fleet) -> None:
    """Nothing else says whose it is: no token, header or cookie. The stream's session is anonymous."""
    async with Follower(whole.urls[:1]) as client, httpx.AsyncClient(timeout=60) as http:
        response = await http.post(
            f"{whole.urls[1]}/sse/chat",
            params={"stream_id": client.stream_id},
            json={"message": {"text": "go", "config": {"count": 20}}},
        )
        assert response.status_code == 200, response.text
        ack = response.json()
        assert ack["session_id"] == client.session_id
        await client.ended(ack["turn_id"])
        await agree(whole, [client], {ack["turn_id"]: 20})
        unknown = await http.post(
            f"{whole.urls[1]}/sse/chat",
            params={"stream_id": f"{client.stream_id}-of-nobody"},
            json={"message": {"text": "go"}},
        )
        assert unknown.status_code != 200 or unknown.json()["session_id"] != client.session_id


@pytest.mark.parametrize("replica", [0, 1])
async def test_a_stop_at_any_replica_reaches_a_turn_on_any_worker(whole: Fleet, replica: int) -> None:
    async with Follower(whole.urls) as client:
        acks = [await client.send(config={"count": 5000, "pace_ms": 20}) for _ in range(4)]
        turns = [ack["turn_id"] for ack in acks]
        for turn_id in turns:
            await client.says(turn_id)
        for ack in acks:
            stop = await client.send("", replica=replica, conversation_id=ack["conversation_id"], steer=True)
            assert stop["status"] == "steer_accepted"
        await client.ended(*turns)
        await agree(whole, [client], dict.fromkeys(turns))
        for turn_id in turns:
            assert await status(whole, client, turn_id) == ("stopped", "idle")


async def test_readers_that_do_not_read_cost_a_replica_little_and_miss_no_text(whole: Fleet) -> None:
    count, size = 600, 10_000
    async with Follower(whole.urls[:1]) as client:
        warm = await client.count(count, size=size)
        await client.ended(warm)
        before = whole.web[1].rss_mib
        readers = [kind(whole.urls[1], client.session_id) for kind in [*SLOW_READERS.values()] * 2]
        try:
            for reader in readers:
                await reader.open()
            turn_id = await client.count(count, size=size)
            await client.ended(turn_id)
            await agree(whole, [client], {turn_id: count}, size=size)
            grown = whole.web[1].rss_mib - before
            for reader in readers:
                await reader.take_to_the_end()
                assert text_of(reader.received, marker_of(size), turn_id) == counted(count, size)
        finally:
            for reader in readers:
                await reader.close()
        waiting = len(readers) * count * size / 2**20
        assert grown < waiting / 2, f"{grown:.0f} MiB while {waiting:.0f} wait"


async def test_two_workers_that_race_for_a_conversation_run_each_of_its_turns_once_and_in_order(
    whole: Fleet,
) -> None:
    async with Follower(whole.urls) as client:
        acks = await asyncio.gather(
            *(
                client.send(f"m{n}", replica=n % 2, conversation_id="raced", config={"count": 10})
                for n in range(12)
            )
        )
        turns = [ack["turn_id"] for ack in acks]
        await client.ended(*turns)
        starts_and_ends = [
            (event.data["type"], event.data["conversation"]["turn_id"])
            for event in client.events
            if event.data["type"] in ("chat.start", "chat.complete")
        ]
        order = [turn_id for kind, turn_id in starts_and_ends if kind == "chat.start"]
        assert starts_and_ends == [
            (kind, turn_id) for turn_id in order for kind in ("chat.start", "chat.complete")
        ]
        assert sorted(order) == sorted(turns)
        assert order == numbered(whole, turns)
        await agree(whole, [client], dict.fromkeys(turns, 10))
        for turn_id in turns:
            assert await status(whole, client, turn_id) == ("completed", "idle")


def numbered(fleet: Fleet, turns: Sequence[str]) -> list[str]:
    """Return turns in the order in which their conversation accepted them."""
    found = fleet.query("SELECT turn_id FROM comm_turn ORDER BY conversation_id, number")
    return [turn_id for (turn_id,) in found if turn_id in turns]


async def test_a_job_that_is_delivered_twice_starts_nothing_twice(whole: Fleet) -> None:
    async with Follower(whole.urls) as client:
        turn_id = await client.count(60, pace_ms=20)
        for waiting_for in (1, 20, 40):
            await client.says(turn_id, waiting_for)
            await asyncio.to_thread(deliver, whole, turn_id)
        await client.ended(turn_id)
        await asyncio.to_thread(deliver, whole, turn_id)
        await aeventually(lambda: asyncio.to_thread(no_jobs, whole), timeout=60, what="the end of all jobs")
        after = await client.count(3)
        await client.ended(after)
        await agree(whole, [client], {turn_id: 60, after: 3})
        assert [e.event for e in client.of(turn_id)].count("chat_start") == 1
        assert await status(whole, client, turn_id) == ("completed", "idle")


def deliver(fleet: Fleet, turn_id: str) -> None:
    """Put one more job for a turn into the queue, and ring."""
    execute(
        fleet.database_url,
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, priority) "
        f"""VALUES ('turns', 'turns.run', '{{"turn_id": "{turn_id}"}}', 'todo', 0)""",
    )


def no_jobs(fleet: Fleet) -> bool:
    return bool(fleet.query("SELECT count(*) FROM procrastinate_jobs")[0][0] == 0)


async def test_a_turn_that_is_longer_than_any_timeout_of_the_queue_runs_once_to_its_end(whole: Fleet) -> None:
    """procrastinate takes a worker for dead after 30 s without a sign of life; nothing waits for longer."""
    async with Follower(whole.urls) as client:
        turn_id = await client.count(70, pace_ms=500)
        await client.ended(turn_id, timeout=150)
        assert client.text(turn_id) == counted(70)
        await agree(whole, [client], {turn_id: 70})
        assert [e.event for e in client.of(turn_id)].count("chat_start") == 1
        assert await status(whole, client, turn_id) == ("completed", "idle")
