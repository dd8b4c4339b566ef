"""Turns as jobs on PostgreSQL: the job rings, the row decides."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.db import connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from comm.models import Turn
from comm.turns.acceptance import accept
from comm.turns.runner import TurnRunner
from tests.comm.turns.conftest import QUICK, House
from tests.waiting import aeventually

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.postgresql,
]

WITH_JOBS = {**QUICK, "TURN_QUEUE": "project.tasks.JobQueue", "TURN_SWEEP_SECONDS": 0.3}


def jobs(*states: str) -> list[str]:
    """The turns that have jobs (in these states), oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT args->>'turn_id' FROM procrastinate_jobs WHERE status::text = ANY(%s) ORDER BY id",
            [list(states) or ["todo", "doing", "failed", "succeeded", "aborted", "cancelled"]],
        )
        return [row[0] for row in cursor.fetchall()]


ajobs = database_sync_to_async(jobs)


@database_sync_to_async
def execute(statement: str, *arguments: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)


@dataclass
class Worker:
    """A runner and its queue, as one worker process has them."""

    runner: TurnRunner
    queue: Any
    taking: "asyncio.Task[None]"

    async def drain(self, grace_seconds: float) -> None:
        """What a worker does on SIGTERM."""
        self.queue.stop()
        await self.runner.drain(grace_seconds)
        await asyncio.wait_for(self.taking, 20)


class Fleet(House):
    """A house whose turns run in workers."""

    workers: list[Worker]

    async def work(self, concurrency: int = 64) -> Worker:
        """Start one more worker."""
        from project.tasks import JobQueue

        queue = JobQueue()
        runner = await self.start(embedded=False)
        worker = Worker(runner, queue, asyncio.create_task(queue.work(runner.run, concurrency)))
        self.workers.append(worker)
        return worker

    async def aclose(self) -> None:
        for worker in self.workers:
            worker.taking.cancel()
        await asyncio.gather(*(worker.taking for worker in self.workers), return_exceptions=True)
        await super().aclose()

    async def begun(self, turn_id: str | None) -> None:
        """Wait until the bundle of a turn has said something."""

        def said(events: list[dict[str, Any]]) -> bool:
            return any(e["type"] == "chat.delta" and e["conversation"]["turn_id"] == turn_id for e in events)

        await self.until(said)

    async def stop(self, conversation_id: str) -> None:
        await self.say("", conversation_id=conversation_id, kind="steer")


@pytest.fixture
def no_jobs(transactional_db: None) -> Iterator[None]:
    """Tables that no model manages are not flushed between tests."""
    yield
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE procrastinate_jobs, procrastinate_workers CASCADE")


@pytest.fixture
async def fleet(no_jobs: None, quiet_house: House) -> AsyncIterator[Fleet]:
    """A fleet without a worker."""
    fleet = Fleet(quiet_house.layer)
    fleet.workers = []
    with override_settings(COMM=WITH_JOBS):
        try:
            yield fleet
        finally:
            await fleet.aclose()


# --- ringing --------------------------------------------------------------------------------------------------


async def test_ringing_for_a_turn_whose_job_waits_asks_for_no_second_one(fleet: Fleet) -> None:
    from project.tasks import JobQueue

    ack = await fleet.say("hello")

    def ring_again() -> list[str]:
        with CaptureQueriesContext(connection) as captured:
            JobQueue().ring([ack["turn_id"] or ""])
        return [query["sql"] for query in captured]

    asked = await database_sync_to_async(ring_again)()
    assert len(asked) == 1, asked
    assert await ajobs("todo") == [ack["turn_id"]]


async def test_the_job_is_part_of_the_transaction_that_accepts_the_turn(fleet: Fleet) -> None:
    def accept_and_roll_back() -> None:
        with transaction.atomic():
            accept(fleet.message("rolled back"))
            assert len(jobs()) == 1
            transaction.set_rollback(True)

    await database_sync_to_async(accept_and_roll_back)()
    assert await ajobs() == []
    ack = await fleet.say("kept")
    assert await ajobs("todo") == [ack["turn_id"]]


