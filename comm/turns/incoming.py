"""What every transport turns a received message into; nothing behind it knows which transport it was."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

Kind = Literal["regular", "followup", "steer"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who speaks: a session, and the user behind it.

    `owner` is the user's id, or the session's id for an anonymous one; it owns conversations.
    `timezone` is an IANA name or empty; `utc_offset_min` counts east of UTC.
    """

    session_id: str
    owner: str
    user_type: str = "anonymous"
    user_id: str = ""
    username: str = ""
    timezone: str = ""
    utc_offset_min: int | None = None


@dataclass(frozen=True, slots=True)
class IncomingFile:
    """One accepted attachment; its type was sniffed and its name made safe."""

    filename: str
    mime: str
    content: bytes


@dataclass(frozen=True, slots=True)
class IncomingMessage:
    """One message of a client, checked, before it is accepted.

    `kind` is None when the client did not say: then a busy conversation makes it a followup.
    `generation` is 1 (`message`) or 2 (`external_events`). `reactive` false starts no turn. `channel` names the
    feature that the turn belongs to, whose observer sees it (`COMM["TURN_OBSERVERS"]`); empty for the chat.
    """

    caller: Caller
    tenant: str
    project: str
    text: str = ""
    kind: Kind | None = None
    generation: Literal[1, 2] = 1
    reactive: bool = True
    conversation_id: str = ""
    bundle_id: str = ""
    target_turn_id: str = ""
    author: str = ""
    chat_history: list[dict[str, Any]] = field(default_factory=list)
    payload: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    external_events: list[dict[str, Any]] = field(default_factory=list)
    files: list[IncomingFile] = field(default_factory=list)
    origin_stream_id: str = ""
    request_id: str = ""
    idempotency_key: str = ""
    channel: str = ""


class Acknowledgement(TypedDict, total=False):
    """The answer to an accepted message: one key set whatever the outcome.

    `message_kind` stands in answers to gen-1 messages, `is_continuation` in those to gen-2.
    """

    status: str
    task_id: str
    session_id: str
    conversation_id: str
    turn_id: str | None
    active_turn_id: str | None
    target_turn_id: str | None
    queued_turn_id: str | None
    event_id: str
    external_event_sequence: int
    live_owner_detected: bool
    conversation_created: bool
    user_type: str
    message_kind: str
    is_continuation: bool
    message: str
