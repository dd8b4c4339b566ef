"""Back-pressure on daphne: its `send` returns at once, so whoever sends waits here while its transport is full.

uvicorn's `send` waits by itself and is handed on as it is. daphne gives an application no transport, but its
`send` is bound to the protocol of the connection, and Twisted tells whoever registers as the producer of that
connection when more than 64 KiB wait for the socket, and when none does any more: over plain sockets, TLS and HTTP/2.
"""

import asyncio
from functools import partial
from typing import Any

from daphne.server import Server

Application = Any
LAST = ("websocket.close", "http.response.body")
"""Messages that may end a connection: what waits then is written before it is closed."""


class Pace:
    """The producer of one connection, as Twisted knows it. Whoever opens it closes it."""

    def __init__(self, protocol: Any, *, websocket: bool) -> None:
        self._room: asyncio.Future[None] | None = None
        self._consumer = protocol if websocket else protocol.channel
        if websocket:
            # The HTTP channel that the socket was upgraded from, which produces nothing any more.
            protocol.unregisterProducer()
        if self._consumer is not None:
            self._consumer.registerProducer(self, True)

    def close(self) -> None:
        """Produce no more; harmless the second time."""
        self.resumeProducing()
        consumer, self._consumer = self._consumer, None
        if consumer is not None and getattr(consumer, "transport", None) is not None:
            consumer.unregisterProducer()

    async def room(self) -> None:
        """Wait until nothing waits for the socket any more, if it was too much; or until the client has gone."""
        while self._room is not None:
            await asyncio.shield(self._room)

    # --- Twisted's IPushProducer ------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The connection holds too much."""
        if self._room is None and self._consumer is not None:
            self._room = asyncio.get_running_loop().create_future()

    def resumeProducing(self) -> None:
        """The connection has written what it held."""
        room, self._room = self._room, None
        if room is not None:
            room.set_result(None)

    def stopProducing(self) -> None:
        """The client has gone; daphne drops what is still sent."""
        self.resumeProducing()


def paced(application: Application) -> Application:
    """Return an ASGI application that never sends ahead of its client, on daphne either."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if not _returns_at_once(send):
            await application(scope, receive, send)
            return
        pace = Pace(send.args[0], websocket=scope["type"] == "websocket")

        async def send_when_there_is_room(message: Any) -> None:
            if message["type"] in LAST and not message.get("more_body"):
                pace.close()
            await send(message)
            await pace.room()

        try:
            await application(scope, receive, send_when_there_is_room)
        finally:
            pace.close()

    return serve


def _returns_at_once(send: Any) -> bool:
    """Tell whether this is daphne's `send`: its server's `handle_reply`, bound to a protocol."""
    return isinstance(send, partial) and isinstance(getattr(send.func, "__self__", None), Server)
