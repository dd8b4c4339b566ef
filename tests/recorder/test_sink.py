"""The sink: everything once, in batches, and an honest row where something is missing."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, connections, transaction

from comm.envelope import Event
from recorder.models import RecordedEnvelope, RecordedGap, RecorderRun
from recorder.sink import RecorderSink, flush_running
from tests.recorder.publishing import EPOCH, published
from tests.waiting import aeventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
async def closed_connections() -> AsyncIterator[None]:
    """Close the connection of the thread that async queries run on: PostgreSQL drops no database in use."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """Set RECORDER for one test."""

    def configure(**values: Any) -> None:
        settings.RECORDER = values

    return configure


@asynccontextmanager
async def recording() -> AsyncIterator[RecorderSink]:
    sink = RecorderSink()
    await sink.start()
    try:
        yield sink
    finally:
        await sink.aclose()


@asynccontextmanager
async def database_away() -> AsyncIterator[None]:
    """Take the table away: every write fails until it is back."""

    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")
        connection.close()

    await asyncio.to_thread(rename, "recorder_recordedenvelope", "elsewhere")
    try:
        yield
    finally:
        await asyncio.to_thread(rename, "elsewhere", "recorder_recordedenvelope")


async def seqs(session_id: str = "session-1") -> list[int | None]:
    rows = RecordedEnvelope.objects.filter(session_id=session_id).in_order()
    return [row.seq async for row in rows]


async def test_an_envelope_becomes_a_row_that_can_be_found() -> None:
    offered = published(7, target_sid="tab-1", text="Grüße\n")
    async with recording() as sink:
        sink.accept(offered)
    row = await RecordedEnvelope.objects.aget()
    assert (row.session_id, row.epoch, row.seq, row.target_sid) == ("session-1", EPOCH, 7, "tab-1")
    assert row.data.encode() == offered.body
    assert row.timestamp == datetime(2026, 2, 26, 21, 14, 5, 274_000, UTC)
    assert (row.tenant, row.project, row.user) == ("acme", "shop", "ada")
    assert (row.conversation_id, row.turn_id) == ("conversation-1", "turn-1")
    assert (row.type, row.event, row.route) == ("chat.delta", "chat_delta", "chat_delta")
    assert (row.agent, row.marker) == ("writer", "answer")
    assert row.relay_message() == {
        "id": f"{EPOCH}-7",
        "target_sid": "tab-1",
        "session_id": "session-1",
        "event": "chat_delta",
        "data": row.envelope,
        "timestamp": "2026-02-26T21:14:05.274Z",
    }


async def test_rows_are_there_within_a_flush_interval(configure: Callable[..., None]) -> None:
    configure(FLUSH_SECONDS=0.05)
    async with recording() as sink:
        sink.accept(published(1))
        await aeventually(lambda: RecordedEnvelope.objects.aexists(), timeout=5)


async def test_a_full_batch_is_written_before_the_interval_is_over(configure: Callable[..., None]) -> None:
    configure(FLUSH_SECONDS=3600, BATCH_ROWS=10)
    async with recording() as sink:
        for seq in range(1, 11):
            sink.accept(published(seq))
        await aeventually(lambda: RecordedEnvelope.objects.acount(), timeout=5)
        assert await seqs() == list(range(1, 11))


async def test_flush_writes_all_that_was_accepted_before_it(configure: Callable[..., None]) -> None:
    configure(FLUSH_SECONDS=3600, BATCH_ROWS=10)
    async with recording() as sink:
        for seq in range(1, 36):
            sink.accept(published(seq))
        await flush_running()
        assert await seqs() == list(range(1, 36))


async def test_flush_with_nothing_to_write_returns() -> None:
    async with recording() as sink:
        await asyncio.wait_for(sink.flush(), 5)
    await asyncio.wait_for(sink.flush(), 5)


async def test_a_cancelled_flush_costs_nobody_a_row() -> None:
    async with recording() as sink:
        for seq in range(1, 4):
            sink.accept(published(seq))
        sink.accept(published(None, type="chat.service"))
        flushing = asyncio.create_task(sink.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        await sink.flush()
    assert sorted(map(str, await seqs())) == ["1", "2", "3", "None"]


async def test_the_end_writes_what_no_interval_had_written(configure: Callable[..., None]) -> None:
    configure(FLUSH_SECONDS=3600, BATCH_ROWS=10)
    async with recording() as sink:
        for seq in range(1, 26):
            sink.accept(published(seq))
    assert await seqs() == list(range(1, 26))


async def test_a_run_is_clean_only_after_its_end() -> None:
    async with recording() as sink:
        sink.accept(published(1))
        await sink.flush()
        run = await RecorderRun.objects.aget()
        assert (run.ended_cleanly, run.ended_ms) == (False, None)
    run = await RecorderRun.objects.aget()
    assert run.ended_cleanly
    assert run.ended_ms is not None
    assert run.started_ms <= run.ended_ms


async def test_a_position_that_is_offered_twice_is_one_row() -> None:
    async with recording() as sink:
        sink.accept(published(1))
        sink.accept(published(1))
        await sink.flush()
        sink.accept(published(1))
        sink.accept(published(2))
        sink.accept(published(1, session_id="session-2"))
    assert await seqs() == [1, 2]
    assert await seqs("session-2") == [1]


async def test_project_events_have_no_position_and_are_all_kept() -> None:
    async with recording() as sink:
        sink.accept(published(None, type="chat.service"))
        sink.accept(published(None, type="chat.service"))
    assert await seqs() == [None, None]


async def test_rows_wait_for_a_database_that_is_away(
    configure: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    configure(FLUSH_SECONDS=0.01, RETRY_SECONDS=0.05, RETRY_SECONDS_MAX=0.05)
    async with recording() as sink:
        async with database_away():
            sink.accept(published(1))
            with pytest.raises(DatabaseError):
                await sink.flush()
            sink.accept(published(2))
        await aeventually(lambda: RecordedEnvelope.objects.filter(seq=2).aexists(), timeout=10)
        assert await seqs() == [1, 2]
    assert "trying again" in caplog.text
    assert not await RecordedGap.objects.aexists()
    assert (await RecorderRun.objects.aget()).ended_cleanly


async def test_a_database_that_stays_away_holds_up_the_end_only_so_long(
    configure: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    configure(FLUSH_SECONDS=0.01, RETRY_SECONDS=0.02, RETRY_SECONDS_MAX=0.02, CLOSE_SECONDS=0.3)
    sink = RecorderSink()
    await sink.start()
    async with database_away():
        sink.accept(published(1))
        await asyncio.wait_for(sink.aclose(), 10)
    assert "1 envelopes not written" in caplog.text
    assert not (await RecorderRun.objects.aget()).ended_cleanly


async def test_a_full_buffer_drops_the_newest_and_names_them(
    configure: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    configure(FLUSH_SECONDS=3600, BATCH_ROWS=5, BUFFER_EVENTS=5)
    caplog.set_level(logging.WARNING)
    async with recording() as sink:
        for seq in range(1, 9):
            sink.accept(published(seq))
        sink.accept(published(1, session_id="session-2"))
        await sink.flush()
        sink.accept(published(9))
        assert sink.dropped == 4
    assert await seqs() == [1, 2, 3, 4, 5, 9]
    gaps = {gap.session_id: gap async for gap in RecordedGap.objects.all()}
    assert (gaps["session-1"].first, gaps["session-1"].last) == (f"{EPOCH}-6", f"{EPOCH}-8")
    assert gaps["session-1"].events == 3
    assert gaps["session-2"].events == 1
    assert caplog.text.count("buffer is full") == 1
    assert caplog.text.count("Recording everything again") == 1


async def test_a_buffer_full_of_bytes_drops_what_does_not_fit(configure: Callable[..., None]) -> None:
    configure(BUFFER_BYTES=2000, FLUSH_SECONDS=3600)
    async with recording() as sink:
        sink.accept(published(1))
        sink.accept(published(2, text="x" * 2000))
        sink.accept(published(3))
        sink.accept(published(4, text="x" * 2000))
    assert await seqs() == [1, 3]
    gaps = [(gap.first, gap.last) async for gap in RecordedGap.objects.order_by("first")]
    assert gaps == [(f"{EPOCH}-2",) * 2, (f"{EPOCH}-4",) * 2]


async def test_a_gap_that_could_not_be_written_is_one_row_later(configure: Callable[..., None]) -> None:
    configure(FLUSH_SECONDS=3600, BATCH_ROWS=1, BUFFER_EVENTS=1, RETRY_SECONDS=0.01, RETRY_SECONDS_MAX=0.01)
    async with recording() as sink:
        async with database_away():
            for seq in range(1, 4):
                sink.accept(published(seq))
            with pytest.raises(DatabaseError):
                await sink.flush()
            sink.accept(published(4))
        await sink.flush()
    gap = await RecordedGap.objects.aget()
    assert (gap.first, gap.last, gap.events) == (f"{EPOCH}-2", f"{EPOCH}-4", 3)


async def test_accept_does_not_wait_for_a_database_that_is_busy() -> None:
    if connection.vendor != "sqlite":
        lock = 'LOCK TABLE "recorder_recordedenvelope" IN ACCESS EXCLUSIVE MODE'
    else:
        lock = "SELECT 1"
    locked, free = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(lock)
            loop.call_soon_threadsafe(locked.set)
            asyncio.run_coroutine_threadsafe(free.wait(), loop).result(30)
        connection.close()

    async with recording() as sink:
        holding = asyncio.create_task(asyncio.to_thread(hold))
        await locked.wait()
        for seq in range(1, 1001):
            sink.accept(published(seq))
        flushing = asyncio.create_task(sink.flush())
        done, _ = await asyncio.wait([flushing], timeout=0.2)
        assert not done, "the table is locked: nothing can be written yet"
        free.set()
        await holding
        await flushing
    assert len(await seqs()) == 1000


async def test_values_that_do_not_fit_a_column_are_cut_but_the_body_never() -> None:
    offered = published(1, turn_id="t" * 500, event=Event("a\0b" + "x" * 500, "s", "running", "t"))
    async with recording() as sink:
        sink.accept(offered)
    row = await RecordedEnvelope.objects.aget()
    assert row.turn_id == "t" * 64
    assert row.agent == "a\N{REPLACEMENT CHARACTER}b" + "x" * 97
    assert row.data.encode() == offered.body


async def test_a_row_that_the_database_refuses_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    refused = published(2, epoch=2**63, after_ms=EPOCH - 2**63)
    async with recording() as sink:
        sink.accept(published(1))
        sink.accept(refused)
        sink.accept(published(3))
        await sink.flush()
        assert sink.dropped == 1
    assert await seqs() == [1, 3]
    gap = await RecordedGap.objects.aget()
    assert gap.first == gap.last == f"{2**63}-2"
    assert "refused" in gap.reason
    assert "refused 1 rows" in caplog.text


async def test_no_database_at_the_start_is_an_error_of_the_start() -> None:
    sink = RecorderSink()

    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")
        connection.close()

    await asyncio.to_thread(rename, "recorder_recorderrun", "elsewhere")
    try:
        with pytest.raises(DatabaseError):
            await sink.start()
    finally:
        await asyncio.to_thread(rename, "elsewhere", "recorder_recorderrun")
    await sink.aclose()


async def test_a_time_that_no_calendar_has_holds_up_no_other_row() -> None:
    async with recording() as sink:
        sink.accept(published(1, after_ms=2**60))
        sink.accept(published(2))
    assert await seqs() == [2]
