"""Published envelopes as the publisher offers them to sinks."""

from typing import Any

from comm.envelope import ConversationContext, Delta, Envelope, Event, ServiceContext
from comm.history import Position
from comm.sinks import Published

EPOCH = 1772140445267
"""2026-02-26T21:14:05.267Z"""


def published(
    seq: int | None,
    *,
    session_id: str = "session-1",
    epoch: int = EPOCH,
    target_sid: str | None = None,
    after_ms: int | None = None,
    type: str = "chat.delta",
    text: str | None = None,
    marker: str = "answer",
    completed: bool = False,
    turn_id: str = "turn-1",
    conversation_id: str = "conversation-1",
    tenant: str = "acme",
    user: str = "ada",
    event: Event | None = None,
    index: int | None = None,
    **fields: Any,
) -> Published:
    """One published envelope, `after_ms` (default: its seq) milliseconds after the epoch's beginning."""
    ts = epoch + (after_ms if after_ms is not None else seq or 0)
    if type == "chat.delta":
        text = f"<{seq}>" if text is None else text
        number = (seq or 1) if index is None else index
        fields = {"delta": Delta(text, number, marker, completed), "text": text, "idx": number, **fields}
    envelope = Envelope(
        type=type,
        timestamp="2026-02-26T21:14:05.267Z",
        ts=ts,
        service=ServiceContext("request-1", tenant, "shop", user, "registered"),
        conversation=ConversationContext(session_id, conversation_id, turn_id),
        event=event or Event("writer", "step-1", "running", "A title"),
        **fields,
    )
    position = None if seq is None else Position(epoch, seq)
    return Published(envelope, envelope.encode(), envelope.socket_event, position, session_id, target_sid)
