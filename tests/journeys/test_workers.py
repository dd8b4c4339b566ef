"""Turns in workers: accepted by any web process, run by any worker, ended whatever dies."""

import asyncio
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.clients import ChatClient, SseEvent, Stream, ends_turn, text_of
from tests.databases import empty_postgres, postgres_or_skip
from tests.fleet import Fleet
from tests.waiting import aeventually

pytestmark = pytest.mark.fleet

LONG = {"pace_ms": 20, "deltas": 20_000}


class StartFleet(Protocol):
    """Starts a fleet; keyword arguments as for Fleet."""

    def __call__(self, **kwargs: Any) -> Fleet: ...


@pytest.fixture
def start_fleet(tmp_path: Path) -> Iterator[StartFleet]:
    """Start fleets that end with the test."""
    started: list[Fleet] = []

    def start(**kwargs: Any) -> Fleet:
        fleet = Fleet(tmp_path / f"fleet{len(started)}", **{"recorders": 0, **kwargs})
        started.append(fleet)
        return fleet.start()

    yield start
    for fleet in started:
        fleet.close()


def speaks(event: SseEvent) -> bool:
    return event.event == "chat_delta" and event.data["delta"]["marker"] == "answer"


async def begin(client: ChatClient, stream: Stream, **config: int) -> dict[str, Any]:
    """Send a message and wait until it is being answered."""
    ack = await client.send("tell me a long story", config={**LONG, **config})
    await stream.until(lambda e: speaks(e) and e.data["conversation"]["turn_id"] == ack["turn_id"])
    return ack


def row_of(fleet: Fleet, turn_id: str) -> tuple[str, int, str]:
    """The status, the fence and the owner of a turn."""
    (row,) = fleet.query(f"SELECT status, fence, owner_channel FROM comm_turn WHERE turn_id = '{turn_id}'")
    return row


def completion(events: list[SseEvent]) -> str:
    return str(events[-1].data["data"]["completion"])


async def test_a_turn_is_accepted_steered_and_stopped_on_any_web_process_and_runs_in_a_worker(
    start_fleet: StartFleet,
) -> None:
    fleet = start_fleet()
    async with ChatClient(fleet.urls[0]) as client, client.stream() as stream:
        ack = await begin(client, stream)
        client.url = fleet.urls[1]
        followup = await client.send(
            "and then?", conversation_id=ack["conversation_id"], config={"pace_ms": 0}
        )
        assert followup["status"] == "followup_accepted"
        assert followup["live_owner_detected"] is True
        stop = await client.send("", conversation_id=ack["conversation_id"], message_kind="steer")
        assert stop["status"] == "steer_accepted"
        first = await stream.until_idle()
        second = await stream.until_idle()
        conversation = first[-1].data["conversation"], second[-1].data["conversation"]
    assert [c["turn_id"] for c in conversation] == [ack["turn_id"], followup["turn_id"]]
    assert (completion(first), completion(second)) == ("success", "success")
    assert row_of(fleet, ack["turn_id"])[:2] == ("stopped", 1)
    assert row_of(fleet, followup["turn_id"])[:2] == ("completed", 1)
    await aeventually(lambda: fleet.query("SELECT count(*) FROM procrastinate_jobs") == [(0,)])
    assert re.search(r"worker \d+: working, 0 turns", fleet.manage("runturns", "--check"))
    assert [worker.stop() for worker in fleet.workers] == [0, 0]


async def test_one_idempotency_key_at_two_web_processes_at_once_is_one_turn(start_fleet: StartFleet) -> None:
    fleet = start_fleet(workers=1)
    async with ChatClient(fleet.urls[0]) as client, client.stream() as stream:
        keys = [f"key-{number}" for number in range(5)]

        async def post(key: str, url: str) -> dict[str, Any]:
            response = await client.http.post(
                f"{url}/sse/chat",
                params={"stream_id": client.stream_id},
                headers={"User-Session-ID": client.session_id or "", "Idempotency-Key": key},
                json={"message": {"text": "once", "config": {"pace_ms": 0}}},
            )
            assert response.status_code == 200, response.text
            return dict(response.json())

        acks = await asyncio.gather(*(post(key, url) for key in keys for url in fleet.urls * 2))
        for number in range(len(keys)):
            same = acks[number * 4 : number * 4 + 4]
            assert same == [same[0]] * 4
        for _ in keys:
            await stream.until_idle(timeout=60)
    assert fleet.query("SELECT count(*) FROM comm_turn") == [(5,)]
    assert fleet.query("SELECT count(*) FROM comm_message WHERE role = 'user'") == [(5,)]


@pytest.mark.parametrize("survivors", [1, 0])
async def test_the_turn_of_a_killed_worker_is_declared_within_15_s_also_when_no_worker_is_left(
    start_fleet: StartFleet, survivors: int
) -> None:
    fleet = start_fleet(web=1, workers=1)
    async with ChatClient(fleet.urls[0]) as client, client.stream() as stream:
        ack = await begin(client, stream)
        fleet.workers[0].kill()
        killed_at = time.time()
        for _ in range(survivors):
            fleet.add_worker().start()
        told = await stream.until_idle(timeout=60)
    error = next(event for event in told if event.event == "chat_error")
    assert error.data["data"]["error_type"] == "turn_interrupted"
    assert completion(told) == "interrupted"
    assert row_of(fleet, ack["turn_id"])[:2] == ("interrupted", 2)
    ((finished_at,),) = fleet.query("SELECT finished_at FROM comm_turn")
    assert isinstance(finished_at, datetime)
    assert finished_at.timestamp() - killed_at < 15


