"""What the WebSocket transports share: one socket, its messages one at a time, its peer, its end."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from django.http import HttpRequest

from comm.history import Position
from relay.hub import get_hub
from relay.ingress.bodies import body_limit
from relay.peers import Peer

from .frames import Encoder
from .opening import request_of
from .origins import origin_allowed

logger = logging.getLogger(__name__)

REASON_BYTES = 120
"""A close frame has room for 123 bytes of reason."""
FORBIDDEN = 4403
FAILED = 4500
"""Not 1011: daphne can close with none of the protocol's own codes but 1000."""

_decoder = msgspec.json.Decoder()


class CloseSocket(Exception):
    """Ends a socket with a close code and a sentence; raised by whoever finds that it must end."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class SocketConsumer(AsyncWebsocketConsumer):
    """One WebSocket of one client, and the wire of its peer.

    Messages are handled one at a time: a client that sends faster than it is served waits. Before the peer
    has begun, what is sent goes straight to the socket; from then on through the peer, in one order. The
    hub listens to the channel layer for all sockets of the process. Whatever ends the consumer, `__call__`
    leaves the hub.
    """

    keepalive = b""
    bad_frame_code = 4400
    too_large_code = 4413

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peer: Peer | None = None
        self.goodbye_code = FAILED
        self.transmit: Any
        self._closed = False

    # --- for the transport to fill in ---------------------------------------------------------------

    @property
    def encode(self) -> Encoder:
        """How a frame is written on this wire."""
        raise NotImplementedError

    def ready(self, peer: Peer, resume: dict[str, Any], position: Position) -> list[bytes]:
        """Return the frames that the stream begins with."""
        raise NotImplementedError

    def goodbye(self, peer: Peer, retry_after_ms: int) -> bytes:
        """Return the frame that announces a drain."""
        raise NotImplementedError

    async def accepted(self, request: HttpRequest) -> None:
        """The socket is open."""

    async def heard(self, message: dict[str, Any]) -> None:
        """The client sent a JSON object. Errors: CloseSocket."""
        raise NotImplementedError

    def patience_seconds(self) -> float | None:
        """How long to wait for the client's next message; None for ever."""
        return None

    async def waited(self) -> None:
        """Nothing came for `patience_seconds()`. Errors: CloseSocket."""

    def refusal(self, sentence: str) -> bytes | None:
        """Return the frame that says why the socket closes, where the transport has one beside the code."""
        return None

    # --- the life of the socket -----------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one socket to its end."""
        self.scope = scope
        self.transmit = send
        try:
            while True:
                try:
                    await self._serve_next(receive)
                except CloseSocket as reason:
                    await self._close(reason.code, str(reason))
        except StopConsumer:
            pass
        except (OSError, RuntimeError) as error:
            # Each server has its own word for a client that has gone while it was written to.
            logger.info("A socket cannot be written any more: %s", error)
        finally:
            if self.peer is not None:
                await get_hub().leave(self.peer)

    async def _serve_next(self, receive: Any) -> None:
        try:
            async with asyncio.timeout(None if self._closed else self.patience_seconds()):
                event = await receive()
        except TimeoutError:
            await self.waited()
            return
        if event["type"] == "websocket.disconnect":
            raise StopConsumer()
        if event["type"] == "websocket.connect":
            await self._accept()
        elif not self._closed:
            await self._read(event)

    async def _accept(self) -> None:
        request = request_of(self.scope)
        if not origin_allowed(request):
            # Before it is accepted, a close is answered with 403.
            await self.transmit({"type": "websocket.close", "code": FORBIDDEN})
            raise StopConsumer()
        await self.transmit({"type": "websocket.accept"})
        await self.accepted(request)

    async def _read(self, event: dict[str, Any]) -> None:
        text = event.get("text")
        if text is None:
            raise CloseSocket(self.bad_frame_code, "Send text frames with JSON; this one is binary.")
        if len(text) > body_limit() or len(text.encode("utf-8", "surrogatepass")) > body_limit():
            raise CloseSocket(self.too_large_code, f"The frame is too large; at most {body_limit()} bytes.")
        try:
            message = _decoder.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise CloseSocket(self.bad_frame_code, f"The frame is not valid JSON ({error}).") from None
        if not isinstance(message, dict):
            raise CloseSocket(self.bad_frame_code, "The frame must be a JSON object.")
        await self.heard(message)
        if self.peer is not None:
            await self.peer.has_room()

    async def say(self, data: bytes) -> None:
        """Write a frame of the transport's own: through the peer where there is one."""
        if self.peer is not None and self.peer.is_open:
            self.peer.say(data)
        else:
            await self.write([data])

    async def _close(self, code: int, sentence: str) -> None:
        if self._closed:
            return
        data = self.refusal(sentence)
        if self.peer is not None:
            await get_hub().leave(self.peer)
        self._closed = True
        if data is not None:
            await self.transmit({"type": "websocket.send", "text": data.decode()})
        reason = sentence.encode()[:REASON_BYTES].decode(errors="ignore")
        await self.transmit({"type": "websocket.close", "code": code, "reason": reason})

    # --- what the peer asks of its wire ---------------------------------------------------------------

    async def write(self, frames: Sequence[bytes]) -> None:
        """Write each frame as a text message; waits while the client's socket is full."""
        for frame in frames:
            if frame and not self._closed:
                await self.transmit({"type": "websocket.send", "text": frame.decode()})

    async def finish(self) -> None:
        """Close the socket: after a drain's goodbye with its code, else as failed."""
        if not self._closed:
            self._closed = True
            await self.transmit({"type": "websocket.close", "code": self.goodbye_code})
