"""The load: many event streams on raw sockets in one process, counted without parsing JSON.

Every received event is checked: its number must be the next of its stream. Latency is taken from the
timestamp that travels in the event.
"""

import asyncio
import re
import socket
import time
from array import array

NUMBERED = re.compile(rb'"text": ?"@(\d+)@[^"]*", ?"index": ?(\d+)')


class StreamProtocol(asyncio.Protocol):
    """One open stream: counts events, notes gaps, doubles and disorder, and latencies where asked."""

    def __init__(self, load: "Load", request: bytes) -> None:
        self.load = load
        self.request = request
        self.rest = b""
        self.next_number = 0
        self.ready = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.time_ns()
        load = self.load
        data = self.rest + data
        if not self.ready:
            if b"event: ready" not in data:
                self.rest = data
                return
            self.ready = True
            load.opened()
        end = 0
        for match in NUMBERED.finditer(data):
            number = int(match[2])
            if number == self.next_number:
                self.next_number += 1
            elif number > self.next_number:
                load.lost += number - self.next_number
                self.next_number = number + 1
            else:
                load.out_of_order += 1
            if load.take_latency:
                load.latencies_us.append((now - int(match[1])) / 1000)
            load.received += 1
            end = match.end()
        # An event may be cut anywhere by the end of a read.
        self.rest = data[end:][-2048:]
        if load.received >= load.expected:
            load.complete.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.closed += 1


class Load:
    """Opens streams and tells what arrived."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.latencies_us = array("d")
        self.take_latency = False
        self.lost = self.out_of_order = self.received = self.closed = self.open_streams = 0
        self.expected = 1 << 62
        self.complete = asyncio.Event()
        self._all_open = asyncio.Event()
        self._wanted = 0
        self.transports: list[asyncio.BaseTransport] = []

    def opened(self) -> None:
        """Note that one more stream has its first frame."""
        self.open_streams += 1
        if self.open_streams >= self._wanted:
            self._all_open.set()

    async def open(self, paths: list[str], at_once: int = 50) -> float:
        """Open a stream per path; return how many were opened per second."""
        self._wanted = self.open_streams + len(paths)
        self._all_open.clear()
        began = time.perf_counter()
        gate = asyncio.Semaphore(at_once)

        async def one(path: str) -> None:
            async with gate:
                request = (
                    f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode()
                )
                sock = socket.create_connection(("127.0.0.1", self.port))
                sock.setblocking(False)
                transport, protocol = await asyncio.get_running_loop().create_connection(
                    lambda: StreamProtocol(self, request), sock=sock
                )
                self.transports.append(transport)
                while not protocol.ready:
                    await asyncio.sleep(0.001)

        await asyncio.gather(*(one(path) for path in paths))
        await asyncio.wait_for(self._all_open.wait(), 60)
        return len(paths) / (time.perf_counter() - began)

    async def wait(self, expected: int, quiet_seconds: float = 3.0, limit_seconds: float = 120.0) -> float:
        """Wait until so many events have arrived, or none came for a while; return the time of the last."""
        self.expected = expected
        last, last_at, ends = -1, time.perf_counter(), time.perf_counter() + limit_seconds
        while self.received < expected and time.perf_counter() < ends:
            if self.received != last:
                last, last_at = self.received, time.perf_counter()
            elif time.perf_counter() - last_at > quiet_seconds:
                return last_at
            await asyncio.sleep(0.005)
        return time.perf_counter()

    def close(self) -> None:
        """Close every stream."""
        for transport in self.transports:
            transport.close()
