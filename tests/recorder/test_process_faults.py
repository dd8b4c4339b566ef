"""The real command as a process, on PostgreSQL and Valkey: killed, frozen, cut off; nothing lost, nothing twice."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from tests.databases import new_sqlite
from tests.fleet import RECORDER_READY, Fleet
from tests.processes import ROOT, TestedProcess
from tests.recorder.streaming import Stream
from tests.valkey import ValkeyProcess
from tests.waiting import aeventually, eventually

pytestmark = pytest.mark.fleet

Start = Callable[..., Fleet]
HURRIED = {"RECORDER_CLAIM_SECONDS": "0.5", "RECORDER_FLUSH_SECONDS": "0.02"}


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start fleets of recorders alone."""
    started: list[Fleet] = []

    def start(recorders: int = 1, *, env: dict[str, str] | None = None, **options: Any) -> Fleet:
        fleet = Fleet(
            tmp_path / f"fleet{len(started)}",
            web=0, workers=0, recorders=recorders, env={**HURRIED, **(env or {})}, **options,
        )  # fmt: skip
        started.append(fleet)
        return fleet.start()

    yield start
    for fleet in started:
        request.node.add_report_section("teardown", "output of the recorders", fleet.output())
        fleet.close()


@pytest.fixture
async def stream_of() -> AsyncIterator[Callable[..., Stream]]:
    """Open the recorder stream of a fleet; keyword arguments are the layer's."""
    opened: list[Stream] = []

    def stream_of(fleet: Fleet, **layer_options: Any) -> Stream:
        opened.append(Stream(fleet.valkey.url, "backchannel", **layer_options))
        return opened[-1]

    yield stream_of
    for stream in opened:
        await stream.layer.aclose()
        stream.client.close()


@contextmanager
def table_locked(fleet: Fleet, table: str = "recorder_recordedenvelope") -> Iterator[None]:
    """Let nobody write into a table."""
    with psycopg.connect(fleet.database_url) as connection, connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE".encode())
        yield


