"""Entries of the recorder stream, read as what they become: the row of an envelope, or a gap."""

import logging
from dataclasses import dataclass

from comm.envelope import decode_envelope
from comm.exceptions import CommError
from comm.groups import session_of
from comm.history import Position
from comm.recorder_stream import entry_bytes, read_entry
from comm.sinks import Published

from .gaps import Gap
from .store import RawEntry

logger = logging.getLogger(__name__)

UNREADABLE = (CommError, ValueError, LookupError, TypeError, RecursionError)


@dataclass(frozen=True, slots=True)
class StreamedEnvelope:
    """One entry: what was published, or the gap that it leaves because it cannot be read."""

    entry_id: str
    size: int
    published: Published | None
    gap: Gap | None


def read_streamed(raw: RawEntry) -> StreamedEnvelope:
    """Read an entry; what cannot be read is logged and becomes a gap, since it would never get better."""
    entry_id, fields = raw
    if not fields:
        # Deleted while somebody held it: it was recorded, or is gone. Nothing is known of it but its id.
        return StreamedEnvelope(entry_id.decode(), 0, None, None)
    size = entry_bytes(*(fields.get(name, b"") for name in (b"g", b"p", b"m")))
    try:
        return StreamedEnvelope(entry_id.decode(), size, _published(raw), None)
    except UNREADABLE as error:
        logger.error("Entry %s becomes a gap: %s", entry_id.decode(), error)
        reason = f"its entry could not be read ({type(error).__name__})"
        return StreamedEnvelope(entry_id.decode(), size, None, _gap(raw, reason))


def missing_from(group: str) -> str:
    """Return the session of a group, or the group's own name where that does not tell."""
    return session_of(group) or group


def _published(raw: RawEntry) -> Published:
    entry = read_entry(*raw)
    message = entry.message
    route, target_sid, body = message["route"], message["target_sid"], message["body"]
    if not (isinstance(route, str) and isinstance(body, bytes) and isinstance(target_sid, str | None)):
        raise TypeError("route, target_sid or body is of another kind")
    envelope = decode_envelope(body)
    return Published(envelope, body, route, entry.position, envelope.conversation.session_id, target_sid)


def _gap(raw: RawEntry, reason: str) -> Gap:
    entry_id, fields = raw
    group = fields.get(b"g", b"").decode(errors="replace")
    position: Position | None
    try:
        position = Position.parse(fields.get(b"p", b"").decode())
    except ValueError:
        position = None
    return Gap(missing_from(group) or "(unknown)", position, position, 1, reason, entry_id.decode())
