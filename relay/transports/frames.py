"""How an envelope looks on each wire: pure functions from route, body and position to bytes.

A body is one line of JSON: the encoder escapes every control character, so no text in it can split a frame.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from comm.history import Position

KEEPALIVE = b": keepalive\n\n"

Encoder = Callable[[str, bytes, Position | None], bytes]
"""Writes one frame: route, JSON body, position (None where the frame has none)."""

_json = msgspec.json.Encoder()


def sse_frame(route: str, body: bytes, position: Position | None) -> bytes:
    """Return a server-sent event; without a position it moves none."""
    if position is None:
        return b"event: %b\ndata: %b\n\n" % (route.encode(), body)
    return b"id: %d-%d\nevent: %b\ndata: %b\n\n" % (*position, route.encode(), body)


def sse_retry(milliseconds: int) -> bytes:
    """Return the field, before a frame, that tells an EventSource how long to wait before it reconnects."""
    return b"retry: %d\n" % milliseconds


def websocket_frame(route: str, body: bytes, position: Position | None) -> bytes:
    """Return a text message of the native WebSocket: `{"event": route, "id": position, "data": envelope}`."""
    if position is None:
        return b'{"event":"%b","data":%b}' % (route.encode(), body)
    return b'{"event":"%b","id":"%d-%d","data":%b}' % (route.encode(), *position, body)


def socketio_frame(route: str, body: bytes, position: Position | None) -> bytes:
    """Return an EVENT packet of Socket.IO's root namespace; the position is the envelope's key `id`."""
    if position is None:
        return b'2["%b",%b]' % (route.encode(), body)
    return b'2["%b",%b,"id":"%d-%d"}]' % (route.encode(), body[:-1], *position)


def encode_body(value: dict[str, Any]) -> bytes:
    """Return a value of our own making as one line of JSON."""
    return _json.encode(value)


class Frame:
    """One message as the hub delivers it; its encoding is made once per wire, not per peer."""

    __slots__ = ("_encoded", "_encoder", "body", "position", "route", "target_sid")

    def __init__(self, route: str, body: bytes, position: Position | None, target_sid: str | None) -> None:
        self.route = route
        self.body = body
        self.position = position
        self.target_sid = target_sid
        self._encoder: Encoder | None = None
        self._encoded = b""

    @classmethod
    def of(cls, message: dict[str, Any], position: Position | None) -> "Frame":
        """Read a channel-layer message."""
        return cls(message["route"], message["body"], position, message["target_sid"])

    def encoded(self, encoder: Encoder) -> bytes:
        """Return the frame as this encoder writes it."""
        if self._encoder is not encoder:
            self._encoded = encoder(self.route, self.body, self.position)
            self._encoder = encoder
        return self._encoded
