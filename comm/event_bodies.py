"""An event of the event manager as it travels: checked, encoded and read again."""

from collections.abc import Mapping
from typing import Any, TypedDict

import msgspec

from .envelope import stamp
from .exceptions import EnvelopeInvalid
from .history import Position

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])


class Event(TypedDict):
    """One event; `id` is its place in its context, `timestamp` is in epoch seconds."""

    id: str
    type: str
    category: str
    data: dict[str, Any]
    message: str | None
    step: str | None
    timestamp: float


def checked_context(context_id: str) -> str:
    """Return a context's name. Errors: EnvelopeInvalid."""
    if not isinstance(context_id, str) or not context_id:
        raise EnvelopeInvalid("context_id", "must be a string with something in it")
    return context_id


def encode_event(
    context_id: str, type: str, data: Mapping[str, Any], category: str, message: str | None, step: str | None
) -> bytes:
    """Return an event as it travels, stamped with the time. Errors: EnvelopeInvalid names what cannot be sent."""
    checked_context(context_id)
    if not isinstance(data, Mapping):
        raise EnvelopeInvalid("data", f"must be a mapping, not {data.__class__.__name__}")
    for name, value in (("event_type", type), ("event_category", category)):
        if not isinstance(value, str) or not value:
            raise EnvelopeInvalid(name, "must be a string with something in it")
    event = {
        "type": type, "category": category, "data": dict(data), "message": message, "step": step,
        "timestamp": stamp()[1] / 1000,
    }  # fmt: skip
    try:
        return _encoder.encode(event)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EnvelopeInvalid("data", str(error) or error.__class__.__name__) from error


def event_of(position: Position, body: bytes) -> Event:
    """Return what `encode_event` made, at its place."""
    event = _decoder.decode(body)
    return Event(
        id=str(position), type=event["type"], category=event["category"], data=event["data"],
        message=event["message"], step=event["step"], timestamp=event["timestamp"],
    )  # fmt: skip
