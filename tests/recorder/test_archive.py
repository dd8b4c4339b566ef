"""The archive vouches for what it has, and for nothing else."""

import time
from datetime import UTC, datetime

import pytest

from comm.history import Position
from recorder.archive import RecordedArchive
from recorder.models import RecordedEnvelope, RecordedGap, RecorderRun

pytestmark = pytest.mark.django_db(transaction=True)

OLD, PRESENT = 1000, 5000
"""Epochs: one of a run that has ended, one of the present run."""


async def record(epoch: int, *seqs: int, session_id: str = "s", **fields: str) -> None:
    for seq in seqs:
        await RecordedEnvelope.objects.acreate(
            session_id=session_id, epoch=epoch, seq=seq, event="chat_delta", timestamp=datetime.now(UTC),
            data=f'{{"delta":{{"text":"<{seq}>"}}}}', tenant="t", project="p", type="chat.delta",
            route="chat_delta", **fields,
        )  # fmt: skip


async def runs(*, old_was_clean: bool = True) -> None:
    ended_ms = 2000 if old_was_clean else None
    await RecorderRun.objects.acreate(started_ms=900, ended_ms=ended_ms, ended_cleanly=old_was_clean)
    await RecorderRun.objects.acreate(started_ms=4900)


async def read(after: Position, upto: Position, limit: int = 100, session_id: str = "s") -> list[str] | None:
    entries = await RecordedArchive().read(session_id, after, upto, limit)
    return None if entries is None else [str(entry.position) for entry in entries]


async def test_rows_between_two_positions_of_an_epoch_are_returned_in_order() -> None:
    await runs()
    await record(PRESENT, 3, 1, 2, 4, 5)
    assert await read(Position(PRESENT, 1), Position(PRESENT, 4)) == ["5000-2", "5000-3", "5000-4"]
    assert await read(Position(PRESENT, 0), Position(PRESENT, 2)) == ["5000-1", "5000-2"]
    assert await read(Position(PRESENT, 4), Position(PRESENT, 4)) == []


async def test_entries_are_messages_as_the_layer_has_them() -> None:
    await runs()
    await record(PRESENT, 1, target_sid="tab-1")
    entries = await RecordedArchive().read("s", Position(PRESENT, 0), Position(PRESENT, 1), 10)
    assert entries is not None
    assert entries[0].message["body"] == b'{"delta":{"text":"<1>"}}'
    assert entries[0].message["route"] == "chat_delta"
    assert entries[0].message["target_sid"] == "tab-1"


async def test_a_missing_row_is_vouched_for_by_nobody() -> None:
    await runs()
    await record(PRESENT, 1, 2, 4)
    assert await read(Position(PRESENT, 1), Position(PRESENT, 4)) is None
    assert await read(Position(PRESENT, 1), Position(PRESENT, 5)) is None


async def test_rows_that_do_not_reach_the_log_are_vouched_for_by_nobody() -> None:
    await runs()
    await record(PRESENT, 1, 2)
    assert await read(Position(PRESENT, 1), Position(PRESENT, 3)) is None


async def test_a_limit_cuts_the_answer_not_the_guarantee() -> None:
    await runs()
    await record(PRESENT, *range(1, 8))
    assert await read(Position(PRESENT, 1), Position(PRESENT, 7), limit=2) == ["5000-2", "5000-3"]
    await RecordedEnvelope.objects.filter(seq=3).adelete()
    assert await read(Position(PRESENT, 1), Position(PRESENT, 7), limit=2) is None


async def test_a_resume_crosses_from_an_epoch_whose_run_ended_cleanly() -> None:
    await runs()
    await record(OLD, 1, 2, 3)
    await record(PRESENT, 1, 2)
    assert await read(Position(OLD, 1), Position(PRESENT, 1)) == ["1000-2", "1000-3", "5000-1"]
    assert await read(Position(OLD, 3), Position(PRESENT, 0)) == []
    assert await read(Position(OLD, 2), Position(PRESENT, 0)) == ["1000-3"]


async def test_the_end_of_an_epoch_whose_run_was_killed_is_unknown() -> None:
    await runs(old_was_clean=False)
    await record(OLD, 1, 2, 3)
    assert await read(Position(OLD, 1), Position(PRESENT, 0)) is None
    assert await read(Position(OLD, 3), Position(PRESENT, 0)) is None