async def test_a_turn_that_waits_is_not_rung_twice_and_the_transaction_goes_on(fleet: Fleet) -> None:
    ack = await fleet.say("first", bundle_id="wait")
    stop = await fleet.say("", conversation_id=ack["conversation_id"], kind="steer")
    assert stop["status"] == "steer_accepted"
    assert await ajobs() == [ack["turn_id"]]


async def test_a_worker_runs_a_turn_and_no_job_is_left(fleet: Fleet) -> None:
    await fleet.work()
    ack = await fleet.say("hello there")
    await fleet.ended(ack["turn_id"])
    assert (await fleet.turn(ack["turn_id"])).status == Turn.Status.COMPLETED
    await aeventually(_no_jobs)


async def _no_jobs() -> bool:
    return not await ajobs()


async def test_a_job_delivered_twice_starts_nothing_twice(fleet: Fleet) -> None:
    worker = await fleet.work()
    other = await fleet.work()
    ack = await fleet.say("x", bundle_id="wait")
    await fleet.begun(ack["turn_id"])
    for _ in range(3):
        await database_sync_to_async(worker.queue.ring)([ack["turn_id"]])
    await aeventually(lambda: _none_waits())
    await fleet.stop(ack["conversation_id"])
    await fleet.ended(ack["turn_id"])
    await database_sync_to_async(other.queue.ring)([ack["turn_id"]])
    after = await fleet.say("after")
    await fleet.ended(after["turn_id"])
    await aeventually(_no_jobs)
    assert (await fleet.told(ack["turn_id"])).count("chat.start") == 1
    assert (await fleet.turn(ack["turn_id"])).fence == 1


async def _none_waits() -> bool:
    return not await ajobs("todo")


async def test_two_workers_that_race_for_a_conversation_run_its_turns_one_at_a_time(fleet: Fleet) -> None:
    acks = [await fleet.say(f"m{n}", conversation_id="c") for n in range(8)]
    assert len(await ajobs("todo")) == 8
    await asyncio.gather(fleet.work(), fleet.work())
    await fleet.ended(*(ack["turn_id"] for ack in acks))
    told = [e for e in await fleet.events() if e["type"] in ("chat.start", "chat.complete")]
    assert [e["type"] for e in told] == ["chat.start", "chat.complete"] * 8
    assert [e["conversation"]["turn_id"] for e in told[::2]] == [ack["turn_id"] for ack in acks]
    await aeventually(_no_jobs)


async def test_a_full_worker_fetches_no_more_and_another_one_gets_the_job(fleet: Fleet) -> None:
    with override_settings(COMM={**WITH_JOBS, "TURN_CONCURRENCY": 1}):
        await fleet.work(concurrency=1)
        first = await fleet.say("x", bundle_id="wait")
        await fleet.begun(first["turn_id"])
        second = await fleet.say("y", bundle_id="wait")
        await asyncio.sleep(1)
        assert await ajobs("doing") == [first["turn_id"]]
        assert await ajobs("todo") == [second["turn_id"]]
        await fleet.work(concurrency=1)
        await fleet.begun(second["turn_id"])
    owners = {(await fleet.turn(ack["turn_id"])).owner_channel for ack in (first, second)}
    assert len(owners) == 2


async def test_a_followup_that_nobody_read_runs_next_on_some_worker(fleet: Fleet) -> None:
    await fleet.work()
    await fleet.work()
    first = await fleet.say("x", bundle_id="wait")
    await fleet.begun(first["turn_id"])
    second = await fleet.say("and then", bundle_id="echo", conversation_id=first["conversation_id"])
    assert second["status"] == "followup_accepted"
    await fleet.stop(first["conversation_id"])
    await fleet.ended(first["turn_id"], second["turn_id"])
    assert (await fleet.turn(second["turn_id"])).status == Turn.Status.COMPLETED


# --- sweeping -------------------------------------------------------------------------------------------------


async def test_a_turn_whose_job_got_lost_is_rung_again_by_a_web_process_once(fleet: Fleet) -> None:
    acks = [await fleet.say(f"m{n}") for n in range(3)]
    await execute("DELETE FROM procrastinate_jobs WHERE args->>'turn_id' <> %s", acks[1]["turn_id"])
    await fleet.serve()
    await fleet.serve()
    await aeventually(lambda: _waiting(3))
    await asyncio.sleep(1.5)
    assert sorted(await ajobs()) == sorted(str(ack["turn_id"]) for ack in acks)
    await fleet.work()
    await fleet.ended(*(ack["turn_id"] for ack in acks))


