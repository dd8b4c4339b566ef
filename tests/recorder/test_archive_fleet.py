"""The archive beside a recorder process: it waits for the recorder, and vouches for nothing that may be missing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from channels.layers import channel_layers

from comm.groups import session_group
from comm.history import Position
from recorder.archive import RecordedArchive
from recorder.models import RecordedGap, RecorderRun
from tests.recorder.streaming import Stream
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

Within = Callable[[Callable[[], Any]], Awaitable[Any]]
SESSION = "session-1"
GROUP = session_group(SESSION)


@pytest.fixture(autouse=True)
def hurried(settings: Any) -> None:
    settings.RECORDER = {"FLUSH_SECONDS": 0.02, "CLAIM_SECONDS": 0.2, "ARCHIVE_WAIT_SECONDS": 60.0}


@pytest.fixture
async def stream(make_stream: Callable[..., Stream]) -> AsyncIterator[Stream]:
    """A stream whose layer is the process's, as in a web process of a fleet."""
    with as_layer(make_stream()) as made:
        yield made


@contextmanager
def as_layer(made: Stream) -> Iterator[Stream]:
    present = channel_layers["default"]
    channel_layers.set("default", made.layer)
    try:
        yield made
    finally:
        channel_layers.set("default", present)


async def read(after: Position, upto: Position, limit: int = 100) -> list[str] | None:
    entries = await RecordedArchive().read(SESSION, after, upto, limit)
    return None if entries is None else [str(entry.position) for entry in entries]


async def later_epoch(stream: Stream) -> Position:
    """Let the session's log expire; return where the next one begins."""
    await stream.layer.group_forget(GROUP)
    return await stream.layer.group_tail(GROUP)


def record_all(stream: Stream) -> None:
    with stream.recording():
        stream.until_recorded()


async def test_a_log_that_expired_is_read_from_the_archive_across_epochs(
    stream: Stream, within: Within
) -> None:
    positions = await stream.say(5)
    start = await later_epoch(stream)
    await within(lambda: record_all(stream))
    expected = list(map(str, positions))
    assert await read(positions[1], start) == expected[2:]
    assert await read(Position(positions[0].epoch, 0), start) == expected
    assert await read(positions[-1], start) == []


async def test_a_resume_waits_for_a_recorder_that_is_behind(stream: Stream, within: Within) -> None:
    positions = await stream.say(5)
    start = await later_epoch(stream)
    reading = asyncio.create_task(read(positions[1], start))
    done, _ = await asyncio.wait([reading], timeout=0.3)
    assert not done, "nothing is recorded yet"
    await within(lambda: record_all(stream))
    assert await reading == list(map(str, positions[2:]))


async def test_what_the_numbers_alone_show_to_be_whole_waits_for_nobody(
    stream: Stream, within: Within, settings: Any
) -> None:
    settings.RECORDER = {**settings.RECORDER, "ARCHIVE_WAIT_SECONDS": 0.05}
    positions = await stream.say(5)
    await within(lambda: record_all(stream))
    await stream.say(3)
    assert await read(positions[0], positions[3]) == list(map(str, positions[1:4]))
    assert await read(positions[0], positions[4], limit=2) == list(map(str, positions[1:3]))
    assert await read(positions[0], await later_epoch(stream)) is None, (
        "the end of the epoch needs the recorder"
    )


async def test_without_a_recorder_nobody_vouches(stream: Stream, settings: Any) -> None:
    settings.RECORDER = {**settings.RECORDER, "ARCHIVE_WAIT_SECONDS": 0.1}
    start = await later_epoch(stream)
    assert await read(Position(start.epoch - 1, 0), start) is None
    positions = await stream.say(2)
    start = await later_epoch(stream)
    assert await read(positions[0], start) is None


async def test_recorders_that_come_and_go_within_one_life_of_the_store_vouch(
    stream: Stream, within: Within
) -> None:
    first = await stream.say(3)
    await within(lambda: record_all(stream))
    dead = stream.another("killed with a batch in hand")
    await stream.say(3)
    assert len(dead.read(100, wait=True)) == 3
    dead.close()
    await later_epoch(stream)
    second = await stream.say(2)
    start = await later_epoch(stream)
    await within(lambda: record_all(stream))
    expected = [*(f"{first[0].epoch}-{seq}" for seq in range(2, 7)), *map(str, second)]
    assert await read(first[0], start) == expected
    assert await RecorderRun.objects.acount() == 1


