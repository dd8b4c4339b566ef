"""The envelope: what travels from a bundle to a client, and the one table from type to route.

The shape is the wire contract's: type, timestamp, service, conversation, event, data, and where they
have content delta, extra, route, metadata. An envelope is encoded once, by its producer.
"""

import math
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from .exceptions import EnvelopeInvalid

ROUTES = {
    "chat.start": "chat_start",
    "chat.step": "chat_step",
    "chat.delta": "chat_delta",
    "chat.complete": "chat_complete",
    "chat.error": "chat_error",
    "chat.service": "chat_service",
    "conv.status": "conv_status",
}
SERVICE_PREFIXES = ("gateway.", "rate_limit.", "queue.", "event.")
CARD_ROUTE = "chat_step"
SERVICE_ROUTE = "chat_service"
KNOWN_ROUTES = frozenset(ROUTES.values())

ANSWER = "answer"
THINKING = "thinking"
CANVAS = "canvas"
TIMELINE_TEXT = "timeline_text"
SUBSYSTEM = "subsystem"
MARKERS = (ANSWER, THINKING, CANVAS, TIMELINE_TEXT, SUBSYSTEM)
"""The markers that every client renders; others are allowed."""


def route_of(type: str) -> str:
    """Return the route of an envelope type: the name of the event that a client listens for."""
    route = ROUTES.get(type)
    if route is not None:
        return route
    # Typed cards (chat.followups, accounting.usage) travel on the step route.
    return SERVICE_ROUTE if type.startswith(SERVICE_PREFIXES) else CARD_ROUTE


class ServiceContext(msgspec.Struct, frozen=True):
    """Who the event is for, and in which scope."""

    request_id: str = ""
    tenant: str = ""
    project: str = ""
    user: str = ""
    user_type: str = "anonymous"


class ConversationContext(msgspec.Struct, frozen=True):
    """Where in the conversation the event belongs."""

    session_id: str = ""
    conversation_id: str = ""
    turn_id: str = ""


class Event(msgspec.Struct, frozen=True):
    """What is happening: the agent, the step, its status and its title."""

    agent: str = ""
    step: str = ""
    status: str = ""
    title: str = ""
    markdown: str | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct, frozen=True):
    """A chunk of streamed text of one marker and artifact; `index` counts within them from 0."""

    text: str
    index: int
    marker: str = ANSWER
    completed: bool = False


ENVELOPE_BYTES = 16 * 1024 * 1024
"""Half of what Redis lets a subscriber be behind: a larger one would cut off every process that reads it, each time."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way to the peers of a session.

    Immutable: a filter that changes an envelope returns another one (`msgspec.structs.replace`).
    """

    type: str
    timestamp: str
    ts: int
    service: ServiceContext
    conversation: ConversationContext
    event: Event
    data: dict[str, Any] = {}
    delta: Delta | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    idx: int | msgspec.UnsetType = msgspec.UNSET
    extra: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    route: str | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

    @property
    def socket_event(self) -> str:
        """The route this envelope travels on: its own where it names a known one, else its type's."""
        return (
            self.route if isinstance(self.route, str) and self.route in KNOWN_ROUTES else route_of(self.type)
        )

    def encode(self) -> bytes:
        """Return the envelope as one line of UTF-8 JSON; EnvelopeInvalid names what can't be encoded.

        So does one of more than ENVELOPE_BYTES.
        """
        try:
            body = _encoder.encode(self)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            # UnicodeEncodeError is a ValueError: a lone surrogate ends here.
            raise _explain(self, error) from error
        # msgspec writes NaN and the infinities as null: a value would be lost in silence.
        if b"null" in body:
            _refuse_nonfinite(self)
        if len(body) > ENVELOPE_BYTES:
            raise EnvelopeInvalid(
                "envelope", f"has {len(body)} bytes of JSON, and at most {ENVELOPE_BYTES} travel as one"
            )
        return body


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Envelope)


def decode_envelope(body: bytes | str) -> Envelope:
    """Read an encoded envelope back; what is no envelope is EnvelopeInvalid."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EnvelopeInvalid("envelope", str(error)) from error


def stamp() -> tuple[str, int]:
    """Return the present as an envelope says it twice: ISO 8601 in UTC with milliseconds, and epoch ms."""
    ts = time.time_ns() // 1_000_000
    second, millisecond = divmod(ts, 1000)
    return f"{_iso_of(second)}.{millisecond:03d}Z", ts


@lru_cache(maxsize=2)
def _iso_of(second: int) -> str:
    """Return a second as ISO 8601 without its zone; some thousand envelopes share one."""
    return datetime.fromtimestamp(second, UTC).isoformat().removesuffix("+00:00")


def _explain(envelope: Envelope, error: Exception) -> EnvelopeInvalid:
    """Find the field that the encoder would not take."""
    for path, value in _leaves(envelope):
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as surrogate:
                return EnvelopeInvalid(path, f"text has a lone surrogate at character {surrogate.start}")
            continue
        try:
            _encoder.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as cause:
            return EnvelopeInvalid(path, str(cause) or type(cause).__name__)
    return EnvelopeInvalid("envelope", str(error) or type(error).__name__)


def _refuse_nonfinite(envelope: Envelope) -> None:
    for path, value in _leaves(envelope):
        if isinstance(value, float) and not math.isfinite(value):
            raise EnvelopeInvalid(path, f"{value} cannot be written as JSON")


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """List every scalar (and every dictionary key) below a value with its dotted path.

    An explicit stack: a structure nested without end is an error of the encoder, not of this walk.
    """
    leaves: list[tuple[str, Any]] = []
    stack: list[tuple[str, Any, int]] = [(path, value, 0)]
    while stack:
        where, item, depth = stack.pop()
        if depth > 200:
            leaves.append((where, item))
        elif isinstance(item, msgspec.Struct):
            fields = [(f"{where}.{name}".lstrip("."), getattr(item, name)) for name in item.__struct_fields__]
            stack += [(name, part, depth + 1) for name, part in reversed(fields) if part is not msgspec.UNSET]
        elif isinstance(item, dict):
            for key, part in reversed(list(item.items())):
                stack.append((f"{where}.{key!s}".encode("utf-8", "replace").decode(), part, depth + 1))
                # A key that JSON has no place for shows only as a key.
                plain = key if isinstance(key, str) else {key: None}
                leaves.append((f"a key of {where}", plain))
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack += [(f"{where}[{i}]", part, depth + 1) for i, part in enumerate(item)]
        else:
            leaves.append((where, item))
    return leaves