async def _waiting(count: int) -> bool:
    return len(await ajobs("todo")) == count


async def test_with_all_workers_dead_a_web_process_declares_the_turn_on_an_idle_system(fleet: Fleet) -> None:
    await fleet.serve()
    ack = await fleet.say("x", bundle_id="wait")
    await Turn.objects.filter(turn_id=ack["turn_id"]).aupdate(
        status=Turn.Status.RUNNING,
        owner_channel="turns.dead!x",
        fence=1,
        lease_until=timezone.now() + timedelta(seconds=1),
    )
    await fleet.ended(ack["turn_id"])
    assert await fleet.told(ack["turn_id"]) == ["chat.error", "error interrupted"]
    row = await fleet.turn(ack["turn_id"])
    assert (row.status, row.fence) == (Turn.Status.INTERRUPTED, 2)


async def test_jobs_that_a_dead_worker_had_fetched_are_deleted(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ack = await fleet.say("x")
    await execute(
        "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - interval '1 hour');"
        "UPDATE procrastinate_jobs SET status = 'doing', worker_id = (SELECT max(id) FROM procrastinate_workers)"
    )
    await fleet.serve()
    await fleet.work()
    await fleet.ended(ack["turn_id"])
    await aeventually(_no_jobs)


# --- draining -------------------------------------------------------------------------------------------------


async def test_a_drained_worker_gives_back_what_had_not_started_and_another_one_runs_it_once(
    fleet: Fleet,
) -> None:
    with override_settings(COMM={**WITH_JOBS, "TURN_CONCURRENCY": 1}):
        # Two jobs at once for one place: so the second one is fetched and waits.
        worker = await fleet.work(concurrency=2)
        first = await fleet.say("x", bundle_id="wait")
        await fleet.begun(first["turn_id"])
        second = await fleet.say("later", bundle_id="echo")
        await aeventually(lambda: _fetched(2))
        drain = asyncio.create_task(worker.drain(20))
        await aeventually(lambda: _is_rung(second["turn_id"]))
        assert (await fleet.turn(second["turn_id"])).status == Turn.Status.ACCEPTED
        await fleet.work()
        await fleet.ended(second["turn_id"])
        await fleet.stop(first["conversation_id"])
        await drain
    assert (await fleet.turn(first["turn_id"])).status == Turn.Status.STOPPED
    assert (await fleet.told(second["turn_id"])).count("chat.start") == 1
    await aeventually(_no_jobs)


async def _fetched(count: int) -> bool:
    return len(await ajobs("doing")) == count


async def _is_rung(turn_id: str | None) -> bool:
    return await ajobs("todo") == [turn_id]


async def test_a_turn_that_outlasts_the_drain_of_its_worker_is_declared_interrupted(fleet: Fleet) -> None:
    worker = await fleet.work()
    ack = await fleet.say("x", bundle_id="stubborn")
    await fleet.begun(ack["turn_id"])
    await worker.drain(0.1)
    assert (await fleet.told())[-2:] == ["chat.error", "error interrupted"]
    assert (await fleet.turn(ack["turn_id"])).status == Turn.Status.INTERRUPTED
    assert await ajobs() == []


# --- an outage ------------------------------------------------------------------------------------------------


async def test_a_worker_outlives_connections_that_break_and_its_turn_goes_on(fleet: Fleet) -> None:
    await fleet.work()
    ack = await fleet.say("x", bundle_id="wait")
    await fleet.begun(ack["turn_id"])
    for _ in range(3):
        await execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await asyncio.sleep(0.3)
    during = await fleet.say("during")
    await fleet.ended(during["turn_id"], timeout=30)
    await fleet.stop(ack["conversation_id"])
    await fleet.ended(ack["turn_id"], timeout=30)
    row = await fleet.turn(ack["turn_id"])
    assert (row.status, row.fence) == (Turn.Status.STOPPED, 1)
