"""Which recorded envelopes somebody means: by session, conversation, turn, time and position."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from comm.history import Position

from .models import RecordedEnvelope
from .querysets import RecordedEnvelopeQuerySet


@dataclass(frozen=True, slots=True)
class Bound:
    """A position, or a sequence number of whatever epoch."""

    seq: int
    epoch: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Bound":
        """Read `42` or `1772140445267-42`. Errors: ValueError."""
        if text.isascii() and text.isdigit():
            return cls(int(text))
        position = Position.parse(text)
        return cls(position.seq, position.epoch)


@dataclass(frozen=True, slots=True)
class Selection:
    """Recorded envelopes that fit all that is given; bounds are included, times are aware."""

    session_id: str = ""
    conversation_id: str = ""
    turn_id: str = ""
    since: datetime | None = None
    until: datetime | None = None
    first: Bound | None = None
    last: Bound | None = None
    row_ids: list[int] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the selection as plain JSON, for `from_json`."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Selection":
        """Read what `as_json` wrote. Errors: msgspec.ValidationError."""
        return msgspec.convert(value, cls)

    def rows(self) -> RecordedEnvelopeQuerySet:
        """Return the rows in the order in which clients saw them."""
        rows = RecordedEnvelope.objects.all()
        for column in ("session_id", "conversation_id", "turn_id"):
            value = getattr(self, column)
            if value:
                rows = rows.filter(**{column: value})
        if self.since is not None:
            rows = rows.filter(timestamp__gte=self.since)
        if self.until is not None:
            rows = rows.filter(timestamp__lte=self.until)
        if self.first is not None:
            rows = _from(rows, self.first)
        if self.last is not None:
            rows = _to(rows, self.last)
        if self.row_ids:
            rows = rows.filter(pk__in=self.row_ids)
        return rows.in_order()


def _from(rows: RecordedEnvelopeQuerySet, bound: Bound) -> RecordedEnvelopeQuerySet:
    if bound.epoch is None:
        return rows.filter(seq__gte=bound.seq)
    return rows.after(Position(bound.epoch, bound.seq - 1))


def _to(rows: RecordedEnvelopeQuerySet, bound: Bound) -> RecordedEnvelopeQuerySet:
    if bound.epoch is None:
        return rows.filter(seq__lte=bound.seq)
    return rows.upto(Position(bound.epoch, bound.seq))
