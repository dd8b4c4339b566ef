"""A TCP proxy between two real parties that can be cut, stalled, slowed and restored."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Self

from tests.servers import free_port

CHUNK = 16 * 1024
_RESET = struct.pack("ii", 1, 0)


class TcpProxy:
    """Forwards its port of 127.0.0.1 to another address, on a loop in a thread of its own.

    The port stays the same. `start` returns when it listens; whoever starts it calls `close`, which resets what is
    open. With small `buffer_bytes` little disappears in the proxy's own sockets: for one that plays a slow reader.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, buffer_bytes: int = 0) -> None:
        self.target = (host, port)
        self.port = free_port()
        self.accepted = 0
        self.to_client_bytes = 0
        self._buffer_bytes = buffer_bytes
        self._rate = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._listening: asyncio.Task[None] | None = None
        self._pairs: dict[asyncio.Task[None], tuple[socket.socket, socket.socket]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections it forwards."""
        return len(self._pairs)

    def start(self) -> Self:
        """Listen."""
        self._thread.start()
        self._call(self._listen())
        return self

    def cut(self) -> None:
        """Reset every connection, and refuse new ones until `restore`."""
        self._call(self._cut())

    def reset(self) -> None:
        """Reset every connection; new ones are taken."""
        self._call(self._reset())

    def stall(self) -> None:
        """Forward nothing until `restore`; connections stay open, and new ones are taken."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def slow(self, bytes_per_second: int) -> None:
        """Forward only so much, per connection and direction, until `restore`."""
        self._rate = bytes_per_second

    def restore(self) -> None:
        """Forward again, as fast as can be."""
        self._rate = 0
        self._loop.call_soon_threadsafe(self._flowing.set)
        self._call(self._listen())

    def close(self) -> None:
        """Stop, for good."""
        if not self._thread.is_alive():
            return
        self._call(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    # --- on the loop ------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self._listening is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._bound(listener)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(512)
        listener.setblocking(False)
        self._listening = asyncio.create_task(self._accept(listener))

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                self.accepted += 1
                server = socket.socket()
                for end in (client, server):
                    end.setblocking(False)
                self._bound(server)
                pair = asyncio.create_task(self._forward(client, server))
                self._pairs[pair] = (client, server)
                pair.add_done_callback(self._gone)

    async def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            await self._loop.sock_connect(server, self.target)
            up = asyncio.create_task(self._pump(client, server, up=True))
            down = asyncio.create_task(self._pump(server, client, up=False))
            try:
                await asyncio.gather(up, down)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)

    async def _pump(self, source: socket.socket, sink: socket.socket, *, up: bool) -> None:
        while True:
            await self._flowing.wait()
            size = CHUNK if not self._rate else max(1, min(CHUNK, self._rate // 10))
            data = await self._loop.sock_recv(source, size)
            await self._flowing.wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            if self._rate:
                await asyncio.sleep(len(data) / self._rate)
            await self._loop.sock_sendall(sink, data)
            if not up:
                self.to_client_bytes += len(data)

    def _gone(self, pair: asyncio.Task[None]) -> None:
        for end in self._pairs.pop(pair):
            end.close()

    async def _cut(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None
        await self._reset()

    async def _reset(self) -> None:
        pairs = dict(self._pairs)
        for ends in pairs.values():
            for end in ends:
                # Closed with a reset, as by a host that has gone, not with a farewell.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        for pair in pairs:
            pair.cancel()
        await asyncio.gather(*pairs, return_exceptions=True)
        # Their sockets are closed in the callbacks of the tasks, which come with the next turn of the loop.
        await asyncio.sleep(0)

    def _bound(self, end: socket.socket) -> None:
        if self._buffer_bytes:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