async def test_between_two_epochs_of_a_run_that_was_killed_some_may_be_missing() -> None:
    await runs(old_was_clean=False)
    await record(OLD, 1, 2)
    await record(OLD + 100, 1)
    assert await read(Position(OLD, 1), Position(OLD + 100, 1)) is None
    await RecorderRun.objects.filter(started_ms=900).aupdate(ended_cleanly=True, ended_ms=2000)
    assert await read(Position(OLD, 1), Position(OLD + 100, 1)) == ["1000-2", "1100-1"]


async def test_a_killed_run_between_two_epochs_may_have_had_one_of_its_own() -> None:
    """Its epoch would stand between theirs, and all its rows may have been in the buffer when it died."""
    await runs()
    await RecorderRun.objects.acreate(started_ms=3000)
    await RecorderRun.objects.acreate(started_ms=4950)
    await record(OLD, 1, 2)
    await record(PRESENT, 1)
    assert await read(Position(OLD, 1), Position(PRESENT, 1)) is None
    await RecorderRun.objects.filter(started_ms__in=[3000, 4900]).aupdate(ended_cleanly=True, ended_ms=4000)
    assert await read(Position(OLD, 1), Position(PRESENT, 1)) == ["1000-2", "5000-1"]


async def test_nobody_vouches_for_an_epoch_that_began_when_nobody_recorded() -> None:
    await runs()
    await record(3000, 1, 2)
    await record(PRESENT, 1)
    assert await read(Position(3000, 1), Position(PRESENT, 1)) is None


@pytest.mark.parametrize(
    ("first", "last", "vouched_for"),
    [
        ("4950-1", "4950-9", False),
        ("1000-3", "4950-1", False),
        ("900-1", "1000-1", True),
        ("5000-1", "5000-9", True),
        ("", "", True),
    ],
)
async def test_a_known_gap_is_vouched_for_by_nobody(first: str, last: str, vouched_for: bool) -> None:
    await runs()
    await record(OLD, 1, 2)
    await RecordedGap.objects.acreate(session_id="s", first=first, last=last, events=1, reason="full")
    await RecordedGap.objects.acreate(session_id="other", first="1-1", last="9000-1", events=1, reason="full")
    assert await read(Position(OLD, 1), Position(PRESENT, 0)) == (["1000-2"] if vouched_for else None)


async def test_a_later_epoch_must_begin_at_its_first_row() -> None:
    await runs()
    await record(OLD, 1)
    await record(PRESENT, 2, 3)
    assert await read(Position(OLD, 1), Position(PRESENT, 3)) is None


async def test_a_position_that_this_session_never_had_is_unknown() -> None:
    await runs()
    await record(OLD, 1, 2)
    await record(OLD, 1, 2, 3, 4, session_id="other")
    assert await read(Position(OLD, 4), Position(PRESENT, 0)) is None
    assert await read(Position(OLD + 1, 1), Position(PRESENT, 0)) is None
    assert await read(Position(PRESENT, 9), Position(PRESENT, 3)) is None


async def test_a_stream_on_which_nothing_was_said_can_be_resumed_across_a_clean_restart_only() -> None:
    await runs()
    assert await read(Position(OLD, 0), Position(PRESENT, 0)) == []
    assert await read(Position(50, 0), Position(PRESENT, 0)) is None
    await RecorderRun.objects.filter(started_ms=900).aupdate(ended_cleanly=False, ended_ms=None)
    assert await read(Position(OLD, 0), Position(PRESENT, 0)) is None


async def test_the_present_run_vouches_for_epochs_that_its_layer_has_dropped() -> None:
    now = time.time_ns() // 1_000_000
    await RecorderRun.objects.acreate(started_ms=now)
    await record(now + 1, 1, 2)
    assert await read(Position(now + 1, 1), Position(now + 50, 0)) == [f"{now + 1}-2"]


async def test_the_text_of_a_turn_is_folded_per_marker() -> None:
    await record(PRESENT, 2, 1, turn_id="turn", marker="answer")
    await record(PRESENT, 3, turn_id="turn", marker="thinking")
    await record(PRESENT, 4, turn_id="other", marker="answer")
    assert await RecordedArchive().fold_text("s", "turn", "answer") == "<1><2>"
    assert await RecordedArchive().fold_text("s", "nobody", "answer") == ""
