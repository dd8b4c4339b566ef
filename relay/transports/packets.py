"""python-socketio with bounds: what a client sends is checked before it is kept, what waits for it has an end."""

import asyncio
import contextlib
import logging
from typing import Any

import engineio
import socketio
from engineio.payload import Payload
from socketio import packet as protocol

from relay.conf import relay_settings
from relay.ingress.bodies import body_limit

logger = logging.getLogger(__name__)

BINARY_LIMIT = 1000
"""Binary arguments of one event; a message with more than its files allow is refused in our words below this."""
WAITING_PACKETS = 512
"""Packets that wait for one client before its own messages are no longer read."""
CLOSE_SECONDS = 1.0
"""How long the end of the process waits for clients that do not read."""
RESERVED = ("connect", "disconnect", "connect_error")

Payload.max_decode_packets = BINARY_LIMIT + 16
"""One polling request carries a message with all its files."""

NOT_PACKETS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
"""What the library raises on packets that are none."""


class Oversized:
    """Stands in the place of a binary argument that would have been too much to keep."""


class BoundedPacket(protocol.Packet):  # type: ignore[misc]
    """A packet whose event is named, and whose binary arguments are kept up to the limit of a message."""

    _kept = 0

    def decode(self, encoded_packet: Any) -> int:
        """Read a packet. Errors: ValueError for what no client of ours has a reason to send."""
        count = int(super().decode(encoded_packet))
        if count > BINARY_LIMIT:
            raise ValueError("too many binary arguments")
        if self.packet_type in (protocol.EVENT, protocol.BINARY_EVENT):
            name = self.data[0] if isinstance(self.data, list) and self.data else None
            if not isinstance(name, str) or name in RESERVED:
                raise ValueError("an event needs a name that is not reserved")
        return count

    def add_attachment(self, attachment: Any) -> bool:
        """Take the next binary argument; past the limit only its place is kept, for the refusal."""
        if not isinstance(attachment, bytes):
            raise ValueError("expected a binary argument")
        self._kept += len(attachment)
        complete: bool = super().add_attachment(attachment if self._kept <= body_limit() else Oversized())
        return complete


class NotReading(ConnectionError):
    """A client did not read for so long that its connection was closed."""


class BoundedEngine(engineio.AsyncServer):  # type: ignore[misc]
    """The engine, whose sends wait for a client that does not read: its queue alone would grow for ever."""

    async def send_packet(self, sid: str, pkt: Any) -> None:
        """Queue a packet for a client, after those that wait when they are too many.

        One that takes none of them for long is closed: it may have gone without the library noticing.
        """
        waiting = self.sockets.get(sid)
        if waiting is not None and waiting.queue.qsize() >= WAITING_PACKETS:
            try:
                await asyncio.wait_for(waiting.queue.join(), relay_settings().NOT_READING_SECONDS)
            except TimeoutError:
                logger.info("A client takes nothing of what waits for it and is disconnected")
                await waiting.close(wait=False, abort=True, reason=self.reason.TRANSPORT_ERROR)
                raise NotReading from None
        await super().send_packet(sid, pkt)


def _in_one_line(record: logging.LogRecord) -> bool:
    """Let no client fill the log with tracebacks of the library."""
    if record.exc_info:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]!r:.200}", ()
        record.exc_info = None
    return True


class GuardedServer(socketio.AsyncServer):  # type: ignore[misc]
    """The Socket.IO server; a client that sends no packets, or never joins, is disconnected. `aclose` ends it."""

    def __init__(self, **options: Any) -> None:
        # Its own log lines hold what clients send.
        quiet = logging.getLogger(f"{__name__}.library")
        quiet.setLevel(logging.WARNING)
        quiet.addFilter(_in_one_line)
        super().__init__(
            async_mode="asgi",
            # One at a time: order is kept, and a client that floods waits for its own answers.
            async_handlers=False,
            serializer=BoundedPacket,
            http_compression=False,
            logger=quiet,
            engineio_logger=quiet,
            **options,
        )
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._endings: set[asyncio.Task[None]] = set()

    def _engineio_server_class(self) -> type[BoundedEngine]:
        return BoundedEngine

    def end(self, eio_sid: str) -> None:
        """Close a client's connection, after what waits for it; returns at once."""
        task = asyncio.get_running_loop().create_task(self._end(eio_sid))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end(self, eio_sid: str) -> None:
        left = self.eio.sockets.get(eio_sid)
        if left is not None and not left.closed:
            # A closed one answers no poll any more, so what waits must be fetched before.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(left.queue.join(), CLOSE_SECONDS)
        await self.eio.disconnect(eio_sid)
        if left is not None and left.upgraded:
            # A client of the protocol closes its socket when it is told to; any other is not waited for.
            await left.queue.put(None)

    async def aclose(self) -> None:
        """End every connection, also those that never joined, and stop what runs for them."""
        for deadline in self._deadlines.values():
            deadline.cancel()
        self._deadlines.clear()
        for eio_sid in list(self.eio.sockets):
            self.end(eio_sid)
        if self._endings:
            _, unread = await asyncio.wait(self._endings, timeout=2 * CLOSE_SECONDS)
            for task in unread:
                task.cancel()
            await asyncio.gather(*unread, return_exceptions=True)
        await self.shutdown()

    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        self._deadlines[eio_sid] = loop.call_later(
            relay_settings().SOCKET_AUTH_SECONDS, self._end_unless_joined, eio_sid
        )
        await super()._handle_eio_connect(eio_sid, environ)

    async def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        try:
            await super()._handle_eio_message(eio_sid, data)
        except NotReading:
            self._binary_packet.pop(eio_sid, None)
        except NOT_PACKETS as error:
            logger.info("A client sent what is no packet (%s) and is disconnected", error)
            self._binary_packet.pop(eio_sid, None)
            self.end(eio_sid)

    async def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        deadline = self._deadlines.pop(eio_sid, None)
        if deadline is not None:
            deadline.cancel()
        self._binary_packet.pop(eio_sid, None)
        await super()._handle_eio_disconnect(eio_sid, reason)
        left = self.eio.sockets.get(eio_sid)
        if reason == self.reason.CLIENT_DISCONNECT and left is not None:
            # Its open poll would wait for the next ping; nothing is what ends it.
            await left.queue.put(None)

    def _end_unless_joined(self, eio_sid: str) -> None:
        self._deadlines.pop(eio_sid, None)
        if self.manager.sid_from_eio_sid(eio_sid, "/") is None:
            self.end(eio_sid)