def somebody_waits(fleet: Fleet) -> bool:
    """Whether a recorder's statement waits for a lock."""
    return bool(
        fleet.query(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
    )


def recorded(fleet: Fleet) -> tuple[int, int, int]:
    """Rows, different positions, and project events."""
    [(rows, positions, projects)] = fleet.query(
        "SELECT count(*), count(DISTINCT (session_id, epoch, seq)) FILTER (WHERE seq IS NOT NULL), "
        "count(*) FILTER (WHERE seq IS NULL) FROM recorder_recordedenvelope"
    )
    return rows, positions, projects


def gaps(fleet: Fleet) -> list[Any]:
    return fleet.query("SELECT session_id, first, last, events FROM recorder_recordedgap ORDER BY id")


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def test_killed_in_mid_batch_it_loses_nothing_and_doubles_nothing(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start()
    stream = stream_of(fleet)
    with table_locked(fleet):
        await stream.say(200)
        await stream.announce(50)
        await in_thread(lambda: eventually(lambda: somebody_waits(fleet), timeout=60))
        fleet.recorders[0].kill()
    assert recorded(fleet) == (0, 0, 0)
    fleet.recorders[0].start()
    await in_thread(fleet.until_recorded)
    assert recorded(fleet) == (250, 200, 50)
    assert gaps(fleet) == []


async def test_killed_after_its_commit_it_doubles_nothing(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start()
    stream = stream_of(fleet)
    with table_locked(fleet):
        await stream.say(20)
        await stream.announce(20)
        await in_thread(lambda: eventually(lambda: somebody_waits(fleet), timeout=60))
        fleet.valkey.stop()
    await in_thread(lambda: eventually(lambda: recorded(fleet)[0] > 0, timeout=60))
    fleet.recorders[0].kill()
    fleet.valkey.start()
    assert stream.length == 40, "nothing was acknowledged"
    fleet.recorders[0].start()
    await in_thread(fleet.until_recorded)
    assert recorded(fleet) == (40, 20, 20)
    assert gaps(fleet) == []


async def test_two_recorders_share_the_work_and_one_may_die_of_it(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start(2)
    stream = stream_of(fleet)

    async def talk(session_id: str) -> None:
        await stream.say(400, session_id=session_id)
        await stream.announce(20)

    talking = [asyncio.create_task(talk(f"session-{number}")) for number in range(10)]
    await aeventually(lambda: in_thread(lambda: recorded(fleet)[0] > 300), timeout=60)
    fleet.recorders[0].kill()
    await asyncio.gather(*talking)
    await in_thread(fleet.until_recorded)
    assert recorded(fleet) == (4200, 4000, 200)
    assert gaps(fleet) == []
    assert fleet.recorders[1].stop() == 0


async def test_one_that_stands_still_in_mid_transaction_holds_up_nobody_for_ever(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start(2, env={"RECORDER_TRANSACTION_IDLE_SECONDS": "1"})
    frozen, other = fleet.recorders
    assert other.stop() == 0
    stream = stream_of(fleet)
    with table_locked(fleet, "recorder_recordedgap"):
        # The rows are inserted, and the gap of what cannot be read waits for the lock.
        await asyncio.gather(stream.say(30), stream.announce(3))
        stream.put(p="", g="session.s", m=b"\xc1")
        await in_thread(lambda: eventually(lambda: somebody_waits(fleet), timeout=60))
        frozen.freeze()
    other.start()
    await in_thread(fleet.until_recorded)
    frozen.thaw()
    await stream.say(5)
    await in_thread(fleet.until_recorded)
    assert recorded(fleet) == (38, 35, 3)
    assert gaps(fleet) == [("s", "", "", 1)]
    assert (frozen.stop(), other.stop()) == (0, 0)


async def test_without_its_database_it_acknowledges_nothing_and_catches_up(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start(proxied=True)
    assert fleet.postgres is not None
    stream = stream_of(fleet)
    await stream.say(10)
    await in_thread(fleet.until_recorded)
    fleet.postgres.cut()
    await stream.say(200)
    await in_thread(lambda: eventually(lambda: "trying again" in fleet.recorders[0].output(), timeout=60))
    assert stream.length == 200
    fleet.postgres.restore()
    await in_thread(fleet.until_recorded)
    assert recorded(fleet) == (210, 210, 0)
    assert gaps(fleet) == []
    assert fleet.recorders[0].stop() == 0


async def test_told_to_stop_without_its_database_it_ends_and_leaves_the_work_to_others(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start(proxied=True, env={"RECORDER_CLOSE_SECONDS": "1"})
    assert fleet.postgres is not None
    stream = stream_of(fleet)
    fleet.postgres.cut()
    await stream.say(20)
    await in_thread(lambda: eventually(lambda: "trying again" in fleet.recorders[0].output(), timeout=60))
    assert await in_thread(fleet.recorders[0].stop) == 0
    assert stream.length == 20
    fleet.postgres.restore()
    fleet.recorders[0].start()
    await in_thread(fleet.until_recorded)
    assert recorded(fleet) == (20, 20, 0)


async def test_a_store_that_comes_back_with_its_data_is_read_on(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start()
    stream = stream_of(fleet)
    with table_locked(fleet):
        await stream.say(50)
        await stream.announce(5)
        await in_thread(lambda: eventually(lambda: somebody_waits(fleet), timeout=60))
        fleet.valkey.kill()
    fleet.valkey.start()
    await stream.say(50)
    await in_thread(fleet.until_recorded)
    assert recorded(fleet) == (105, 100, 5)
    assert gaps(fleet) == []
    assert fleet.query("SELECT ended_ms FROM recorder_recorderrun") == [(None,)]


async def test_a_store_that_comes_back_without_its_data_is_named(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start(durable=False)
    stream = stream_of(fleet)
    await stream.say(10)
    await in_thread(fleet.until_recorded)
    fleet.valkey.kill()
    fleet.valkey.start()
    await aeventually(
        lambda: in_thread(lambda: len(fleet.query("SELECT 1 FROM recorder_recorderrun")) == 2), timeout=60
    )
    await stream.say(10)
    await in_thread(fleet.until_recorded)
    assert recorded(fleet)[:2] == (20, 20)
    [(session_id, first, last, events)] = gaps(fleet)
    assert (session_id, events) == ("", 0)
    assert first < last
    old, new = fleet.query("SELECT ended_ms, ended_cleanly, started_ms FROM recorder_recorderrun ORDER BY id")
    assert (old[0], old[1], new[0]) == (new[2], False, None)


async def test_what_cannot_be_recorded_is_named_and_holds_up_nothing(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start()
    assert fleet.recorders[0].stop() == 0
    stream = stream_of(fleet, recorder_stream_bytes=4000)
    positions = await stream.say(20)
    kept = stream.length
    stream.put(p="7-7", g="session.s", m=b"no message")
    fleet.recorders[0].start()
    await in_thread(fleet.until_recorded)
    await aeventually(lambda: in_thread(lambda: len(gaps(fleet)) == 2), timeout=60)
    assert recorded(fleet) == (kept, kept, 0)
    assert sorted(gaps(fleet)) == [
        ("s", "7-7", "7-7", 1),
        ("session-1", str(positions[kept]), str(positions[-1]), 20 - kept),
    ]


async def test_a_store_that_is_full_is_emptied(start: Start, stream_of: Callable[..., Stream]) -> None:
    fleet = start()
    assert fleet.recorders[0].stop() == 0
    stream = stream_of(fleet)
    await stream.say(50)
    await stream.announce(5)
    stream.client.hset(stream.keys.gaps, "session.s", "7-1 7-1 1")
    stream.client.config_set("maxmemory", "1mb")
    with pytest.raises(redis.OutOfMemoryError):
        stream.client.set("anything", "more")
    fleet.recorders[0].start()
    await in_thread(fleet.until_recorded)
    assert recorded(fleet) == (55, 50, 5)
    await aeventually(lambda: in_thread(lambda: gaps(fleet) == [("s", "7-1", "7-1", 1)]), timeout=60)
    assert fleet.recorders[0].stop() == 0


async def test_told_to_stop_it_finishes_what_it_has_and_leaves(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start()
    stream = stream_of(fleet)
    with table_locked(fleet):
        await stream.say(30)
        await in_thread(lambda: eventually(lambda: somebody_waits(fleet), timeout=60))
        in_hand = stream.client.xpending(stream.keys.stream, "recorders")["pending"]
        fleet.recorders[0].terminate()
    assert await in_thread(fleet.recorders[0].wait) == 0
    assert in_hand > 0
    assert recorded(fleet)[0] >= in_hand
    assert stream.length == 30 - recorded(fleet)[0]
    assert stream.client.xinfo_consumers(stream.keys.stream, "recorders") == []
    [(until_ms,)] = fleet.query("SELECT recorded_until_ms FROM recorder_recorderrun")
    assert until_ms is not None


async def test_status_tells_how_far_behind_it_is(start: Start, stream_of: Callable[..., Stream]) -> None:
    fleet = start()
    stream = stream_of(fleet)
    await stream.say(2)
    await in_thread(fleet.until_recorded)
    told = fleet.manage("runrecorder", "--status", "--max-lag-seconds", "30")
    assert "waiting   0 envelopes, 0 bytes" in told
    assert "recorders 1" in told
    fleet.recorders[0].kill()
    await stream.say(3)
    stream.client.hset(stream.keys.gaps, "session.s", "7-1 7-1 1")
    told = fleet.manage("runrecorder", "--status")
    assert "waiting   3 envelopes" in told
    assert "gaps      of 1 sessions" in told
    behind = command(fleet, "--status", "--max-lag-seconds", "0.001")
    assert behind.returncode == 1
    assert "behind, more than 0.001 s" in behind.stderr
    fleet.valkey.kill()
    away = command(fleet, "--status")
    assert away.returncode == 1
    assert "does not answer" in away.stderr


def command(fleet: Fleet, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "manage.py", "runrecorder", *arguments],
        cwd=ROOT,
        env={**os.environ, **fleet.env, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


async def test_it_waits_for_a_store_and_a_database_that_are_not_there_yet(
    start: Start, stream_of: Callable[..., Stream]
) -> None:
    fleet = start(proxied=True)
    assert fleet.postgres is not None
    fleet.recorders[0].stop()
    fleet.valkey.stop()
    fleet.postgres.cut()
    fleet.recorders[0].start()
    fleet.valkey.start()
    stream = stream_of(fleet)
    await stream.say(5)
    fleet.postgres.restore()
    await in_thread(fleet.until_recorded)
    assert recorded(fleet) == (5, 5, 0)


async def test_on_sqlite_it_records_as_well(tmp_path: Path) -> None:
    valkey = ValkeyProcess().start()
    env = {
        **os.environ, **HURRIED, "DATABASE_URL": new_sqlite(tmp_path), "REDIS_URL": valkey.url,
        "DATA_DIR": str(tmp_path),
    }  # fmt: skip
    recorder = TestedProcess(
        "recorder",
        [sys.executable, "manage.py", "runrecorder"],
        tmp_path / "log",
        env=env,
        ready=RECORDER_READY,
    )
    stream = Stream(valkey.url, "backchannel")
    try:
        recorder.start()
        await stream.say(100)
        await stream.announce(10)
        await in_thread(stream.until_recorded)
        recorder.process.send_signal(signal.SIGINT)  # type: ignore[union-attr]
        assert await in_thread(recorder.wait) == 0
        told = command_output(env)
        assert "110" in told
    finally:
        await stream.layer.aclose()
        recorder.close()
        valkey.close()


def command_output(env: dict[str, str]) -> str:
    count = "from recorder.models import RecordedEnvelope as R; print(R.objects.count())"
    return subprocess.run(
        [sys.executable, "manage.py", "shell", "--no-imports", "-c", count],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip


def test_without_a_store_it_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "runrecorder"],
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": "", "DATABASE_URL": new_sqlite(tmp_path), "DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Set REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr
