"""Clients that do not read, or read little, over real sockets with small buffers; then they read to the end."""

import asyncio
import json
import socket
from abc import ABC, abstractmethod
from typing import Any
from urllib.parse import urlencode, urlsplit

from websockets.asyncio.client import ClientConnection, connect

from tests.clients import SseEvent, ends_turn, parse_event

RECEIVE_BUFFER = 16 * 1024


class SlowReader(ABC):
    """One stream of a session; nothing is taken from its socket but by `take`."""

    def __init__(self, url: str, session_id: str) -> None:
        where = urlsplit(url)
        self.host, self.port = str(where.hostname), int(where.port or 80)
        self.session_id = session_id
        self.received: list[SseEvent] = []

    async def connected(self) -> socket.socket:
        """Return a connected socket whose receive buffer is small."""
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, (self.host, self.port))
        return opened

    @abstractmethod
    async def open(self) -> None:
        """Open the stream and read its `ready`."""

    @abstractmethod
    async def take(self) -> None:
        """Read a little: at most a few KiB, or one message."""

    @abstractmethod
    async def close(self) -> None:
        """Go."""

    async def take_to_the_end(self, timeout: float = 120) -> list[SseEvent]:
        """Read at full speed until a turn has ended."""
        async with asyncio.timeout(timeout):
            while not any(map(ends_turn, self.received[-20:])):
                await self.take()
        return self.received


class SlowSse(SlowReader):
    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(
            sock=await self.connected(), limit=RECEIVE_BUFFER
        )
        query = urlencode({"stream_id": f"slow-reader-{id(self)}", "user_session_id": self.session_id})
        self.writer.write(f"GET /sse/stream?{query} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
        await self.reader.readuntil(b"\r\n\r\n")
        self.buffer = b""
        while not self.received:
            await self.take()

    async def take(self) -> None:
        size = int(await self.reader.readline(), 16)
        assert size, "the stream has ended"
        self.buffer += (await self.reader.readexactly(size + 2))[:-2]
        *blocks, self.buffer = self.buffer.split(b"\n\n")
        for block in blocks:
            if event := parse_event(block.decode().split("\n")):
                self.received.append(event)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


class SlowWebSocket(SlowReader):
    socket: ClientConnection

    async def connect(self, path: str, **query: str) -> None:
        url = f"ws://{self.host}:{self.port}{path}?{urlencode(query)}"
        # One message at a time is taken from the socket: whoever does not ask for it leaves it there.
        self.socket = await connect(
            url, sock=await self.connected(), max_size=None, max_queue=1, ping_interval=None
        )

    async def open(self) -> None:
        await self.connect("/ws/stream", stream_id=f"slow-reader-{id(self)}", user_session_id=self.session_id)
        while not self.received:
            await self.take()

    async def take(self) -> None:
        frame = json.loads(await self.socket.recv())
        if frame["event"] != "keepalive":
            self.received.append(SseEvent(frame["event"], frame["data"], frame.get("id")))

    async def close(self) -> None:
        # A close frame would wait behind all that was not read.
        self.socket.transport.abort()
        await self.socket.wait_closed()


class SlowSocketIo(SlowWebSocket):
    async def open(self) -> None:
        await self.connect("/socket.io/", EIO="4", transport="websocket")
        assert str(await self.socket.recv()).startswith("0{")
        await self.socket.send("40" + json.dumps({"user_session_id": self.session_id}))
        while not self.received:
            await self.take()

    async def take(self) -> None:
        packet = str(await self.socket.recv())
        if packet == "2":
            await self.socket.send("3")
        elif packet.startswith("42"):
            event: str
            data: dict[str, Any]
            event, data = json.loads(packet[2:])
            if event != "session_info":
                self.received.append(SseEvent(event, data, data.get("id")))


SLOW_READERS: dict[str, type[SlowReader]] = {
    "sse": SlowSse,
    "websocket": SlowWebSocket,
    "socketio": SlowSocketIo,
}
