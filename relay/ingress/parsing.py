"""From a decoded body to a checked submission: both generations of the format, told apart by their keys.

Unknown keys are ignored and null is the same as absent, as existing clients expect.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import msgspec

from comm.turns.incoming import Kind
from relay.conf import relay_settings
from relay.exceptions import BadRequest

from .checking import check_storable, convert, identifier, name_of

ID_CHARACTERS = {"conversation_id": 100, "bundle_id": 100, "tenant": 100, "project": 100}
"""As long as the columns that keep them."""
TURN_ID_CHARACTERS = 64
KINDS: tuple[Kind, ...] = ("regular", "followup", "steer")

PROMPT, FOLLOWUP, STEER = "event.user.prompt", "event.user.followup", "event.user.steer"
TEXT_EVENTS: dict[str, Kind | None] = {PROMPT: None, FOLLOWUP: "followup", STEER: "steer"}
ATTACHMENT_EVENT = "event.user.attachment"


class FileHint(NamedTuple):
    """What a client says about one of its files; empty strings where it says nothing."""

    filename: str = ""
    mime: str = ""


@dataclass(frozen=True, slots=True)
class Submission:
    """A body that was checked; fields as in IncomingMessage, empty where the client did not say.

    `hints_by_name` belong to files of that name (gen-1), `hints_in_order` to the files as they come (gen-2).
    """

    generation: Literal[1, 2]
    text: str
    kind: Kind | None
    reactive: bool
    tenant: str
    project: str
    conversation_id: str
    bundle_id: str
    target_turn_id: str
    payload: Any
    config: dict[str, Any]
    chat_history: list[dict[str, Any]] = field(default_factory=list)
    external_events: list[dict[str, Any]] = field(default_factory=list)
    hints_by_name: dict[str, FileHint] = field(default_factory=dict)
    hints_in_order: list[FileHint] = field(default_factory=list)


class _Head(msgspec.Struct):
    """The fields that both generations share."""

    tenant: str | None = None
    project: str | None = None
    conversation_id: str | None = None
    turn_id: str | None = None
    bundle_id: str | None = None
    message_kind: str | None = None
    continuation_kind: str | None = None
    followup: bool | None = None
    steer: bool | None = None
    active_turn_id: str | None = None
    target_turn_id: str | None = None
    payload: Any = None
    config: dict[str, Any] | None = None


class _Message(_Head):
    """The gen-1 message object."""

    text: str | None = None
    message: Any = None
    chat_history: list[Any] | None = None


class _NestedText(msgspec.Struct):
    text: str | None = None
    message: str | None = None
    msg: str | None = None


class _Said(msgspec.Struct):
    """An entry of chat_history."""

    role: str
    content: str


class _ExternalEvent(msgspec.Struct):
    type: str
    event_source_id: str | None = None
    reactive: bool | None = None
    payload: Any = None


class _EventPayload(msgspec.Struct):
    mime: str | None = None
    event: Any = None


class _EventText(msgspec.Struct):
    text: str | None = None


class _FileMeta(msgspec.Struct):
    filename: str | None = None
    name: str | None = None
    mime: str | None = None


def parse_submission(document: Any, attachment_meta: Any = None) -> Submission:
    """Check a decoded body; `attachment_meta` given beside it wins over the one inside.

    A gen-1 body may also be the message object itself, as a form field `message` sometimes is.
    """
    if not isinstance(document, dict):
        raise BadRequest("body", f"expected an object, got {name_of(document)}")
    check_storable(document)
    check_storable(attachment_meta, ("attachment_meta",))
    if document.get("external_events") is not None:
        return _generation_2(document)
    if attachment_meta is None:
        attachment_meta = document.get("attachment_meta")
    message = document.get("message")
    if isinstance(message, dict):
        return _generation_1(message, "message.", attachment_meta)
    if message is None and document.get("text") is None:
        raise BadRequest("message", "is missing; send a message object, or external_events")
    return _generation_1(document, "", attachment_meta)


def _generation_1(document: dict[str, Any], prefix: str, attachment_meta: Any) -> Submission:
    message = convert(document, _Message, prefix)
    text = message.text if message.text is not None else _nested_text(message.message, f"{prefix}message")
    return Submission(
        generation=1,
        text=_checked_text(text, f"{prefix}text"),
        kind=_kind(message, prefix),
        reactive=True,
        chat_history=_chat_history(message.chat_history or [], f"{prefix}chat_history"),
        hints_by_name=_hints_by_name(attachment_meta),
        **_head(message, prefix),
    )


def _generation_2(document: dict[str, Any]) -> Submission:
    head = convert(document, _Head, "")
    raw = document["external_events"]
    if not isinstance(raw, list):
        raise BadRequest("external_events", f"expected an array, got {name_of(raw)}")
    if not raw:
        raise BadRequest("external_events", "is empty; it needs at least one event")
    events = [convert(item, _ExternalEvent, f"external_events[{i}]") for i, item in enumerate(raw)]
    text, kind = "", None
    spoken = next((i for i, event in enumerate(events) if event.type in TEXT_EVENTS), None)
    if spoken is not None:
        where = f"external_events[{spoken}].payload"
        text = _checked_text(_event_text(events[spoken], where), f"{where}.event.text")
        kind = TEXT_EVENTS[events[spoken].type]
    return Submission(
        generation=2,
        text=text,
        kind=kind or _kind(head, ""),
        reactive=any(_is_reactive(event) for event in events),
        external_events=raw,
        hints_in_order=[_event_hint(e.payload) for e in events if e.type.startswith(ATTACHMENT_EVENT)],
        **_head(head, ""),
    )


def _head(head: _Head, prefix: str) -> dict[str, Any]:
    ids = {
        name: identifier(getattr(head, name), prefix + name, limit) for name, limit in ID_CHARACTERS.items()
    }
    target = "target_turn_id" if head.target_turn_id else "active_turn_id"
    return {
        **ids,
        "target_turn_id": identifier(getattr(head, target), prefix + target, TURN_ID_CHARACTERS),
        "payload": head.payload,
        "config": head.config or {},
    }


def _kind(head: _Head, prefix: str) -> Kind | None:
    """Return what the client calls its message: in words, else by one of the two switches."""
    for name in ("message_kind", "continuation_kind"):
        said = getattr(head, name)
        if not said:
            continue
        if said not in KINDS:
            raise BadRequest(prefix + name, f"is {said!r:.60}; expected one of {', '.join(KINDS)}")
        return cast(Kind, said)
    if head.steer:
        return "steer"
    return "followup" if head.followup else None


def _checked_text(text: str, field: str) -> str:
    limit = relay_settings().TEXT_CHARACTERS
    if len(text) > limit:
        raise BadRequest(field, f"has {len(text):,} characters; at most {limit:,} are allowed")
    return text


def _nested_text(value: Any, field: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, dict):
        raise BadRequest(field, f"expected a string or an object, got {name_of(value)}")
    nested = convert(value, _NestedText, field)
    return nested.text or nested.message or nested.msg or ""


def _chat_history(entries: list[Any], field: str) -> list[dict[str, Any]]:
    for i, entry in enumerate(entries):
        convert(entry, _Said, f"{field}[{i}]")
    return entries


def _is_reactive(event: _ExternalEvent) -> bool:
    """Whether an event asks for an answer: as it says, else when it is something a user said."""
    return event.type in TEXT_EVENTS if event.reactive is None else event.reactive


def _event_text(event: _ExternalEvent, field: str) -> str:
    if event.payload is None:
        if event.type == STEER:
            return ""
        raise BadRequest(field, "is missing")
    said = convert(event.payload, _EventPayload, field).event
    if isinstance(said, str):
        return said
    if said is None:
        if event.type == STEER:
            return ""
        raise BadRequest(f"{field}.event", "is missing")
    if not isinstance(said, dict):
        raise BadRequest(f"{field}.event", f"expected a string or an object, got {name_of(said)}")
    return convert(said, _EventText, f"{field}.event").text or ""


def _event_hint(payload: Any) -> FileHint:
    """Read what an attachment event says of its file, in `payload.event` or in `payload` itself."""
    for part in (payload.get("event"), payload) if isinstance(payload, dict) else ():
        if isinstance(part, dict):
            filename, mime = part.get("filename") or part.get("name"), part.get("mime")
            if isinstance(filename, str) or isinstance(mime, str):
                return FileHint(*(value if isinstance(value, str) else "" for value in (filename, mime)))
    return FileHint()


def announced_files(document: Any) -> list[FileHint]:
    """Return what a body says of the files that come beside it, in their order; it is checked later."""
    if not isinstance(document, dict):
        return []
    events = document.get("external_events")
    if isinstance(events, list):
        return [_event_hint(e.get("payload")) for e in events if _announces_file(e)]
    meta = document.get("attachment_meta")
    return list(_file_hints(meta)) if isinstance(meta, list) else []


def _announces_file(event: Any) -> bool:
    return isinstance(event, dict) and str(event.get("type")).startswith(ATTACHMENT_EVENT)


def _file_hints(meta: list[Any]) -> Iterator[FileHint]:
    for i, entry in enumerate(meta):
        said = convert(entry, _FileMeta, f"attachment_meta[{i}]")
        yield FileHint(said.filename or said.name or "", said.mime or "")


def _hints_by_name(meta: Any) -> dict[str, FileHint]:
    if meta is None:
        return {}
    if not isinstance(meta, list):
        raise BadRequest("attachment_meta", f"expected an array, got {name_of(meta)}")
    hints: dict[str, FileHint] = {}
    for i, hint in enumerate(_file_hints(meta)):
        if not hint.filename:
            raise BadRequest(f"attachment_meta[{i}].filename", "is missing")
        hints[hint.filename] = hint
    return hints