async def test_web_processes_that_run_turns_themselves_stop_and_declare_each_others(
    start_fleet: StartFleet,
) -> None:
    fleet = start_fleet(web=2, workers=0, env={"TURNS": "embedded"})
    async with ChatClient(fleet.urls[0]) as client:
        async with client.stream() as stream:
            stopped = await begin(client, stream)
            client.url = fleet.urls[1]
            await client.send("", conversation_id=stopped["conversation_id"], message_kind="steer")
            assert completion(await stream.until_idle()) == "success"
        client.url = fleet.urls[0]
        async with client.stream() as stream:
            killed = await begin(client, stream)
            owner = row_of(fleet, killed["turn_id"])[2]
        assert owner == row_of(fleet, stopped["turn_id"])[2]
        client.url = fleet.urls[1]
        async with client.stream(last_event_id=stream.last_event_id) as other:
            fleet.web[0].kill()
            told = await other.until_idle(timeout=60)
    assert completion(told) == "interrupted"
    assert row_of(fleet, stopped["turn_id"])[:2] == ("stopped", 1)
    assert row_of(fleet, killed["turn_id"])[:2] == ("interrupted", 2)


async def test_an_accepted_turn_waits_for_a_worker_and_runs_once(start_fleet: StartFleet) -> None:
    fleet = start_fleet(web=2, workers=2, env={"TURN_CONCURRENCY": 1, "DRAIN_GRACE_SECONDS": 1})
    async with ChatClient(fleet.urls[0]) as client, client.stream() as stream:
        running = [await begin(client, stream) for _ in fleet.workers]
        waiting = [await client.send(f"me next {n}", config={"pace_ms": 0}) for n in range(3)]
        owners = {row_of(fleet, ack["turn_id"])[2] for ack in running}
        assert len(owners) == 2
        assert [worker.stop() for worker in fleet.workers] == [0, 0]
        assert {row_of(fleet, ack["turn_id"])[0] for ack in running} == {"interrupted"}
        assert {row_of(fleet, ack["turn_id"])[0] for ack in waiting} == {"accepted"}
        for worker in fleet.workers:
            worker.start()
        over = set()
        events = []
        while len(over) < 5:
            event = await stream.next(timeout=60)
            events.append(event)
            if ends_turn(event):
                over.add(event.data["conversation"]["turn_id"])
    starts = [e.data["conversation"]["turn_id"] for e in events if e.event == "chat_start"]
    assert sorted(starts) == sorted(ack["turn_id"] for ack in waiting)
    for ack in waiting:
        assert row_of(fleet, ack["turn_id"])[:2] == ("completed", 1)


async def test_a_drained_worker_lets_a_turn_finish_and_a_second_signal_ends_it_at_once(
    start_fleet: StartFleet,
) -> None:
    fleet = start_fleet(web=1, workers=2, env={"DRAIN_GRACE_SECONDS": 60, "TURN_CONCURRENCY": 1})
    async with ChatClient(fleet.urls[0]) as client, client.stream() as stream:
        ack = await begin(client, stream, deltas=150)
        endless = await begin(client, stream)
        for worker in fleet.workers:
            worker.terminate()
        events = await stream.until(
            lambda e: ends_turn(e) and e.data["conversation"]["turn_id"] == ack["turn_id"], timeout=60
        )
        assert completion(events) == "success"
        finished = await asyncio.to_thread(_first_to_end, fleet)
        assert finished.wait() == 0
        (other,) = [worker for worker in fleet.workers if worker is not finished]
        assert other.alive
        other.terminate()
        assert await asyncio.to_thread(other.wait, 20) == -15
        told = await stream.until_idle(timeout=60)
        assert completion(told) == "interrupted"
        assert told[-1].data["conversation"]["turn_id"] == endless["turn_id"]
    assert text_of(events, turn_id=ack["turn_id"])


def _first_to_end(fleet: Fleet) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for worker in fleet.workers:
            if not worker.alive:
                return worker
        time.sleep(0.05)
    raise AssertionError("no worker ended")


def test_a_worker_says_what_it_lacks_and_does_not_start(start_fleet: StartFleet) -> None:
    fleet = start_fleet(web=0, workers=0, env={"WORKER_START_SECONDS": 1})
    lacking = {
        "Turns run in the processes that serve": {"TURNS": "embedded"},
        "PostgreSQL does not answer": {"DATABASE_URL": "postgres://postgres@127.0.0.1:1/none"},
        "Redis does not answer": {"REDIS_URL": "redis://127.0.0.1:1/0"},
        "run `manage.py migrate` first": {"DATABASE_URL": empty_postgres(postgres_or_skip())},
    }
    for sentence, env in lacking.items():
        worker = fleet.add_worker(env)
        worker.start(wait=False)
        assert worker.wait() == 1
        assert sentence in worker.output()
        assert "Traceback" not in worker.output()


def test_the_check_tells_when_no_worker_lives(start_fleet: StartFleet) -> None:
    fleet = start_fleet(web=0, workers=1)
    assert "working, 0 turns" in fleet.manage("runturns", "--check")
    fleet.workers[0].stop()
    with pytest.raises(AssertionError, match="No worker lives on this host"):
        fleet.manage("runturns", "--check")
