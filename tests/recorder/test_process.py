"""The recorder process, on a thread: everything once, and an honest row where something is missing."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from django.db import connection

from comm.groups import project_group
from comm.recorder_stream import OTHER_GROUPS, pack
from recorder.models import RecordedEnvelope, RecordedGap, RecorderRun
from recorder.postgres import bound_connection
from recorder.rows import write_rows
from tests.recorder.publishing import published
from tests.recorder.streaming import Stream, message_of
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

Within = Callable[[Callable[[], Any]], Awaitable[Any]]


@pytest.fixture(autouse=True)
def hurried(settings: Any) -> None:
    """Let a recorder of these tests wait for nothing long."""
    settings.RECORDER = {"FLUSH_SECONDS": 0.02, "CLAIM_SECONDS": 0.2, "CLOSE_SECONDS": 1.0}


def rows() -> list[tuple[str, int | None]]:
    return list(
        RecordedEnvelope.objects.order_by("session_id", "epoch", "seq").values_list("session_id", "seq")
    )


def gaps() -> list[tuple[str, str, str, int]]:
    columns = ("session_id", "first", "last", "events")
    return list(RecordedGap.objects.order_by("session_id", "first").values_list(*columns))


def record_all(stream: Stream) -> None:
    with stream.recording():
        stream.until_recorded()


async def test_what_the_layer_took_becomes_the_row_that_a_sink_would_write(
    stream: Stream, within: Within
) -> None:
    [position] = await stream.say(target_sid="tab-1", text="Grüße\n")
    await within(lambda: record_all(stream))
    row = await RecordedEnvelope.objects.aget()
    assert row.position == position
    assert row.data.encode() == published(1, text="Grüße\n").body
    assert (row.session_id, row.target_sid, row.event) == ("session-1", "tab-1", "chat_delta")
    assert (row.tenant, row.user, row.turn_id, row.marker) == ("acme", "ada", "turn-1", "answer")
    assert not stream.client.exists(stream.keys.held)


async def test_a_backlog_of_many_batches_is_recorded_whole(stream: Stream, within: Within) -> None:
    for session in range(5):
        await stream.say(300, session_id=f"session-{session}")
    await stream.announce(50)
    await within(lambda: record_all(stream))
    found = await within(rows)
    assert [seq for name, seq in found if name == "session-3"] == list(range(1, 301))
    assert sum(seq is None for _, seq in found) == 50
    assert len(found) == 1550


async def test_what_was_committed_and_not_acknowledged_is_not_written_twice(
    stream: Stream, within: Within
) -> None:
    positions = await stream.say(30)
    await stream.announce(30)
    dead = stream.another()

    def commit_and_die() -> None:
        dead.join()
        taken = [entry_id.decode() for entry_id, _ in dead.read(100, wait=True)]
        with_position = [published(seq, epoch=epoch) for epoch, seq in positions]
        without = [published(None, type="chat.service") for _ in range(30)]
        assert write_rows([*with_position, *without], [], taken) == []
        dead.close()

    await within(commit_and_die)
    await within(lambda: record_all(stream))
    assert len(await within(rows)) == 60


async def test_what_another_recorder_holds_is_left_alone_until_it_has_held_it_too_long(
    stream: Stream, within: Within, settings: Any
) -> None:
    settings.RECORDER = {**settings.RECORDER, "CLAIM_SECONDS": 3600.0}
    await stream.say(3)
    slow = stream.another("slow")
    slow.join()
    assert len(slow.read(2, wait=True)) == 2

    def until_the_third() -> None:
        with stream.recording():
            eventually(lambda: stream.length == 2, timeout=60)

    await within(until_the_third)
    assert [seq for _, seq in await within(rows)] == [3]
    settings.RECORDER = {**settings.RECORDER, "CLAIM_SECONDS": 0.01}
    await within(lambda: record_all(stream))
    assert [seq for _, seq in await within(rows)] == [1, 2, 3]
    slow.close()


POISON: list[dict[str, Any]] = [
    {"p": "", "g": "session.s", "m": b"\xc1"},
    {"p": "7-8", "g": "session.s", "m": b""},
    {"p": "7-8", "g": "session.s", "m": msgspec.msgpack.encode([1])},
    {"p": "7-8", "g": "session.s"},
    {"p": "seven", "g": "session.s", "m": pack(message_of(published(1), "session.s"))},
    {"p": "7-8", "g": b"\xff", "m": b"\xff"},
    {"p": "7-8", "g": "session.s", "m": pack({"type": "relay.envelope", "body": b"{}"})},
    {"p": "7-8", "g": "session.s", "m": pack({"route": "r", "target_sid": None, "body": b"{"})},
    {"p": "7-8", "g": "session.s", "m": pack({"route": "r", "target_sid": None, "body": b"[" * 100_000})},
    {"p": "7-8", "g": "session.s", "m": pack({"route": "r", "target_sid": 5, "body": b"{}"})},
    {"p": "7-8", "g": "session.s", "m": pack({"route": "r", "target_sid": None, "body": "{}"})},
    {"else": "1"},
]


async def test_an_entry_that_cannot_be_read_is_a_gap_and_holds_up_no_other(
    stream: Stream, within: Within, caplog: pytest.LogCaptureFixture
) -> None:
    await stream.say(1)
    for fields in POISON:
        stream.put(**fields)
    await stream.say(1)
    await within(lambda: record_all(stream))
    assert [seq for _, seq in await within(rows)] == [1, 2]
    found = await within(gaps)
    assert len(found) == len(POISON)
    assert ("s", "7-8", "7-8", 1) in found
    assert ("(unknown)", "", "", 1) in found
    assert caplog.text.count("becomes a gap") == len(POISON)
    assert not stream.client.exists(stream.keys.held)


async def test_an_unreadable_entry_that_comes_again_is_one_gap(stream: Stream, within: Within) -> None:
    entry_id = stream.put(p="7-8", g="session.s", m=b"\xc1")
    await within(lambda: record_all(stream))
    stream.client.xadd(stream.keys.stream, {"p": "", "g": "g", "m": b""})
    stream.client.delete(stream.keys.stream)
    stream.client.xadd(stream.keys.stream, {"p": "7-8", "g": "session.s", "m": b"\xc1"}, id=entry_id)
    await within(lambda: record_all(stream))
    assert [gap for gap in await within(gaps) if gap[0] == "s"] == [("s", "7-8", "7-8", 1)]


async def test_a_row_that_the_database_refuses_is_a_gap(stream: Stream, within: Within) -> None:
    await stream.say(1)
    await stream.say(1, after_ms=2**60)
    await stream.say(1)
    await within(lambda: record_all(stream))
    assert [seq for _, seq in await within(rows)] == [1, 3]
    [(session_id, first, last, events)] = await within(gaps)
    assert (session_id, events) == ("session-1", 1)
    assert first == last
    assert first.endswith("-2")


async def test_what_found_no_room_is_named_exactly(
    make_stream: Callable[..., Stream], within: Within
) -> None:
    stream = make_stream(recorder_stream_bytes=3000)
    positions = await stream.say(10)
    await stream.announce(2)
    kept = stream.length
    assert 0 < kept < 10
    await within(lambda: record_all(stream))
    assert await within(gaps) == [
        (project_group("acme", "shop"), "", "", 2),
        ("session-1", str(positions[kept]), str(positions[-1]), 10 - kept),
    ]
    assert len(await within(rows)) == kept
    later = await stream.say(1)
    await within(lambda: record_all(stream))
    assert later[0].seq in [seq for _, seq in await within(rows)]


async def test_gaps_that_a_dead_recorder_had_taken_are_named_once(stream: Stream, within: Within) -> None:
    stream.client.hset(stream.keys.gaps, "session.s", "7-1 7-4 4")
    dead = stream.another()
    taking = dead.take_gaps()
    dead.close()
    assert taking is not None
    stream.client.hset(stream.keys.gaps, "session.s", "7-6 7-6 1")
    before = stream.client.hgetall(stream.keys.taken)
    await within(lambda: record_all(stream))
    # It had committed as well, and only its last word was lost.
    stream.client.hset(stream.keys.taken, mapping=before)
    await within(lambda: record_all(stream))
    assert await within(gaps) == [("s", "7-1", "7-4", 4), ("s", "7-6", "7-6", 1)]


async def test_what_the_store_came_back_without_is_missing_unless_it_was_recorded(
    stream: Stream, within: Within
) -> None:
    positions = await stream.say(4)
    await within(lambda: record_all(stream))
    epoch = positions[0].epoch
    stream.client.hset(
        stream.keys.gaps,
        mapping={
            "session.session-1": f"{epoch}-3 {epoch}-4 2 back",
            "session.partly": f"{epoch}-3 {epoch}-4 2 back",
            "session.elder": f"{epoch - 1}-3 {epoch}-4 4 back",
        },
    )
    await RecordedEnvelope.objects.filter(session_id="session-1", seq=3).aupdate(session_id="partly")
    await RecordedEnvelope.objects.filter(session_id="session-1", seq=1).aupdate(seq=3)
    await within(lambda: record_all(stream))
    assert await within(gaps) == [
        ("elder", f"{epoch - 1}-3", f"{epoch}-4", 4),
        ("partly", f"{epoch}-3", f"{epoch}-4", 1),
    ]
    assert "crashed" in (await RecordedGap.objects.afirst()).reason  # type: ignore[union-attr]


async def test_a_gap_that_goes_on_while_it_is_written_is_not_forgotten(stream: Stream) -> None:
    stream.client.hset(stream.keys.gaps, "session.s", "7-1 7-4 4")
    first = stream.another("first")
    taking = first.take_gaps()
    assert taking is not None
    stream.client.hset(stream.keys.gaps, "session.s", "7-5 7-5 1")
    first.end_taking(taking)
    following = first.take_gaps()
    assert following is not None
    assert following.gaps == {b"session.s": b"7-5 7-5 1"}
    first.end_taking(taking)
    assert stream.client.exists(stream.keys.taken), "the end of another taking changes nothing"
    first.close()


async def test_gaps_of_sessions_that_nobody_could_name_are_a_time(stream: Stream, within: Within) -> None:
    stream.client.hset(stream.keys.gaps, OTHER_GROUPS, "- - 12")
    stream.client.hset(stream.keys.gaps, "session.s", "no note")
    await within(lambda: record_all(stream))
    [everybody, unreadable] = await within(gaps)
    assert everybody[0] == ""
    assert everybody[3] == 12
    assert everybody[1] <= everybody[2]
    assert unreadable == ("s", "", "", 0)


async def test_rows_wait_for_a_database_that_is_away(
    stream: Stream, within: Within, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await stream.say(3)

    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")

    def record_late() -> None:
        rename("recorder_recordedenvelope", "elsewhere")
        try:
            with stream.recording():
                eventually(lambda: "took no rows" in caplog.text, timeout=60)
                assert stream.length == 3
                rename("elsewhere", "recorder_recordedenvelope")
                stream.until_recorded()
        except BaseException:
            rename("elsewhere", "recorder_recordedenvelope")
            raise

    await within(record_late)
    assert [seq for _, seq in await within(rows)] == [1, 2, 3]
    assert await within(gaps) == []


async def test_a_recorder_that_leaves_is_no_consumer_any_more_and_drops_what_nobody_holds(
    stream: Stream, within: Within
) -> None:
    await stream.say(2)
    holding = stream.another("holding")
    holding.join()
    holding.read(1, wait=True)
    holding.leave()
    assert [c["name"] for c in stream.client.xinfo_consumers(stream.keys.stream, "recorders")] == [b"holding"]
    await within(lambda: record_all(stream))
    holding.leave()
    holding.close()
    assert stream.client.xinfo_consumers(stream.keys.stream, "recorders") == []
    assert [seq for _, seq in await within(rows)] == [1, 2]


async def test_the_store_counts_nothing_that_it_does_not_hold(stream: Stream) -> None:
    await stream.say(2)
    store = stream.another()
    store.join()
    entries = [entry_id.decode() for entry_id, _ in store.read(10, wait=True)]
    held = int(stream.client.get(stream.keys.held))
    assert store.acknowledge({entries[0]: held // 2}) == 1
    assert store.acknowledge({entries[0]: held // 2}) == 0, "it is given back once"
    assert int(stream.client.get(stream.keys.held)) == held - held // 2
    assert store.acknowledge({entries[1]: 1}) == 1
    assert not stream.client.exists(stream.keys.held), "an empty stream holds nothing"
    store.close()


async def test_a_run_is_the_stores_life_whatever_recorders_come_and_go(
    stream: Stream, within: Within
) -> None:
    for _ in range(3):
        await stream.say(1)
        await within(lambda: record_all(stream))
    run = await RecorderRun.objects.aget()
    assert run.started_ms == run.store_born_ms == int(stream.client.get(stream.keys.born))
    assert (run.ended_ms, run.ended_cleanly) == (None, False)
    assert run.recorded_until_ms is not None
    assert run.recorded_until_ms >= run.started_ms


async def test_a_store_that_lost_its_data_under_a_recorder_is_named_and_recorded_on(
    stream: Stream, within: Within
) -> None:
    await stream.say(2)

    def lose_meanwhile() -> None:
        with stream.recording():
            stream.until_recorded()
            stream.lose_everything()
            eventually(lambda: RecorderRun.objects.count() == 2, timeout=60)
            stream.client.ping()

    await within(lose_meanwhile)
    await stream.say(2)
    await within(lambda: record_all(stream))
    old, new = [run async for run in RecorderRun.objects.order_by("started_ms")]
    assert (old.ended_ms, old.ended_cleanly) == (new.started_ms, False)
    gap = await RecordedGap.objects.aget()
    assert (gap.session_id, gap.events) == ("", 0)
    assert gap.first < gap.last
    assert "lost its data" in gap.reason
    assert len(await within(rows)) == 4


@pytest.mark.postgresql
def test_postgresql_ends_the_pauses_of_a_recorders_transactions(settings: Any) -> None:
    settings.RECORDER = {"TRANSACTION_IDLE_SECONDS": 3.5}
    present = connection.settings_dict
    try:
        bound_connection()
        with connection.cursor() as cursor:
            cursor.execute("SHOW idle_in_transaction_session_timeout")
            assert cursor.fetchone() == ("3500ms",)
            cursor.execute("SHOW application_name")
            assert cursor.fetchone() == ("backchannel-recorder",)
    finally:
        connection.close()
        connection.settings_dict = present
