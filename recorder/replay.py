"""Replaying recorded envelopes: the same events in the same order, at a chosen speed, in a chosen form."""

import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from django.db.models import Case, F, Max, Value, When, Window

from .models import RecordedEnvelope
from .querysets import RecordedEnvelopeQuerySet

CHUNK_ROWS = 500


class Recording:
    """Selected rows as they were delivered: by position within each session, by time across them.

    Which rows they are is read once (8 bytes for each), the rows themselves in chunks: a replay that takes
    hours holds no cursor, and no transaction that the database would have to keep old rows for.
    """

    def __init__(self, rows: RecordedEnvelopeQuerySet) -> None:
        self._ids = array("q", as_delivered(rows).values_list("pk", flat=True).iterator(CHUNK_ROWS))

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[RecordedEnvelope]:
        """Yield the rows; one that was pruned meanwhile is left out."""
        for start in range(0, len(self._ids), CHUNK_ROWS):
            ids = self._ids[start : start + CHUNK_ROWS]
            rows = RecordedEnvelope.objects.in_bulk(ids)
            yield from (rows[row_id] for row_id in ids if row_id in rows)


def as_delivered(rows: RecordedEnvelopeQuerySet) -> RecordedEnvelopeQuerySet:
    """Order rows of any sessions as clients saw them.

    Timestamps alone would turn two events of a session around that were made in the same moment and
    published the other way: a row comes no sooner than those before it in its session's log. Project events
    have no position; they stand where their time puts them.
    """
    transient = Case(When(epoch__isnull=True, then=Value(1)), default=Value(0))
    log: list[Any] = [F("session_id"), transient]
    told_at = Window(Max("timestamp"), partition_by=log, order_by=["epoch", "seq", "timestamp", "id"])
    ordered: RecordedEnvelopeQuerySet = rows.annotate(told_at=told_at)
    return ordered.order_by("told_at", "session_id", "epoch", "seq", "id")


def paced(
    rows: Iterable[RecordedEnvelope],
    speed: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[RecordedEnvelope]:
    """Yield rows at the pace at which they were emitted, `speed` times as fast; 0 does not wait.

    The pace is kept against the clock, not from row to row, so that writing slowly does not add up.
    """
    first: datetime | None = None
    began = now()
    for row in rows:
        if speed > 0:
            first = first or row.timestamp
            ahead = (row.timestamp - first).total_seconds() / speed - (now() - began)
            if ahead > 0:
                sleep(ahead)
        yield row


def as_jsonl(row: RecordedEnvelope) -> str:
    """Return the relay message as one line of JSON."""
    return row.relay_line() + "\n"


def as_sse(row: RecordedEnvelope) -> str:
    """Return the server-sent event that the client got."""
    position = f"id: {row.position}\n" if row.position else ""
    return f"{position}event: {row.event}\ndata: {row.data}\n\n"
