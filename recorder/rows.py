"""Published envelopes written as rows; runs on the recorder's database thread."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import msgspec
from django.db import DataError, IntegrityError, connection, transaction

from comm.sinks import Published

from .gaps import Gap
from .models import RecordedEnvelope, RecordedGap

REFUSALS = (DataError, IntegrityError, ValueError, OverflowError)
"""What a database (or its driver) says of a row that it will never take; other errors may pass."""

_DAY_ZERO = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = (
    "session_id", "epoch", "seq", "event", "timestamp", "target_sid", "data", "tenant", "project", "user",
    "conversation_id", "turn_id", "type", "route", "agent", "marker",
)  # fmt: skip


def write_rows(batch: Sequence[Published], gaps: Sequence[Gap]) -> list[Published]:
    """Write envelopes and gaps in one transaction; return the envelopes that the database refused.

    A position that is recorded already is left as it is. A refused envelope leaves a gap that names it.
    """
    try:
        with transaction.atomic():
            _insert(batch)
            _insert_gaps(gaps)
    except REFUSALS:
        return _write_one_by_one(batch, gaps)
    return []


def _write_one_by_one(batch: Sequence[Published], gaps: Sequence[Gap]) -> list[Published]:
    refused: dict[int, Gap] = {}
    with transaction.atomic():
        for number, published in enumerate(batch):
            try:
                with transaction.atomic():
                    _insert([published])
            except REFUSALS as error:
                refused[number] = Gap.of(published, f"the database refused the row ({type(error).__name__})")
        _insert_gaps([*gaps, *refused.values()])
    return [batch[number] for number in refused]


def _insert(batch: Sequence[Published]) -> None:
    # bulk_create takes twice the time per row, and all of it with the interpreter's lock, which the event
    # loop next to this thread needs.
    if not batch:
        return
    as_stored = connection.ops.adapt_datetimefield_value
    with connection.cursor() as cursor:
        cursor.executemany(_statement(), [_values(published, as_stored) for published in batch])


def _insert_gaps(gaps: Sequence[Gap]) -> None:
    if not gaps:
        return
    RecordedGap.objects.bulk_create(
        RecordedGap(
            session_id=_fit(gap.session_id, 100),
            first="" if gap.first is None else str(gap.first),
            last="" if gap.last is None else str(gap.last),
            events=gap.events,
            reason=gap.reason,
        )
        for gap in gaps
    )


@cache
def _statement() -> str:
    quote = connection.ops.quote_name
    columns = ", ".join(map(quote, _COLUMNS))
    places = ", ".join(["%s"] * len(_COLUMNS))
    table = quote(RecordedEnvelope._meta.db_table)
    return f"INSERT INTO {table} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING"


def _values(published: Published, as_stored: Any) -> tuple[Any, ...]:
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
    )


def _fit(text: str, length: int) -> str:
    """Cut a text to a column's length, without the NUL that PostgreSQL has no place for."""
    return text[:length].replace("\0", "\N{REPLACEMENT CHARACTER}")
