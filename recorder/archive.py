"""The second resume tier: what a session's log no longer holds, from the recorded rows."""

from itertools import groupby

import msgspec
from channels.db import database_sync_to_async
from django.db.models import Q

from comm.archive import Archive
from comm.history import Entry, Position
from comm.publisher import MESSAGE_TYPE

from .models import RecordedEnvelope, RecorderRun
from .sink import flush_running


class RecordedArchive(Archive):
    """Answers from the rows, and only for what it can vouch for.

    Sequence numbers within an epoch have no gap, so a missing row shows. What no number shows is how far an
    epoch went: that is vouched for by its run having ended cleanly, or by the run being the present one.
    """

    async def read(self, session_id: str, after: Position, upto: Position, limit: int) -> list[Entry] | None:
        """Return the oldest `limit` rows with `after < position <= upto`; None where rows may be missing."""
        await flush_running()
        return await database_sync_to_async(_read)(session_id, after, upto, limit)

    async def fold_text(self, session_id: str, turn_id: str, marker: str) -> str:
        """Return the concatenated text of one marker of a turn, as far as it was recorded."""
        await flush_running()
        return await database_sync_to_async(_fold_text)(session_id, turn_id, marker)


def _read(session_id: str, after: Position, upto: Position, limit: int) -> list[Entry] | None:
    if after > upto or not _was_given_out(session_id, after):
        return None
    rows = RecordedEnvelope.objects.filter(session_id=session_id).after(after).upto(upto).in_order()
    entries = [_entry(row) for row in rows[:limit]]
    end = upto if len(entries) < limit else entries[-1].position
    return entries if _is_whole(entries, after, end) else None


def _was_given_out(session_id: str, position: Position) -> bool:
    """Tell whether this was a position of this session: its row says so; 0 stands before the first row."""
    rows = RecordedEnvelope.objects.filter(session_id=session_id, epoch=position.epoch)
    if position.seq == 0:
        # No row of the epoch may exist: a stream was opened and nothing was said.
        return True
    return rows.filter(seq=position.seq).exists()


def _is_whole(entries: list[Entry], after: Position, end: Position) -> bool:
    """Tell whether nothing lies between `after` and `end` but these entries."""
    epochs = {epoch: [e.position.seq for e in group] for epoch, group in groupby(entries, lambda e: e.position.epoch)}
    epochs.setdefault(after.epoch, [])
    epochs.setdefault(end.epoch, [])
    for epoch in sorted(epochs):
        begin = after.seq if epoch == after.epoch else 0
        seqs = epochs[epoch]
        if seqs != list(range(begin + 1, begin + 1 + len(seqs))):
            return False
        last = begin + len(seqs)
        if epoch == end.epoch:
            return last == end.seq
        if not _ended_cleanly(epoch):
            return False
    return False


def _ended_cleanly(epoch: int) -> bool:
    """Tell whether all that was published in this epoch is recorded: its run flushed, or still runs here."""
    run = RecorderRun.objects.filter(started_ms__lte=epoch).order_by("-started_ms", "-id").first()
    if run is None:
        return False
    if run.ended_ms is not None:
        return run.clean and epoch <= run.ended_ms
    # The newest run has not ended: it is the present one, whose buffer was flushed before this was asked.
    return not RecorderRun.objects.filter(Q(started_ms__gt=run.started_ms) | Q(pk__gt=run.pk)).exists()


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


def _fold_text(session_id: str, turn_id: str, marker: str) -> str:
    rows = RecordedEnvelope.objects.filter(session_id=session_id, turn_id=turn_id, marker=marker).in_order()
    bodies = rows.values_list("data", flat=True).iterator()
    return "".join(_decoder.decode(body).delta.text for body in bodies)


class _Delta(msgspec.Struct):
    text: str = ""


class _Body(msgspec.Struct):
    delta: _Delta


_decoder = msgspec.json.Decoder(_Body)
