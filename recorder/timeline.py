"""A turn as a timeline: its recorded envelopes folded into what a person reads."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .models import RecordedEnvelope

ROWS = 10_000
"""Envelopes of one turn that a timeline reads: some 200 ms; the list has the rest."""
TEXT_CHARACTERS = 200_000


@dataclass
class Entry:
    """One line of a timeline: an event, or the streamed text of one marker and artifact, folded.

    Times count in ms from the turn's first envelope. `rows` are the envelopes behind it.
    """

    kind: str
    title: str
    at_ms: int
    until_ms: int
    status: str = ""
    detail: str = ""
    text: str = ""
    completed: bool = False
    rows: list[RecordedEnvelope] = field(default_factory=list)

    @property
    def duration_ms(self) -> int:
        """How long it took from its first envelope to its last."""
        return self.until_ms - self.at_ms


@dataclass
class Timeline:
    """A turn's entries in the order of their first envelope, and its figures."""

    entries: list[Entry]
    began: datetime | None
    events: int
    duration_ms: int
    first_text_ms: int | None
    truncated: bool

    @property
    def conversation_id(self) -> str:
        """The conversation of the turn."""
        return self.entries[0].rows[0].conversation_id if self.entries else ""

    @property
    def first_row(self) -> RecordedEnvelope | None:
        """The envelope that the turn began with."""
        return self.entries[0].rows[0] if self.entries else None


def timeline_of(turn_id: str) -> Timeline:
    """Return a turn's timeline; one without entries when nothing of it is recorded."""
    rows = list(RecordedEnvelope.objects.filter(turn_id=turn_id).in_order()[: ROWS + 1])
    return fold(rows[:ROWS], truncated=len(rows) > ROWS)


def fold(rows: Iterable[RecordedEnvelope], *, truncated: bool = False) -> Timeline:
    """Fold envelopes, in their order, into a timeline."""
    entries: list[Entry] = []
    streams: dict[tuple[str, ...], Entry] = {}
    steps: dict[str, Entry] = {}
    began: datetime | None = None
    events, last_ms = 0, 0
    for row in rows:
        began = began or row.timestamp
        events += 1
        last_ms = _ms(row.timestamp, began)
        envelope = row.envelope
        if row.event == "chat_delta" and isinstance(envelope.get("delta"), dict):
            _add_text(entries, streams, row, envelope, last_ms)
        elif row.type == "chat.step":
            _add_step(entries, steps, row, envelope, last_ms)
        else:
            entries.append(_event(row, envelope, last_ms))
    texts = [entry.at_ms for entry in entries if entry.kind == "text" and entry.title == "answer"]
    return Timeline(entries, began, events, last_ms, min(texts, default=None), truncated)


def _ms(moment: datetime, began: datetime) -> int:
    return round((moment - began).total_seconds() * 1000)


def _add_text(
    entries: list[Entry],
    streams: dict[tuple[str, ...], Entry],
    row: RecordedEnvelope,
    envelope: dict[str, Any],
    ms: int,
) -> None:
    delta, extra = envelope["delta"], envelope.get("extra") or {}
    artifact = str(extra.get("artifact_name") or extra.get("sub_type") or "")
    key = (row.agent, delta["marker"], artifact)
    entry = streams.get(key)
    if entry is None or (delta.get("index") == 0 and delta["text"] and artifact):
        # An artifact that begins again at 0 replaces what it was.
        entry = streams[key] = Entry(
            "text", delta["marker"], ms, ms, detail=str(extra.get("title") or artifact)
        )
        entries.append(entry)
    if len(entry.text) < TEXT_CHARACTERS:
        entry.text += delta["text"]
    entry.until_ms = ms
    entry.completed = entry.completed or bool(delta.get("completed"))
    entry.rows.append(row)


def _add_step(
    entries: list[Entry], steps: dict[str, Entry], row: RecordedEnvelope, envelope: dict[str, Any], ms: int
) -> None:
    event = envelope["event"]
    entry = steps.get(event["step"])
    if entry is None:
        entry = steps[event["step"]] = Entry("step", event["title"] or event["step"], ms, ms)
        entries.append(entry)
    entry.title = event["title"] or entry.title
    entry.status = event["status"]
    entry.detail = event.get("markdown") or entry.detail
    entry.until_ms = ms
    entry.rows.append(row)


def _event(row: RecordedEnvelope, envelope: dict[str, Any], ms: int) -> Entry:
    status = envelope["event"].get("status", "")
    completion = envelope.get("data", {}).get("completion")
    said = row.excerpt if row.excerpt != envelope["event"].get("step") else ""
    return Entry("event", row.type, ms, ms, status=completion or status, detail=said, rows=[row])
