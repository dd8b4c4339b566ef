"""Replaying recorded envelopes: the same events in the same order, at a chosen speed, in a chosen form."""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from .models import RecordedEnvelope

Sleep = Callable[[float], None]
Writer = Callable[[RecordedEnvelope], str]


def paced(
    rows: Iterable[RecordedEnvelope], speed: float, *, sleep: Sleep = time.sleep, now: Callable[[], float] = time.monotonic
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
    return msgspec.json.encode(row.relay_message()).decode() + "\n"


def as_sse(row: RecordedEnvelope) -> str:
    """Return the server-sent event that the client got."""
    position = f"id: {row.position}\n" if row.position else ""
    return f"{position}event: {row.event}\ndata: {row.data}\n\n"


class TextWriter:
    """Words a replay for people: the streamed text as it ran, everything else as a line of its own."""

    def __init__(self) -> None:
        self._streaming = ""

    def __call__(self, row: RecordedEnvelope) -> str:
        """Return what this envelope adds to the text."""
        envelope = row.envelope
        delta = envelope.get("delta")
        if isinstance(delta, dict) and row.event == "chat_delta":
            return self._delta(row, envelope, delta)
        line = f"[{row.timestamp:%H:%M:%S}] {row.type}: {_summary(envelope)}".rstrip(": ")
        return self.close() + line + "\n"

    def close(self) -> str:
        """Return what ends a stream of text that is still open."""
        ended, self._streaming = self._streaming, ""
        return "\n" if ended else ""

    def _delta(self, row: RecordedEnvelope, envelope: dict[str, Any], delta: dict[str, Any]) -> str:
        artifact = (envelope.get("extra") or {}).get("artifact_name", "")
        stream = f"{row.turn_id} {delta['marker']} {artifact}"
        begun = ""
        if stream != self._streaming:
            name = f"{delta['marker']} ({artifact})" if artifact else delta["marker"]
            begun = f"{self.close()}[{row.timestamp:%H:%M:%S}] {name}:\n"
            self._streaming = stream
        return begun + str(delta["text"])


def _summary(envelope: dict[str, Any]) -> str:
    event, data = envelope.get("event") or {}, envelope.get("data") or {}
    told = event.get("title") or event.get("markdown") or data.get("error") or data.get("message") or data.get("title")
    if not told and "items" in data:
        told = "; ".join(str(item.get("filename", item) if isinstance(item, dict) else item) for item in data["items"])
    parts = [event.get("status", ""), str(told or "").strip()]
    return " ".join(part for part in parts if part)
