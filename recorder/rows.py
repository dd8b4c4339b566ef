"""Published envelopes written as rows; runs on the recorder's database thread."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from django.db import DataError, IntegrityError, connection, transaction

from comm.sinks import Published
from comm.storing import storable_text

from .gaps import Gap
from .models import RecordedEnvelope, RecordedGap

REFUSALS = (DataError, IntegrityError, ValueError, OverflowError)
"""What a database (or its driver) says of a row that it will never take; other errors may pass."""

COPIED_ROWS = 20
"""From here on COPY is the faster way on PostgreSQL; of 500 rows it takes half the time and a third of the CPU."""

Row = tuple[Any, ...]

_DAY_ZERO = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = (
    "session_id", "epoch", "seq", "event", "timestamp", "target_sid", "data", "tenant", "project", "user",
    "conversation_id", "turn_id", "type", "route", "agent", "marker", "entry",
)  # fmt: skip


def write_rows(
    batch: Sequence[Published], gaps: Sequence[Gap], entries: Sequence[str | None] = ()
) -> list[Published]:
    """Write envelopes and gaps in one transaction; return the envelopes that the database refused.

    What is recorded already is left as it is: a position, and (in `entries`, where there are some, as many as
    envelopes) the stream entry of an envelope that has none. A refused envelope leaves a gap that names it.
    """
    entries = entries or [None] * len(batch)
    try:
        with transaction.atomic():
            _insert(batch, entries)
            _insert_gaps(gaps)
    except REFUSALS:
        return _write_one_by_one(batch, gaps, entries)
    return []


def _write_one_by_one(
    batch: Sequence[Published], gaps: Sequence[Gap], entries: Sequence[str | None]
) -> list[Published]:
    refused: dict[int, Gap] = {}
    with transaction.atomic():
        for number, (published, entry) in enumerate(zip(batch, entries, strict=True)):
            try:
                with transaction.atomic():
                    _insert([published], [entry])
            except REFUSALS as error:
                reason = f"the database refused the row ({type(error).__name__})"
                refused[number] = Gap.of(published, reason, entry)
        _insert_gaps([*gaps, *refused.values()])
    return [batch[number] for number in refused]


def _insert(batch: Sequence[Published], entries: Sequence[str | None]) -> None:
    # bulk_create takes twice the time per row, and all of it with the interpreter's lock, which the event
    # loop next to this thread needs.
    if not batch:
        return
    as_stored = connection.ops.adapt_datetimefield_value
    rows = [_values(*row, as_stored) for row in zip(batch, entries, strict=True)]
    if connection.vendor == "postgresql" and len(rows) >= COPIED_ROWS:
        _copy(rows)
    else:
        _insert_each(rows)


def _insert_each(rows: list[Row]) -> None:
    columns, places = _names(), ", ".join(["%s"] * len(_COLUMNS))
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {_table()} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING",
            _in_one_order(rows),
        )


def _copy(rows: list[Row]) -> None:
    """Copy the rows into a temporary table, and from there in one statement: COPY knows no ON CONFLICT."""
    columns, table = _names(), _table()
    # wrap_database_errors: what COPY raises comes from the driver's own object.
    with connection.cursor() as cursor, connection.wrap_database_errors:
        # Kept with the connection: a table made and dropped four times a second would bloat the catalogue.
        cursor.execute(
            "CREATE TEMPORARY TABLE IF NOT EXISTS recorder_incoming ON COMMIT DELETE ROWS AS "
            f"SELECT {columns} FROM {table} WITH NO DATA"
        )
        cursor.execute("DELETE FROM recorder_incoming")
        with cursor.copy(f"COPY recorder_incoming ({columns}) FROM STDIN") as copy:
            for row in _in_one_order(rows):
                copy.write_row(row)
        cursor.execute(
            f"INSERT INTO {table} ({columns}) SELECT {columns} FROM recorder_incoming ON CONFLICT DO NOTHING"
        )


def _in_one_order(rows: list[Row]) -> list[Row]:
    """Sort by what is unique: two recorders that write the same rows wait for each other, never in a circle."""
    return sorted(rows, key=lambda row: (row[0], row[1] or 0, row[2] or 0, row[-1] or ""))


def _insert_gaps(gaps: Sequence[Gap]) -> None:
    if not gaps:
        return
    RecordedGap.objects.bulk_create(
        (
            RecordedGap(
                session_id=_fit(gap.session_id, 100),
                first="" if gap.first is None else str(gap.first),
                last="" if gap.last is None else str(gap.last),
                events=gap.events,
                reason=gap.reason,
                key=gap.key,
            )
            for gap in gaps
        ),
        ignore_conflicts=True,
    )


def _table() -> str:
    return connection.ops.quote_name(RecordedEnvelope._meta.db_table)


def _names() -> str:
    return ", ".join(map(connection.ops.quote_name, _COLUMNS))


def _values(published: Published, entry: str | None, as_stored: Any) -> Row:
    """The row of an envelope, in the order of the columns.

    What only helps to find the row is cut to fit; what the row is (session, target, body) never is.
    """
    envelope, position = published.envelope, published.position
    service, conversation, delta = envelope.service, envelope.conversation, envelope.delta
    return (
        published.session_id,
        None if position is None else position.epoch,
        None if position is None else position.seq,
        published.route,
        as_stored(_DAY_ZERO + timedelta(milliseconds=envelope.ts)),
        published.target_sid or "",
        published.body.decode(),
        _fit(service.tenant, 100),
        _fit(service.project, 100),
        _fit(service.user, 150),
        _fit(conversation.conversation_id, 100),
        _fit(conversation.turn_id, 64),
        _fit(envelope.type, 100),
        published.route,
        _fit(envelope.event.agent, 100),
        "" if isinstance(delta, msgspec.UnsetType) else _fit(delta.marker, 100),
        # A position says better which envelope this is, and needs no second index.
        entry if position is None else None,
    )


def _fit(text: str, length: int) -> str:
    """Cut a text to a column's length."""
    return storable_text(text[:length])
