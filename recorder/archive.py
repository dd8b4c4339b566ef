"""The second resume tier: what a session's log no longer holds, from the recorded rows."""

import logging
from itertools import groupby
from typing import Any

import msgspec
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.db.models import Q

from comm.archive import Archive
from comm.groups import session_group
from comm.history import Entry, Position
from comm.publisher import MESSAGE_TYPE, at_home
from comm.tenants import every_tenant

from .conf import recorder_settings
from .lives import time_text
from .models import RecordedEnvelope, RecordedGap, RecorderRun
from .sink import flush_running

logger = logging.getLogger(__name__)

FOLD_WAIT_SECONDS = 2.0
"""How long the text of a turn waits for the recorder: who declares a dead worker's turn has some seconds left."""


class RecordedArchive(Archive):
    """Answers from the rows, and only for what it can vouch for.

    Sequence numbers within an epoch have no gap, so a missing row shows. What no number shows is how far an
    epoch went, and whether another one came after it of which nothing was written. For that vouch the runs:
    each from the one epoch to the next has ended cleanly, or is the present one. What a run that went on
    could not record, its gaps name.

    Rows are as new as their recorder: a sink of this process is flushed; a recorder process is waited for where
    the answer depends on it, for ARCHIVE_WAIT_SECONDS. While it is behind, nobody vouches.

    It answers for one session at a time, and a session may have streams in several tenants.
    """

    async def read(self, session_id: str, after: Position, upto: Position, limit: int) -> list[Entry] | None:
        """Return the oldest `limit` rows with `after < position <= upto`; None where rows may be missing."""
        await flush_running()
        read = database_sync_to_async(_read)
        if not _has_process():
            return await read(session_id, after, upto, limit)
        entries = await read(session_id, after, upto, limit)
        if entries is not None and after.epoch == _end(entries, upto, limit).epoch:
            # Their numbers alone say that they are all there are.
            return entries
        if not await _recorded_up_to_now(recorder_settings().ARCHIVE_WAIT_SECONDS):
            return None
        return await read(session_id, after, upto, limit)

    async def fold_text(self, session_id: str, turn_id: str, marker: str) -> str:
        """Return the concatenated text of one marker of a turn, as far as it was recorded."""
        await flush_running()
        if _has_process():
            await _recorded_up_to_now(FOLD_WAIT_SECONDS)
        return await database_sync_to_async(_fold_text)(session_id, turn_id, marker)


def _has_process() -> bool:
    """Tell whether a recorder process writes the rows: the layer is one of several processes."""
    return bool(getattr(get_channel_layer(), "shared", False))


async def _recorded_up_to_now(timeout: float) -> bool:
    """Wait until all that was published before this call is recorded; False when it is not so in time."""
    layer: Any = get_channel_layer()
    try:
        recorded: bool = await at_home(layer.recorded_up_to_now(timeout))
    except OSError as error:
        logger.warning("Nobody can say whether all is recorded: %s", error)
        return False
    return recorded


@every_tenant()
def _read(session_id: str, after: Position, upto: Position, limit: int) -> list[Entry] | None:
    if after > upto or not _was_given_out(session_id, after):
        return None
    rows = RecordedEnvelope.objects.filter(session_id=session_id).after(after).upto(upto).in_order()
    entries = [_entry(row) for row in rows[:limit]]
    end = _end(entries, upto, limit)
    whole = _is_whole(entries, after, end) and not _has_gap(session_id, after, end)
    return entries if whole else None


def _end(entries: list[Entry], upto: Position, limit: int) -> Position:
    """The position up to which these entries are an answer."""
    return upto if len(entries) < limit else entries[-1].position


def _was_given_out(session_id: str, position: Position) -> bool:
    """Tell whether this was a position of this session: its row says so; 0 stands before the first row."""
    rows = RecordedEnvelope.objects.filter(session_id=session_id, epoch=position.epoch)
    if position.seq == 0:
        # No row of the epoch may exist: a stream was opened and nothing was said.
        return True
    return rows.filter(seq=position.seq).exists()


def _is_whole(entries: list[Entry], after: Position, end: Position) -> bool:
    """Tell whether nothing lies between `after` and `end` but these entries."""
    by_epoch = groupby(entries, lambda entry: entry.position.epoch)
    seqs: dict[int, list[int]] = {after.epoch: [], end.epoch: []}
    seqs.update((epoch, [entry.position.seq for entry in of]) for epoch, of in by_epoch)
    epochs = sorted(seqs)
    for epoch in epochs:
        begin = after.seq if epoch == after.epoch else 0
        if seqs[epoch] != list(range(begin + 1, begin + 1 + len(seqs[epoch]))):
            return False
    reached = (after.seq if end.epoch == after.epoch else 0) + len(seqs[end.epoch])
    return reached == end.seq and all(map(_nothing_lost_between, epochs, epochs[1:]))


def _nothing_lost_between(epoch: int, later: int) -> bool:
    """Tell whether all that was published from one epoch's last row to a later epoch is here."""
    first, last = _run_at(epoch), _run_at(later)
    if first is None or last is None:
        return False
    if first == last and not (first.ended_cleanly or _is_present(first)):
        return False
    if _everybody_missed_some(epoch, later):
        return False
    between = RecorderRun.objects.filter(started_ms__gte=first.started_ms, started_ms__lte=later)
    return not between.exclude(pk=last.pk).filter(ended_cleanly=False).exists()


def _everybody_missed_some(epoch: int, later: int) -> bool:
    """Tell whether a gap of every session lies in the time from one epoch's beginning to another's."""
    gaps = RecordedGap.objects.filter(session_id="", first__lte=time_text(later), last__gt=time_text(epoch))
    return gaps.exists()


def _run_at(epoch: int) -> RecorderRun | None:
    """The run that recorded when an epoch began; None when nobody did."""
    runs = RecorderRun.objects.filter(
        Q(ended_ms__isnull=True) | Q(ended_ms__gte=epoch), started_ms__lte=epoch
    )
    return runs.order_by("-started_ms", "-id").first()


def _is_present(run: RecorderRun) -> bool:
    """Tell whether this run is the newest: its buffer was flushed before anything was asked."""
    return not RecorderRun.objects.filter(Q(started_ms__gt=run.started_ms) | Q(pk__gt=run.pk)).exists()


def _has_gap(session_id: str, after: Position, end: Position) -> bool:
    """Tell whether a gap is known between `after` and `end`."""
    # Where only a digest names the session, the gap has its group's name.
    names = [session_id, session_group(session_id)]
    gaps = RecordedGap.objects.filter(session_id__in=names).exclude(first="").values_list("first", "last")
    return any(after < Position.parse(last) and Position.parse(first) <= end for first, last in gaps)


def _entry(row: RecordedEnvelope) -> Entry:
    position = row.position
    assert position is not None, "the query keeps rows with a position"
    message = {
        "type": MESSAGE_TYPE,
        "route": row.event,
        "target_sid": row.target_sid or None,
        "body": row.data.encode(),
    }
    return Entry(position, message)


@every_tenant()
def _fold_text(session_id: str, turn_id: str, marker: str) -> str:
    rows = RecordedEnvelope.objects.filter(session_id=session_id, turn_id=turn_id, marker=marker).in_order()
    bodies = rows.values_list("data", flat=True).iterator()
    return "".join(_decoder.decode(body).delta.text for body in bodies)


class _Delta(msgspec.Struct):
    text: str = ""


class _Body(msgspec.Struct):
    delta: _Delta


_decoder = msgspec.json.Decoder(_Body)