async def test_a_session_older_than_the_first_recorder_is_vouched_for(stream: Stream, within: Within) -> None:
    positions = await stream.say(2)
    start = await later_epoch(stream)
    await within(lambda: record_all(stream))
    assert (await RecorderRun.objects.aget()).started_ms <= positions[0].epoch
    assert await read(positions[0], start) == [str(positions[1])]


async def test_a_store_that_lost_its_data_is_vouched_for_by_nobody(
    stream: Stream, within: Within, settings: Any
) -> None:
    settings.RECORDER = {**settings.RECORDER, "ARCHIVE_WAIT_SECONDS": 0.2}
    lost = await stream.say(3)
    await within(lambda: record_all(stream))
    stream.lose_everything()
    new = await stream.say(1)
    assert new[0].epoch > lost[0].epoch
    assert await read(lost[1], Position(new[0].epoch, 0)) is None, "no recorder has noticed yet"
    await within(lambda: record_all(stream))
    settings.RECORDER = {**settings.RECORDER, "ARCHIVE_WAIT_SECONDS": 60.0}
    assert await read(lost[1], Position(new[0].epoch, 0)) is None
    assert await read(lost[2], new[0]) is None
    start = await later_epoch(stream)
    assert await read(Position(new[0].epoch, 0), start) == [str(new[0])], "the new life is whole"


async def test_events_that_found_no_room_are_vouched_for_by_nobody(
    make_stream: Callable[..., Stream], within: Within
) -> None:
    with as_layer(make_stream(recorder_stream_bytes=3000)) as stream:
        positions = await stream.say(6)
        kept = stream.length
        start = await later_epoch(stream)
        await within(lambda: record_all(stream))
        assert await read(positions[kept - 1], start) is None
        later = await stream.say(1)
        await within(lambda: record_all(stream))
        start = await later_epoch(stream)
        assert await read(Position(later[0].epoch, 0), start) == [str(later[0])]


async def test_a_gap_of_everybody_is_vouched_for_by_nobody(stream: Stream, within: Within) -> None:
    positions = await stream.say(2)
    start = await later_epoch(stream)
    stream.client.hset(stream.keys.gaps, "*", "- - 5")
    await within(lambda: record_all(stream))
    assert await RecordedGap.objects.filter(session_id="").aexists()
    assert await read(positions[0], start) is None
    assert await read(positions[0], positions[1]) == [str(positions[1])]


async def test_a_gap_that_only_the_groups_digest_names_counts(stream: Stream, within: Within) -> None:
    session_id = "a session/with a name that needs a digest"
    positions = await stream.say(2, session_id=session_id)
    group = session_group(session_id)
    await stream.layer.group_forget(group)
    start = await stream.layer.group_tail(group)
    await within(lambda: record_all(stream))
    archive = RecordedArchive()
    assert await archive.read(session_id, positions[0], start, 10) is not None
    lost = f"{positions[0].epoch}-3"
    stream.client.hset(stream.keys.gaps, group, f"{lost} {lost} 1")
    await within(lambda: record_all(stream))
    assert await archive.read(session_id, positions[0], start, 10) is None


async def test_a_recorder_that_comes_back_in_time_saves_a_resume(stream: Stream, within: Within) -> None:
    positions = await stream.say(2)
    await within(lambda: record_all(stream))
    await stream.say(1)
    start = await later_epoch(stream)
    reading = asyncio.create_task(read(positions[1], start))

    def come_back() -> None:
        with stream.recording():
            eventually(lambda: stream.length == 0, timeout=60)

    await within(come_back)
    assert await reading == [f"{positions[0].epoch}-3"]


async def test_the_text_of_a_turn_waits_for_the_recorder_and_not_for_ever(
    stream: Stream, within: Within
) -> None:
    await stream.say(3)
    folding = asyncio.create_task(RecordedArchive().fold_text(SESSION, "turn-1", "answer"))
    await within(lambda: record_all(stream))
    assert await folding == "<1><2><3>"
    await stream.say(1)
    assert await RecordedArchive().fold_text(SESSION, "turn-1", "answer") == "<1><2><3>"
